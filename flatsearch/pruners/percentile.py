"""A metric of all finished trials, for the percentile rule."""

from __future__ import annotations

import bisect
import math
import threading
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from flatsearch.pruners.metric_view import metric_curve
from flatsearch.record.trial import FINISHED, TrialRecord

if TYPE_CHECKING:
    import optuna


class FinishedMetric:
    """A metric of the finished trials of a study, sorted at each step; every trial is read once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: set[int] = set()
        self._at_step: dict[int, list[float]] = {}
        self.complete = 0

    def update(self, study: optuna.Study, metric: str | None) -> None:
        """Read the trials that have finished since the last time."""
        finished = study.get_trials(deepcopy=False, states=FINISHED)
        with self._lock:
            # A finished trial stays one: where there are as many as before, none is new.
            if len(finished) == len(self._seen):
                return
            for trial in finished:
                if trial.number in self._seen:
                    continue
                self._seen.add(trial.number)
                duplicate = TrialRecord(trial).duplicate
                self.complete += trial.state == TrialState.COMPLETE and not duplicate
                for step, value in metric_curve(trial, metric).items():
                    if not math.isnan(value):
                        bisect.insort(self._at_step.setdefault(step, []), value)

    def at(self, step: int) -> list[float]:
        """Return the values at a step in ascending order."""
        return self._at_step.get(step, [])
