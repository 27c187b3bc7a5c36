"""A study as Optuna's own pruners want it: one objective, reported step by step.

`MetricView` shows any study as a single-objective one whose intermediate values are a recorded
metric. This is the one module that uses a part of Optuna that is not public, the attribute
`_storage` of a study: pruners are given a study, some of them (successive halving) write to its
storage, and there is no public way to wrap it. What is made of it is a public `BaseStorage` and a
study from `optuna.load_study`.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from flatsearch.record.trial import FINISHED, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from optuna.trial import FrozenTrial

__all__ = ["Annotated", "Curve", "MetricView", "ParetoRanks", "metric_curve"]

# A metric by step.
Curve: TypeAlias = dict[int, float]
_Array: TypeAlias = np.ndarray[Any, Any]


def metric_curve(trial: FrozenTrial, metric: str | None) -> Curve:
    """Return a trial's recorded values of a metric by step, in ascending order.

    Args:
        trial: The trial.
        metric: Its name; None for what was reported to Optuna itself.

    Returns:
        Values by step.
    """
    if metric is None:
        return dict(sorted(trial.intermediate_values.items()))
    steps = TrialRecord(trial).steps
    return {step: values[metric] for step, values in steps.items() if metric in values}


class Annotated:
    """A running trial that a pruner may write to; pruners are given a copy.

    Args:
        study: The trial's study.
        trial: The copy.
    """

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._storage, self._id = study._storage, trial._trial_id

    def set_user_attr(self, key: str, value: Any) -> None:
        """Store an attribute of the trial."""
        self._storage.set_trial_user_attr(self._id, key, value)


class ParetoRanks:
    """Points at one step, ranked by how many others dominate them (Fonseca and Fleming 1993).

    Adding a point and ranking one take time in proportion to the number of points.

    Args:
        n_metrics: Length of a point.

    Example:
        >>> ranks = ParetoRanks(2)
        >>> for losses in ((1.0, 3.0), (3.0, 1.0), (4.0, 4.0)):
        ...     ranks.add(np.array(losses))
        >>> others, own = ranks.rank(np.array([5.0, 5.0]))
        >>> others.tolist(), own
        ([0.0, 0.0, 2.0], 3.0)
    """

    def __init__(self, n_metrics: int) -> None:
        self._points = np.empty((0, n_metrics))
        self._dominators = np.empty(0)

    def __len__(self) -> int:
        return len(self._points)

    def add(self, losses: _Array) -> None:
        """Add a point.

        Args:
            losses: Smaller is better; NaN is worst.
        """
        losses = _comparable(losses)
        dominated, dominating = self._compare(losses)
        self._dominators = np.append(self._dominators + dominated, dominating.sum())
        self._points = np.vstack([self._points, losses])

    def rank(self, losses: _Array) -> tuple[_Array, float]:
        """Rank a point among the others.

        Where others have as many dominators, the point that dominates the larger volume (down
        to a reference 10% beyond the worst of them) comes first, by less than 1.

        Args:
            losses: The point, which is not added.

        Returns:
            Ranks of the others, 0 for those on the front, and its own; -1 if it is on the front.
        """
        losses = _comparable(losses)
        dominated, dominating = self._compare(losses)
        others, own = self._dominators + dominated, float(dominating.sum())
        if own == 0:
            return others, -1.0
        tied = others == own
        points = np.vstack([self._points[tied], losses])
        if tied.any() and np.isfinite(points).all():
            worst = points.max(0)
            reference = worst + 0.1 * np.abs(worst)
            volume = (reference - points).prod(1)
            later = 0.5 * (1 - volume / volume.max()) if volume.max() > 0 else 0 * volume
            others[tied] += later[:-1]
            own += float(later[-1])
        return others, own

    def _compare(self, losses: _Array) -> tuple[_Array, _Array]:
        """Return which points this one dominates, and which dominate it."""
        less: _Array = self._points < losses
        more: _Array = self._points > losses
        lower, higher = np.asarray(less.any(1)), np.asarray(more.any(1))
        return higher & ~lower, lower & ~higher


def _comparable(losses: _Array) -> _Array:
    return np.where(np.isnan(losses), np.inf, losses)


class _ViewStorage(BaseStorage):
    """A storage whose trials are shown through a function; all else is the storage's own."""

    def __init__(
        self,
        storage: BaseStorage,
        direction: StudyDirection,
        show: Callable[[Sequence[FrozenTrial]], list[FrozenTrial]],
    ) -> None:
        self._storage = storage
        self._direction = direction
        self._show = show

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        del study_id
        return [self._direction]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._show([self._storage.get_trial(trial_id)])[0]

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = self._storage.get_all_trials(study_id, deepcopy=False, states=states)
        shown = self._show(trials)
        return copy.deepcopy(shown) if deepcopy else shown

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        complete = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            raise ValueError("No trials are completed yet.")
        sign = -1.0 if self._direction == StudyDirection.MAXIMIZE else 1.0

        def final(trial: FrozenTrial) -> float:
            # Ranks change with every trial, so a ranked trial has no value of its own.
            curve = trial.intermediate_values
            value = trial.value if trial.value is not None else curve.get(max(curve, default=-1))
            return math.inf if value is None else sign * value

        return min(complete, key=final)


