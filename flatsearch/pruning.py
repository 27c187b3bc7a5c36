"""Pruning on flatness, in single- and multi-objective studies alike.

Optuna refuses `trial.report` and `trial.should_prune` in a study with several objectives.
`report` and `should_prune` here work in both kinds: the metrics go to the trial's record, and
the study's own pruner decides.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from optuna.pruners import BasePruner
from optuna.trial import TrialState, create_trial

from flatsearch.errors import unknown_name
from flatsearch.record import FINISHED, read_step, read_steps, write_step

if TYPE_CHECKING:
    import optuna

__all__ = ["FlatnessPruner", "report", "should_prune"]

_RULES = ("percentile",)
_DIRECTIONS = ("minimize", "maximize")


def report(trial: optuna.Trial, step: int, **metrics: float) -> None:
    """Record a step's metrics, in a study with any number of objectives.

    In a single-objective study whose metric is named (`study.set_metric_names`) and among the
    given ones, that metric is also reported to Optuna, so that Optuna's own pruners see it.

    Args:
        trial: The running trial.
        step: 0 for the first, usually the epoch.
        **metrics: Numbers by name, for example `accuracy=0.9, flatness=3.2`.

    Raises:
        ValueError: If the step is negative or there are no metrics.
        TypeError: If a metric is not a number.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(directions=["maximize", "minimize"])
        >>> trial = study.ask()
        >>> report(trial, 0, accuracy=0.9, flatness=3.2)
        >>> trial.user_attrs
        {'flatsearch:step:0': {'accuracy': 0.9, 'flatness': 3.2}}
    """
    write_step(trial, step, metrics)
    names = trial.study.metric_names
    if len(trial.study.directions) == 1 and names is not None and names[0] in metrics:
        trial.report(float(metrics[names[0]]), step)


def should_prune(trial: optuna.Trial) -> bool:
    """Return whether the study's pruner would stop this trial now.

    Unlike `trial.should_prune()` this works in a multi-objective study, with a pruner that
    reads the metrics from the record, such as `FlatnessPruner`.

    Args:
        trial: The running trial.

    Returns:
        True if the trial should raise `optuna.TrialPruned`.
    """
    study = trial.study
    if len(study.directions) == 1:
        return bool(trial.should_prune())
    frozen = create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
    )
    frozen.number = trial.number
    return bool(study.pruner.prune(study, frozen))


class FlatnessPruner(BasePruner):
    """Prune on a recorded metric, by default relative flatness.

    A trial is pruned if its metric at the current step is outside the best `percentile` per
    cent of the values that finished (complete or pruned) trials had at the same step.

    Which values are good is a choice the data have to make, not the name. Early in training a
    network that has learnt more has a *larger* relative-flatness value; on the recordings made
    for this project the value after one epoch goes up with the final accuracy, so pruning the
    sharpest networks early removes the best ones. The default direction is therefore "maximize":
    prune the smallest values, the networks that have learnt least. It has not been shown to beat
    pruning on validation accuracy, and in a study that minimises flatness it works against that
    objective; use it knowingly.

    Args:
        n_startup_trials: No pruning before this many trials are complete.
        n_warmup_steps: No pruning at steps below this one; the first step is 0.
        interval_steps: Steps between decisions, counted from the warm-up.
        n_min_trials: No pruning at a step that fewer finished trials have reached.
        metric: Name of the recorded metric.
        direction: "maximize" if large values are kept, "minimize" if small ones are.
        rule: "percentile", the only one so far.
        percentile: Per cent of the trials that are kept.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> pruner = FlatnessPruner(n_startup_trials=2, direction="minimize", percentile=50.0)
        >>> import optuna
        >>> study = optuna.create_study(directions=["maximize", "minimize"], pruner=pruner)
        >>> for flatness in (1.0, 2.0):
        ...     trial = study.ask()
        ...     report(trial, 0, flatness=flatness)
        ...     _ = study.tell(trial, (0.5, flatness))
        >>> trial = study.ask()
        >>> report(trial, 0, flatness=3.0)
        >>> should_prune(trial)
        True
    """

    def __init__(
        self,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        *,
        n_min_trials: int = 1,
        metric: str = "flatness",
        direction: Literal["minimize", "maximize"] = "maximize",
        rule: Literal["percentile"] = "percentile",
        percentile: float = 75.0,
    ) -> None:
        for name, value, least in (
            ("n_startup_trials", n_startup_trials, 0),
            ("n_warmup_steps", n_warmup_steps, 0),
            ("interval_steps", interval_steps, 1),
            ("n_min_trials", n_min_trials, 1),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least} but got {value}")
        if direction not in _DIRECTIONS:
            raise ValueError(unknown_name("direction", direction, _DIRECTIONS))
        if rule not in _RULES:
            raise ValueError(unknown_name("rule", rule, _RULES))
        if not 0 <= percentile <= 100:
            raise ValueError(f"`percentile` must be between 0 and 100 but got {percentile}")
        self._n_startup_trials = n_startup_trials
        self._n_warmup_steps = n_warmup_steps
        self._interval_steps = interval_steps
        self._n_min_trials = n_min_trials
        self._metric = metric
        self._sign = 1.0 if direction == "maximize" else -1.0
        self._percentile = percentile

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Decide on a trial from its record and the finished trials'.

        Args:
            study: The study.
            trial: The running trial; its last recorded step is judged.

        Returns:
            True if the trial should be pruned. A NaN is always pruned, after the warm-up.
        """
        steps = {
            step: metrics[self._metric]
            for step, metrics in read_steps(trial.user_attrs).items()
            if self._metric in metrics
        }
        if not steps or not self._is_due(sorted(steps)):
            return False
        step = max(steps)
        finished = study.get_trials(deepcopy=False, states=FINISHED)
        complete = sum(other.state == TrialState.COMPLETE for other in finished)
        if complete == 0 or complete < self._n_startup_trials:
            return False
        if math.isnan(steps[step]):
            return True
        at_step = (read_step(other.user_attrs, step) for other in finished)
        others = [
            metrics[self._metric] for metrics in at_step if metrics and self._metric in metrics
        ]
        others = [value for value in others if not math.isnan(value)]
        if len(others) < self._n_min_trials:
            return False
        # Order statistics, not interpolation: infinite values must not turn into NaN.
        limit = np.percentile(
            self._sign * np.asarray(others), 100.0 - self._percentile, method="lower"
        )
        return bool(self._sign * steps[step] < limit)

    def _is_due(self, steps: list[int]) -> bool:
        """Return whether the last step is the first one reported since the last decision point."""
        step = steps[-1]
        if step < self._n_warmup_steps:
            return False
        point = step - (step - self._n_warmup_steps) % self._interval_steps
        return len(steps) == 1 or steps[-2] < point
