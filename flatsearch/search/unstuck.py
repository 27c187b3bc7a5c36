"""The sampler of a run: what it sees, and when it leaves what it holds best for once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from flatsearch.pruners.metric_view import shown_study
from flatsearch.record import TrialRecord, read_trials

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

__all__ = ["UnstuckSampler", "seen"]


class UnstuckSampler(BaseSampler):
    """Asks a sampler, or draws at random while that one repeats itself.

    Of the trials that train one network the sampler sees one, see `seen`.

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


def seen(study: optuna.Study) -> optuna.Study:
    """Return a study as a sampler is to see it: every network once.

    The first part of a network that has gone on was not bad for having been parked: it is shown as
    failed, from which samplers learn nothing, as are the duplicates that took over its result. One
    that goes on is shown as it was parked until it has ended.

    Args:
        study: The study.

    Returns:
        The study itself where no network has ever gone on.
    """
    trials = study.get_trials(deepcopy=False)
    if all(TrialRecord(trial).promotion is None for trial in trials):
        return study
    return shown_study(study, _show)


def _show(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    records = read_trials(trials)
    hidden = {r.number for r in records if r.superseded_by is not None}
    hidden |= {r.number for r in records if r.duplicate_of in hidden}
    hidden |= {r.number for r in records if r.state == "RUNNING" and not r.begins}
    return [_failed(trial) if trial.number in hidden else trial for trial in trials]


def _failed(trial: FrozenTrial) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state, shown.values = TrialState.FAIL, None
    return shown
