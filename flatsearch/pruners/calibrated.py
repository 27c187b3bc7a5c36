"""The rule "calibrated" of `FlatnessPruner`: prune what will hardly end among the best.

After every step the probability that the trial ends among the best is predicted from the finished
trials of the study (`flatsearch.predictor`). Below a limit the trial is *flagged*. A known share of
the flagged trials is audited: run to the end all the same, so that what the study learns from is
not only what survived. While more audited trials turn out good than the stated probabilities allow,
pruning is suspended, and every flagged trial is run on.
"""

from __future__ import annotations

import hashlib
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import StudyDirection

from flatsearch.pareto import is_best
from flatsearch.pruners.metric_view import Annotated
from flatsearch.pruners.predictor import Observation, Predictor
from flatsearch.record.decisions import Decision, write_decision
from flatsearch.record.trial import FINISHED, TrialRecord
from flatsearch.signals.curve import with_tse
from flatsearch.signals.table import PRIOR, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

__all__ = ["CalibratedRule", "as_observation", "tail_probability"]

_UNTRAINED = tuple(name for name, signal in SIGNALS.items() if signal.first == "untrained")
# An audit this unlikely under the stated probabilities suspends pruning.
_SIGNIFICANT = 0.05


def tail_probability(probabilities: Sequence[float], k: int) -> float:
    """Return the probability that at least k of several independent events happen.

    Args:
        probabilities: One per event.
        k: How many.

    Returns:
        P(K >= k), K Poisson-binomial, by adding one event after the other.

    Example:
        >>> tail_probability([0.5, 0.5], 1)
        0.75
    """
    counts = np.ones(1)
    for p in probabilities:
        counts = np.convolve(counts, [1.0 - p, p])
    return float(counts[k:].sum())


def as_observation(trial: TrialRecord, final: Sequence[float] | None) -> Observation:
    """Return a trial as the predictor sees it.

    Args:
        trial: Its record.
        final: Its objective values, larger is better, if it was run to the end.

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
        chance=1.0 if flag is None else flag.chance,
    )


class CalibratedRule:
    """What one process knows of one study.

    Args:
        study: Any study; its objectives are what is predicted.
        best: With one objective, the share of all trials that counts as the best.
        limit: A trial is flagged if its probability of ending there is below this share of the base
            rate, which is what it would be without any signal: the best share, or the front's.
        audit: Share of the flagged trials that is run on.
        n_startup_trials: None is flagged before this many are complete.
        signals: What to learn from, beside the objectives by their names.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        best: float,
        limit: float,
        audit: float,
        n_startup_trials: int,
        signals: Sequence[str] = tuple(SIGNALS),
    ) -> None:
        self._signs = [1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions]
        self._share = best if len(self._signs) == 1 else None
        self._limit, self._audit = limit, audit
        self._n_startup_trials = max(1, n_startup_trials)
        # An objective that no epoch changes, such as a latency, is known from the first step.
        objectives = study.metric_names or [""] * len(self._signs)
        names = dict.fromkeys((*signals, *(name for name in objectives if name)))
        # What is believed of the signals is about accuracy and the like, not about costs.
        priors = [
            PRIOR if sign > 0 and (name not in names or name == "accuracy") else {}
            for name, sign in zip(objectives, self._signs, strict=True)
        ]
        self._predictor = Predictor(tuple(names), best=best, prior=priors)
        self._seen: set[int] = set()
        # Of complete trials: objectives, larger is better, and how many trials each stands for.
        self._finals: list[tuple[float, ...]] = []
        self._weights: list[float] = []
        self._ended: list[float] = []
        self._last_step = 0
        # Of those that were flagged and run on: stated probability, and their place among these.
        self._audited: list[tuple[float, int]] = []
        self._flagged: set[int] = set()
        self._lock = threading.Lock()

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Decide, and record the decision with its reason."""
        found = TrialRecord(trial)
        if not found.steps:
            return False
        step = max(found.steps)
        with self._lock:
            self._update(study)
            flagged = trial.number in self._flagged or found.flag is not None
            decision = self._decide(study, found, step, flagged)
            if decision.runs_on:
                # Optuna's own copy of a running trial does not see what is written here.
                self._flagged.add(trial.number)
        write_decision(Annotated(study, trial), decision)
        return decision.outcome == "pruned"

    def _decide(
        self, study: optuna.Study, found: TrialRecord, step: int, flagged: bool
    ) -> Decision:
        estimate = self._predictor.ask(as_observation(found, None), step)
        n, limit = estimate.n_trials, self._limit * estimate.base
        if n < self._n_startup_trials:
            return Decision(step, math.nan, math.nan, "start-up", 1.0, n, self._share)
        outcome, chance = "kept", 1.0
        if flagged:
            outcome = "under audit"
        # After its last step there is nothing to be saved.
        elif estimate.probability < limit and step < self._last_step:
            if self.suspended():
                outcome = "suspended"
            elif _uniform(study.study_name, found.number) < self._audit:
                outcome, chance = "audited", self._audit
            else:
                outcome = "pruned"
        return Decision(step, estimate.probability, limit, outcome, chance, n, self._share)

    def suspended(self) -> bool:
        """Return whether more audited trials were good than the stated probabilities allow."""
        finals, weights = np.array(self._finals), np.array(self._weights)
        ended, good = np.array(self._ended), 0
        for _, place in self._audited:
            # A place on the front is stated of the trials that had ended before this one, which
            # others may have moved since; a share of all trials stays where it is.
            counts = slice(None) if self._share is not None else ended < ended[place]
            good += is_best(finals[counts], weights[counts], finals[place], self._share)
        stated = [probability for probability, _ in self._audited]
        return good > 0 and tail_probability(stated, good) < _SIGNIFICANT

    def _update(self, study: optuna.Study) -> None:
        """Read the trials that have finished since the last time."""
        finished = study.get_trials(deepcopy=False, states=FINISHED)
        if len(finished) == len(self._seen):
            return
        for trial in finished:
            if trial.number in self._seen:
                continue
            found = TrialRecord(trial)
            self._seen.add(trial.number)
            if found.own:
                self._learn(trial, found)

    def _learn(self, trial: optuna.trial.FrozenTrial, found: TrialRecord) -> None:
        final, flag = None, found.flag
        if found.complete:
            final = tuple(s * v for s, v in zip(self._signs, found.values or (), strict=True))
            # One that is not feasible is no point of a front, and keeps no other from it.
            counts = found.feasible or self._share is not None
            self._finals.append(final if counts else (-math.inf,) * len(final))
            self._weights.append(found.weight)
            ended = trial.datetime_complete
            self._ended.append(math.inf if ended is None else ended.timestamp())
            self._last_step = max(self._last_step, *found.steps, 0)
            if flag is not None and found.feasible:
                self._audited.append((flag.probability, len(self._finals) - 1))
        self._predictor.add(as_observation(found, final))


def _uniform(name: str, number: int) -> float:
    """Return a number in [0, 1) that any process draws alike for a trial."""
    digest: Any = hashlib.blake2b(f"{name}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
