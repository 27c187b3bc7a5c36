"""Any pruner on the Pareto rank of several recorded metrics."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from optuna.pruners import BasePruner, MedianPruner

from flatsearch.pareto import ParetoRanks, signs
from flatsearch.pruners.arguments import check_direction, check_pruner
from flatsearch.pruners.metric_view import MetricView
from flatsearch.pruners.per_study import NewlyFinished, PerStudy
from flatsearch.record.trial import FINISHED, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna
    from optuna.trial import FrozenTrial

    from flatsearch.pruners.metric_view import Curve

__all__ = ["ParetoPruner"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


class ParetoPruner(BasePruner):
    """Let a pruner of Optuna's, or anyone's, decide on the Pareto rank of several metrics.

    At each step a trial's rank is the number of finished trials, complete or pruned, that dominate
    it there; see `flatsearch.pareto.ParetoRanks`. The pruner is shown the rank as if it were the
    only objective, to be minimised.

    Args:
        pruner: The pruner that decides, with its settings; `optuna.pruners.MedianPruner()` where
            None.
        metrics: The directions, "minimize" or "maximize", of the metrics that count, by their
            names as given to `flatsearch.report`; where None, the study's named objectives.

    Raises:
        ValueError: If there are no metrics, or a direction is unknown.
        TypeError: If `pruner` is not a pruner.

    Example:
        >>> import optuna
        >>> from flatsearch import report, should_prune
        >>> pruner = ParetoPruner(
        ...     optuna.pruners.MedianPruner(2), metrics={"accuracy": "maximize", "size": "minimize"}
        ... )
        >>> study = optuna.create_study(directions=["maximize", "minimize"], pruner=pruner)
        >>> for accuracy, size in ((0.9, 5.0), (0.8, 4.0)):
        ...     trial = study.ask()
        ...     report(trial, 0, accuracy=accuracy, size=size)
        ...     _ = study.tell(trial, (accuracy, size))
        >>> trial = study.ask()
        >>> report(trial, 0, accuracy=0.7, size=6.0)
        >>> should_prune(trial)
        True
    """

    def __init__(
        self, pruner: BasePruner | None = None, *, metrics: Mapping[str, str] | None = None
    ) -> None:
        if metrics is not None and (not isinstance(metrics, Mapping) or not metrics):
            raise ValueError(
                "`metrics` must be a mapping from at least one name to a direction but got"
                f" {metrics!r}"
            )
        for name, direction in (metrics or {}).items():
            check_direction(name, direction)
        pruner = MedianPruner() if pruner is None else pruner
        check_pruner(pruner)
        self._pruner = pruner
        self._metrics = None if metrics is None else dict(metrics)
        self._ranked: PerStudy[_RankedStudy] = PerStudy()

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Ask the pruner.

        Args:
            study: The study.
            trial: The running trial, which is ranked by the values that it has recorded.

        Returns:
            The pruner's decision; False if the trial has no step with all of the metrics yet.

        Raises:
            ValueError: If no metrics were given and the study's objectives have no names.
        """
        return self._ranked.get(study, self._rank).ask(self._pruner, study, trial)

    def _rank(self, study: optuna.Study) -> _RankedStudy:
        metrics = self._metrics
        if metrics is None:
            if study.metric_names is None:
                raise ValueError(
                    "the study's objectives have no names: call study.set_metric_names, or give"
                    " `metrics`"
                )
            ways = (direction.name for direction in study.directions)
            metrics = dict(zip(study.metric_names, ways, strict=True))
        return _RankedStudy(study, metrics, type(self._pruner).__name__)


class _RankedStudy:
    """The ranks of one study's trials at each step."""

    def __init__(self, study: optuna.Study, metrics: Mapping[str, str], pruner: str) -> None:
        self._names = tuple(metrics)
        self._signs = signs(metrics.values())
        self._finished = NewlyFinished()
        self._points: dict[int, ParetoRanks] = {}
        # By network: one that was parked, and went on in other trials, is one point.
        self._rows: dict[int, dict[int, int]] = {}
        self._curves: dict[int, _RankCurve] = {}
        # The ranks that the last question was about: of finished trials, and of the running one.
        self._ranks: dict[int, _Array] = {}
        self._running: tuple[int, Curve] = (-1, {})
        self._lock = threading.Lock()
        name = f"{','.join(metrics)}:{pruner}"
        self._view = MetricView(study, "minimize", self._curve, name=name)

    def ask(self, pruner: BasePruner, study: optuna.Study, trial: FrozenTrial) -> bool:
        with self._lock:
            for other in self._finished.take(study.get_trials(deepcopy=False)):
                if other.state in FINISHED:
                    self._curve(other)
            self._ranks.clear()
            own = {}
            for step, losses in self._losses(trial).items():
                points = self._points.get(step, ParetoRanks(len(self._names)))
                self._ranks[step], own[step] = points.rank(losses)
            self._running = (trial.number, own)
            return self._view.ask(pruner, trial)

    def _curve(self, trial: FrozenTrial) -> Curve:
        """Return a trial's ranks by step; those of a finished trial follow the last question."""
        if trial.state not in FINISHED:
            number, own = self._running
            return own if trial.number == number else {}
        if trial.number not in self._curves:
            rows = self._rows.setdefault(TrialRecord(trial).begun_by, {})
            for step, losses in self._losses(trial).items():
                if step not in rows:
                    points = self._points.setdefault(step, ParetoRanks(len(self._names)))
                    rows[step] = len(points)
                    points.add(losses)
            self._curves[trial.number] = _RankCurve(rows, self._ranks)
        return self._curves[trial.number]

    def _losses(self, trial: FrozenTrial) -> dict[int, _Array]:
        """Return the metrics, smaller is better, at every step that has all of them."""
        return {
            step: -self._signs * np.array([values[name] for name in self._names])
            for step, values in TrialRecord(trial).steps.items()
            if all(name in values for name in self._names)
        }


class _RankCurve(Mapping[int, float]):
    """A finished trial's ranks by step, looked up when they are asked for."""

    def __init__(self, rows: dict[int, int], ranks: dict[int, _Array]) -> None:
        self._rows = rows
        self._ranks = ranks

    def __getitem__(self, step: int) -> float:
        if step not in self:
            raise KeyError(step)
        return float(self._ranks[step][self._rows[step]])

    def __contains__(self, step: object) -> bool:
        # A trial that finished after the ranks were worked out has none.
        ranks = self._ranks.get(step)  # type: ignore[call-overload]
        return ranks is not None and self._rows.get(step, len(ranks)) < len(ranks)  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[int]:
        return (step for step in self._rows if step in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __deepcopy__(self, memo: object) -> dict[int, float]:
        del memo
        return dict(self)
