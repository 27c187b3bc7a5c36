"""A sampler that can be told to leave what it holds best for once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler

from flatsearch.search.promotion_sampler import PromotionSampler

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

__all__ = ["UnstuckSampler"]


class UnstuckSampler(PromotionSampler):
    """Asks a sampler, or draws at random while that one repeats itself.

    Args:
        sampler: The sampler that is asked.
        seed: The seed of what is drawn at random, with the number of the trial: no two workers, and
            no two runs of a study, draw the same.

    Attributes:
        at_random: Whether the next trials are drawn at random.
    """

    def __init__(self, sampler: BaseSampler, seed: int) -> None:
        super().__init__(sampler)
        self._seed = seed
        self._random = RandomSampler(seed=seed)
        self.at_random = False

    @property
    def _asked(self) -> BaseSampler:
        return self._random if self.at_random else self.sampler

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial begins."""
        if self.at_random:
            entropy = np.random.SeedSequence([self._seed, trial.number, 1])
            self._random = RandomSampler(seed=int(entropy.generate_state(1)[0]))
        super().before_trial(study, trial)
        # A genetic sampler learns from members of its generations only.
        join = getattr(self.sampler, "get_trial_generation", None)
        if self.at_random and join is not None:
            join(self._seen(study), trial)