def _forward(name: str) -> Callable[..., Any]:
    def method(self: _ViewStorage, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._storage, name)(*args, **kwargs)

    return method


# Everything else that a storage has to have is forwarded, in a class made for the purpose.
_ForwardingStorage = type(
    "_ForwardingStorage",
    (_ViewStorage,),
    {name: _forward(name) for name in _ViewStorage.__abstractmethods__},
)


class _RankCurve(Mapping[int, float]):
    """A finished trial's ranks by step, looked up when they are asked for."""

    def __init__(self, rows: dict[int, int], ranks: dict[int, _Array]) -> None:
        self._rows = rows
        self._ranks = ranks

    def __getitem__(self, step: int) -> float:
        ranks, row = self._ranks[step], self._rows[step]
        if row >= len(ranks):  # finished after the ranks were worked out
            raise KeyError(step)
        return float(ranks[row])

    def __contains__(self, step: object) -> bool:
        ranks = self._ranks.get(step)  # type: ignore[call-overload]
        return ranks is not None and self._rows.get(step, len(ranks)) < len(ranks)  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[int]:
        return (step for step in self._rows if step in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __deepcopy__(self, memo: object) -> dict[int, float]:
        del memo
        return dict(self)


class MetricView:
    """A study, shown with one objective whose intermediate values are a recorded metric.

    Finished trials are read once. The value of a complete trial is its objective value where the
    metric is an objective, else the last of its curve.

    Args:
        study: Any study.
        direction: "minimize" or "maximize".
        metric: The metric's name, None for what was reported to Optuna, or a mapping from several
            names to directions: trials are then ranked at each step by Pareto dominance, see
            `ParetoRanks`, and `direction` is "minimize".
    """

    def __init__(
        self, study: optuna.Study, direction: str, metric: str | Mapping[str, str] | None
    ) -> None:
        # No reference to the study: the pruner keeps a view as long as the study lives.
        self._single = len(study.directions) == 1
        self._metric = metric
        self._converted: dict[int, FrozenTrial] = {}
        self._lock = threading.RLock()
        self._points: dict[int, ParetoRanks] = {}
        self._ranks: dict[int, _Array] = {}
        self._own: Curve = {}
        names = study.metric_names or []
        self._index = names.index(metric) if isinstance(metric, str) and metric in names else None
        which = StudyDirection.MAXIMIZE if direction == "maximize" else StudyDirection.MINIMIZE
        self._view = optuna.load_study(
            study_name=study.study_name,
            storage=_ForwardingStorage(study._storage, which, self._show),
            sampler=study.sampler,
            pruner=study.pruner,
        )

    def ask(self, rule: optuna.pruners.BasePruner, trial: FrozenTrial) -> bool:
        """Return whether a pruner, shown the metric alone, prunes a running trial.

        Args:
            rule: The pruner.
            trial: The running trial, of the real study.

        Returns:
            Its decision; False if the trial has no value of the metric yet.
        """
        with self._lock:
            if isinstance(self._metric, Mapping):
                self._rank(trial, self._metric)
            (shown,) = self._show([trial])
            return bool(shown.intermediate_values and rule.prune(self._view, shown))

    def _show(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        known = self._converted
        return [known.get(trial.number) or self._convert(trial) for trial in trials]

    def _convert(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial that is not known yet as it is shown, and know it if it is finished."""
        finished = trial.state.is_finished()
        shown = copy.copy(trial)
        curve: Any
        if not isinstance(self._metric, Mapping):
            curve = metric_curve(trial, self._metric)
        else:
            curve = self._rank_curve(trial, self._metric) if finished else self._own
        shown.intermediate_values = curve
        shown.values = self._value(trial, curve)
        if finished:
            self._converted[trial.number] = shown
        return shown

    def _value(self, trial: FrozenTrial, curve: Curve) -> list[float] | None:
        if trial.state not in FINISHED:
            return None
        if trial.state == TrialState.COMPLETE and self._index is not None and trial.values:
            return [trial.values[self._index]]
        if self._single and self._metric is None:
            return trial.values
        last = curve[max(curve)] if curve else math.nan
        return None if math.isnan(last) else [last]

    def _rank_curve(self, trial: FrozenTrial, metric: Mapping[str, str]) -> _RankCurve:
        """Add a finished trial's points."""
        rows = {}
        for step, losses in _losses(trial, metric).items():
            points = self._points.setdefault(step, ParetoRanks(len(metric)))
            rows[step] = len(points)
            points.add(losses)
        return _RankCurve(rows, self._ranks)

    def _rank(self, trial: FrozenTrial, metric: Mapping[str, str]) -> None:
        """Rank the finished trials and this one at every step this one has reached."""
        self._view.get_trials(deepcopy=False, states=FINISHED)  # adds those that are new
        self._ranks.clear()
        self._own = {}
        for step, losses in _losses(trial, metric).items():
            points = self._points.get(step, ParetoRanks(len(metric)))
            self._ranks[step], self._own[step] = points.rank(losses)


def _losses(trial: FrozenTrial, metric: Mapping[str, str]) -> dict[int, _Array]:
    """Return the metrics, turned so that smaller is better, at every step that has all of them."""
    return {
        step: np.array([values[n] * (-1 if d == "maximize" else 1) for n, d in metric.items()])
        for step, values in TrialRecord(trial).steps.items()
        if all(name in values for name in metric)
    }
