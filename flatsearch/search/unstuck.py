"""The sampler of a run: what it sees, and when it leaves what it holds best for once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler, RandomSampler

from flatsearch.record import TrialRecord
from flatsearch.search.sampler_view import seen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

__all__ = ["UnstuckSampler"]


class UnstuckSampler(BaseSampler):
    """Asks a sampler, or draws at random while that one repeats itself.

    It sees the study as `flatsearch.search.sampler_view.seen` shows it.

    Args:
        sampler: The sampler that is asked.
        seed: The seed of what is drawn at random.

    Attributes:
        sampler: The sampler that is asked.
        at_random: Whether the next trials are drawn at random.
    """

    def __init__(self, sampler: BaseSampler, seed: int) -> None:
        self.sampler = sampler
        self._random = RandomSampler(seed=seed)
        self.at_random = False

    @property
    def _asked(self) -> BaseSampler:
        return self._random if self.at_random else self.sampler

    def reseed_rng(self) -> None:
        """Reseed both, as Optuna asks of every thread's sampler."""
        self.sampler.reseed_rng()
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together."""
        if TrialRecord(trial).promotion is not None:
            return {}  # its parameters are known
        return self._asked.infer_relative_search_space(seen(study), trial)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return values of the parameters that are sampled together."""
        return self._asked.sample_relative(seen(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value of one parameter."""
        return self._asked.sample_independent(seen(study), trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial begins."""
        self._asked.before_trial(seen(study), trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the sampler how a trial has ended."""
        self._asked.after_trial(seen(study), trial, state, values)
