"""Any pruner on any recorded metric."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from optuna.pruners import BasePruner, MedianPruner

from flatsearch.pruners.arguments import check_direction, check_pruner
from flatsearch.pruners.metric_view import MetricView
from flatsearch.pruners.per_study import PerStudy
from flatsearch.record.trial import TrialRecord

if TYPE_CHECKING:
    import optuna

__all__ = ["MetricPruner"]


class MetricPruner(BasePruner):
    """Let a pruner of Optuna's, or anyone's, decide on a recorded metric.

    In a study with any number of objectives the pruner is shown the metric as if it were the only
    objective, and decides as it would there. Optuna's median and percentile compare the best value
    that a trial has reached so far with the values of complete trials at the same step.

    Pruning on flatness by rank deserves thought: early in training a network that has learnt more
    has a *larger* relative flatness, so that keeping the small values removes the best networks.

    Args:
        metric: The name of the metric, as given to `flatsearch.report`.
        pruner: The pruner that decides, with its settings; `optuna.pruners.MedianPruner()` where
            None.
        direction: The values that are good: "minimize" or "maximize"; where None, those of the
            study's objective of the metric's name.

    Raises:
        ValueError: If the metric has no name, or the direction is unknown.
        TypeError: If `pruner` is not a pruner.

    Example:
        >>> import optuna
        >>> from flatsearch import report, should_prune
        >>> pruner = MetricPruner("loss", optuna.pruners.MedianPruner(2), direction="minimize")
        >>> study = optuna.create_study(directions=["maximize", "minimize"], pruner=pruner)
        >>> for loss in (1.0, 2.0):
        ...     trial = study.ask()
        ...     report(trial, 0, loss=loss)
        ...     _ = study.tell(trial, (0.5, 3.0))
        >>> trial = study.ask()
        >>> report(trial, 0, loss=3.0)
        >>> should_prune(trial)
        True
    """

    def __init__(
        self,
        metric: str,
        pruner: BasePruner | None = None,
        *,
        direction: Literal["minimize", "maximize"] | None = None,
    ) -> None:
        if not isinstance(metric, str) or not metric:
            raise ValueError(f"`metric` must be the name of one metric but got {metric!r}")
        if direction is not None:
            check_direction(metric, direction)
        pruner = MedianPruner() if pruner is None else pruner
        check_pruner(pruner)
        self._metric = metric
        self._pruner = pruner
        self._direction = direction
        self._views: PerStudy[MetricView] = PerStudy()

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Ask the pruner.

        Args:
            study: The study.
            trial: The running trial, which is judged by the values that it has recorded.

        Returns:
            The pruner's decision; False if the trial has no value of the metric yet.

        Raises:
            ValueError: If no direction was given and the metric is not an objective of the study.
        """
        return self._views.get(study, self._view).ask(self._pruner, trial)

    def _view(self, study: optuna.Study) -> MetricView:
        names = study.metric_names or []
        place = names.index(self._metric) if self._metric in names else None
        direction: str | None = self._direction
        if direction is None:
            if place is None:
                raise ValueError(
                    f"metric {self._metric!r} is not an objective of the study"
                    f" ({', '.join(names) or 'which has no names'}); give its `direction`"
                )
            direction = study.directions[place].name
        name = f"{self._metric}:{type(self._pruner).__name__}"
        return MetricView(study, direction, partial(_curve, self._metric), place, name)


def _curve(metric: str, trial: optuna.trial.FrozenTrial) -> dict[int, float]:
    """Return a trial's recorded values of a metric by step, in ascending order."""
    steps = TrialRecord(trial).steps
    return {step: values[metric] for step, values in steps.items() if metric in values}
