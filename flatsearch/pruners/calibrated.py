"""The rule of `FlatnessPruner`: prune what will hardly end among the best.

After every step the probability that the trial ends among the best is predicted from the finished
trials of the study (`flatsearch.pruners.predictor`). Below a limit the trial is *flagged*: pruned,
unless it is audited or pruning is suspended (`flatsearch.pruners.audit`).
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from flatsearch.pareto import signs
from flatsearch.pruners.audit import Audit, Ended, draw
from flatsearch.pruners.per_study import NewlyFinished
from flatsearch.pruners.predictor import Observation, Predictor
from flatsearch.record.decisions import Decision
from flatsearch.record.trial import FINISHED, TrialRecord
from flatsearch.signals.curve import with_tse
from flatsearch.signals.table import PRIOR, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

__all__ = ["CalibratedRule", "as_observation"]

_UNTRAINED = tuple(name for name, signal in SIGNALS.items() if signal.first == "untrained")


def as_observation(trial: TrialRecord, final: Sequence[float] | None) -> Observation:
    """Return a trial as the predictor sees it.

    Args:
        trial: The trial's record.
        final: The trial's objective values, larger is better, if it was run to the end.

    Returns:
        The observation, with the sum of the training losses so far as "tse".
    """
    flag = trial.flag if final is not None else None
    return Observation(
        curve=with_tse(trial.steps),
        fixed={name: trial.metrics[name] for name in _UNTRAINED if name in trial.metrics},
        final=final,
        feasible=trial.feasible,
        flagged=None if flag is None else flag.step,
        weight=1.0 if flag is None else trial.weight,
    )


class CalibratedRule:
    """What one process knows of one study, and decides by it.

    Args:
        study: Any study; its objectives are what is predicted.
        best: With one objective, the share of all trials that counts as the best.
        limit: A trial is flagged if its probability of ending there is below this share of the base
            rate, which is what it would be without any signal: the best share, or the front's.
        audit: The share of the flagged trials that is run on.
        n_startup_trials: No trial is flagged before this many are complete.
        signals: The names of the metrics to learn from, beside the objectives.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        best: float,
        limit: float,
        audit: float,
        n_startup_trials: int,
        signals: Sequence[str],
    ) -> None:
        self._signs = signs(study.directions).tolist()
        self._best = best if len(self._signs) == 1 else None
        self._limit, self._audited_share = limit, audit
        self._n_startup_trials = max(1, n_startup_trials)
        # An objective that no epoch changes, such as a latency, is known from the first step.
        objectives = study.metric_names or [""] * len(self._signs)
        names = dict.fromkeys((*signals, *(name for name in objectives if name)))
        # What is believed of the signals is about accuracy and the like, not about costs.
        priors = [
            PRIOR if sign > 0 and (name not in names or name.endswith("accuracy")) else {}
            for name, sign in zip(objectives, self._signs, strict=True)
        ]
        self._predictor = Predictor(tuple(names), best=best, prior=priors)
        self._audit = Audit(self._best)
        self._finished = NewlyFinished()
        self._last_step = 0
        self._flagged: set[int] = set()
        self._lock = threading.Lock()

    def decide(self, study: optuna.Study, trial: TrialRecord) -> Decision:
        """Return the decision on a running trial after its last step."""
        with self._lock:
            for other in self._finished.take(study.get_trials(deepcopy=False)):
                if other.state in FINISHED:
                    self._learn(other)
            decision = self._decide(study.study_name, trial)
            if decision.runs_on:
                # Optuna's own copy of a running trial does not see what is recorded of it.
                self._flagged.add(trial.number)
        return decision

    def _decide(self, study_name: str, trial: TrialRecord) -> Decision:
        step = max(trial.steps)
        estimate = self._predictor.ask(as_observation(trial, None), step)
        n, limit = estimate.n_trials, self._limit * estimate.base
        if n < self._n_startup_trials:
            return Decision(step, math.nan, math.nan, "start-up", 1.0, n, self._best)
        outcome, chance = "kept", 1.0
        if trial.number in self._flagged or trial.flag is not None:
            outcome = "under audit"
        # After its last step there is nothing to be saved.
        elif estimate.probability < limit and step < self._last_step:
            if self._audit.suspends():
                outcome = "suspended"
            elif draw(study_name, trial.number) < self._audited_share:
                outcome, chance = "audited", self._audited_share
            else:
                outcome = "pruned"
        return Decision(step, estimate.probability, limit, outcome, chance, n, self._best)

    def _learn(self, finished: optuna.trial.FrozenTrial) -> None:
        trial = TrialRecord(finished)
        if not trial.readable or not trial.own:
            return
        final = None
        if trial.complete:
            final = tuple(s * v for s, v in zip(self._signs, trial.values or (), strict=True))
            time = finished.datetime_complete
            self._audit.add(
                Ended(
                    final,
                    weight=trial.weight,
                    time=math.inf if time is None else time.timestamp(),
                    feasible=trial.feasible,
                    stated=None if trial.flag is None else trial.flag.probability,
                )
            )
            self._last_step = max(self._last_step, *trial.steps, 0)
        # A network that was parked, and went on in other trials, is one observation.
        self._predictor.add(as_observation(trial, final), trial.begun_by)
