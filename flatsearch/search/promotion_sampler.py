"""A sampler for studies with parked trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler

from flatsearch.pruners.metric_view import WritableTrial, look_again
from flatsearch.pruners.per_study import PerStudy
from flatsearch.pruners.promoter import Promoter
from flatsearch.record import TrialRecord
from flatsearch.search.liveness import note_worker
from flatsearch.search.sampler_view import seen

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

__all__ = ["PromotionSampler"]


class PromotionSampler(BaseSampler):
    """Lets any sampler see a study with parked trials as it is meant.

    To Optuna a parked trial is a pruned one, and a network that is promoted several trials of the
    same parameters. The sampler is shown every network once, and a parked one with the values that
    it is predicted to end with. `flatsearch run` does that by itself. Under a pruner that parks
    nothing the sampler is shown the study as it is.

    Args:
        sampler: The sampler that is asked.

    Attributes:
        sampler: The sampler that is asked.

    Example:
        >>> import optuna
        >>> import flatsearch
        >>> study = optuna.create_study(
        ...     sampler=PromotionSampler(optuna.samplers.TPESampler(seed=0)),
        ...     pruner=flatsearch.HalvingPromoter(epochs=12),
        ... )
    """

    def __init__(self, sampler: BaseSampler) -> None:
        # Two of them would show the one what the other one shows.
        self.sampler: BaseSampler = sampler
        if isinstance(sampler, PromotionSampler):
            self.sampler = sampler.sampler
        self._views: PerStudy[optuna.Study] = PerStudy()

    @property
    def _asked(self) -> BaseSampler:
        return self.sampler

    def _seen(self, study: optuna.Study) -> optuna.Study:
        if not isinstance(study.pruner, Promoter):
            return study
        return self._views.get(study, seen)

    def reseed_rng(self) -> None:
        """Reseed the sampler, as Optuna asks of every thread's."""
        self.sampler.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together."""
        if TrialRecord(trial).promotion is not None:
            return {}  # its parameters are known
        return self._asked.infer_relative_search_space(self._seen(study), trial)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return values of the parameters that are sampled together."""
        return self._asked.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value of one parameter."""
        return self._asked.sample_independent(
            self._seen(study), trial, param_name, param_distribution
        )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial begins; whose process is noted before anything else."""
        note_worker(WritableTrial(study, trial))
        look_again(self._seen(study))
        self._asked.before_trial(self._seen(study), trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the sampler how a trial has ended."""
        self._asked.after_trial(self._seen(study), trial, state, values)
