"""A sampler that can be told to leave what it holds best for once."""

from __future__ import annotations

from optuna.samplers import BaseSampler, RandomSampler

from flatsearch.search.promotion_sampler import PromotionSampler

__all__ = ["UnstuckSampler"]


class UnstuckSampler(PromotionSampler):
    """Asks a sampler, or draws at random while that one repeats itself.

    Args:
        sampler: The sampler that is asked.
        seed: The seed of what is drawn at random.

    Attributes:
        at_random: Whether the next trials are drawn at random.
    """

    def __init__(self, sampler: BaseSampler, seed: int) -> None:
        super().__init__(sampler)
        self._random = RandomSampler(seed=seed)
        self.at_random = False

    @property
    def _asked(self) -> BaseSampler:
        return self._random if self.at_random else self.sampler

    def reseed_rng(self) -> None:
        """Reseed both."""
        super().reseed_rng()
        self._random.reseed_rng()
