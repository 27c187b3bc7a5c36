"""Pruning for good, by a prediction that is calibrated on the study's own trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.pruners import BasePruner

from flatsearch.pruners.calibrated import CalibratedRule
from flatsearch.pruners.metric_view import WritableTrial
from flatsearch.pruners.per_study import PerStudy
from flatsearch.record.decisions import write_decision
from flatsearch.record.trial import TrialRecord
from flatsearch.signals.table import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

__all__ = ["FlatnessPruner"]


class FlatnessPruner(BasePruner):
    """Prune trials that will hardly end among the best, with any number of objectives.

    A trial is flagged if the probability that it ends among the best is below `limit` times what it
    is for any trial. It is predicted from all recorded signals, flatness among them, with weights
    and signs learnt from the study's own finished trials: which values of flatness are good is for
    the data to say, not the name. A share of the flagged trials is audited, that is, run on all the
    same, and pruning suspends itself while they show that it hurts; the others are pruned. Every
    decision is recorded with its reason.

    To prune by one metric or by the Pareto rank, with a rule such as the median, see `MetricPruner`
    and `ParetoPruner`.

    Args:
        n_startup_trials: No pruning at a step that fewer complete trials have reached.
        n_warmup_steps: No pruning at steps below this one; the first step is 0.
        interval_steps: The number of steps between decisions, counted from the warm-up.
        best: With one objective, the share of all trials that counts as the best; with several it
            is the Pareto front.
        limit: The share of the base rate below which a trial's probability flags it. The base rate
            is the probability without any signal: `best`, or the front's share of all trials, so
            that signals that say nothing prune little.
        audit: The share of flagged trials that is run on.
        signals: The names of the metrics to learn from; a trial need not have all of them.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import optuna
        >>> from flatsearch import report, should_prune
        >>> study = optuna.create_study(
        ...     direction="maximize", pruner=FlatnessPruner(n_startup_trials=20), study_name="a"
        ... )
        >>> for i in range(20):
        ...     trial = study.ask()
        ...     for step in range(2):
        ...         report(trial, step, accuracy=i / 20)
        ...     _ = study.tell(trial, i / 20)
        >>> trial = study.ask()
        >>> report(trial, 0, accuracy=0.1)
        >>> should_prune(trial)
        True
    """

    def __init__(
        self,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        *,
        best: float = 0.1,
        limit: float = 0.5,
        audit: float = 0.1,
        signals: Sequence[str] = tuple(SIGNALS),
    ) -> None:
        counts = {
            "n_startup_trials": (n_startup_trials, 0),
            "n_warmup_steps": (n_warmup_steps, 0),
            "interval_steps": (interval_steps, 1),
        }
        for name, (value, least) in counts.items():
            if value < least:
                raise ValueError(f"`{name}` must be at least {least} but got {value}")
        for name, share in {"best": best, "limit": limit, "audit": audit}.items():
            if not 0 < share < 1:
                raise ValueError(f"`{name}` must be between 0 and 1 but got {share}")
        self._n_startup_trials = n_startup_trials
        self._n_warmup_steps = n_warmup_steps
        self._interval_steps = interval_steps
        self._best = best
        self._limit = limit
        self._audit = audit
        self._signals = tuple(signals)
        self._rules: PerStudy[CalibratedRule] = PerStudy()

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Decide on a trial from its record and the finished trials', and record the decision.

        Args:
            study: The study.
            trial: The running trial; its last recorded step is judged.

        Returns:
            True if the trial should be pruned.
        """
        found = TrialRecord(trial)
        if not self._is_due(list(found.steps)):
            return False
        decision = self._rules.get(study, self._rule).decide(study, found)
        write_decision(WritableTrial(study, trial), decision)
        return decision.outcome == "pruned"

    def _rule(self, study: optuna.Study) -> CalibratedRule:
        return CalibratedRule(
            study,
            best=self._best,
            limit=self._limit,
            audit=self._audit,
            n_startup_trials=self._n_startup_trials,
            signals=self._signals,
        )

    def _is_due(self, steps: list[int]) -> bool:
        """Return whether the last step is the first one reported since the last decision point."""
        if not steps or steps[-1] < self._n_warmup_steps:
            return False
        step = steps[-1]
        point = step - (step - self._n_warmup_steps) % self._interval_steps
        return len(steps) == 1 or steps[-2] < point
