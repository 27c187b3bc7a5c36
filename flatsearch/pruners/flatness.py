"""Pruning on flatness, in single- and multi-objective studies alike.

Optuna refuses `trial.report` and `trial.should_prune` in a study with several objectives.
`report` and `should_prune` here work in both kinds: the metrics go to the trial's record, and
the study's own pruner decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from optuna.pruners import BasePruner, PercentilePruner

from flatsearch.errors import unknown_name
from flatsearch.pruners.calibrated import CalibratedRule
from flatsearch.pruners.metric_view import MetricView, metric_curve
from flatsearch.pruners.percentile import FinishedMetric
from flatsearch.record.trial import TrialRecord
from flatsearch.signals.table import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

__all__ = ["PARETO_RANK", "FlatnessPruner"]

PARETO_RANK = "pareto_rank"
_RULES = ("percentile", "calibrated")
_DIRECTIONS = ("minimize", "maximize")
# Default of the settings of "calibrated"; `scripts/experiments/replay.py` has what they lead to.
_SHARES = {"best": 0.1, "limit": 0.5, "audit": 0.1}
_PERCENTILE = 75.0


class FlatnessPruner(BasePruner):
    """Prune trials by what they have recorded, with any number of objectives.

    With the rule "calibrated", the default, a trial is pruned if the probability that it ends among
    the best is below `limit` times what it is for any trial: predicted from all recorded signals,
    flatness among them, with weights and signs learnt from the study's own finished trials; see
    `flatsearch.calibrated`. A share of the trials under the limit is audited, and pruning suspends
    itself while that says it hurts.

    With the rule "percentile" a trial is pruned if its metric at the current step is outside the
    best `percentile` per cent of the values that finished (complete or pruned) trials had at the
    same step. With one of Optuna's pruners (or anyone's) as the rule, that pruner is shown the
    study as if the metric were its only objective and the recorded values had been reported.

    Which values of flatness are good is for the data to say, not the name: early in training a
    network that has learnt more has a *larger* relative-flatness value, and pruning the sharpest
    networks by rank removes the best ones. In rules that look at flatness alone its direction is
    therefore "maximize" where none is given. On the recordings made for this project both
    directions do worse than the calibrated rule.

    Args:
        n_startup_trials: No pruning before this many trials are complete.
        n_warmup_steps: No pruning at steps below this one; the first step is 0.
        interval_steps: Steps between decisions, counted from the warm-up.
        n_min_trials: No pruning at a step that fewer finished trials have reached.
        metric: Name of the recorded metric. "pareto_rank" ranks trials at each step by how many
            dominate them in the study's named objectives; a mapping from names to directions does
            so for any metrics. None takes what was reported to Optuna, with `trial.report`.
        direction: "maximize" if large values are kept, "minimize" if small ones are. Where None,
            "maximize" for flatness, and the study's direction for one of its objectives.
        rule: "calibrated", which predicts the study's objectives, so that `metric` and `direction`
            stay at their defaults; "percentile"; or a pruner, for example
            `optuna.pruners.MedianPruner()`, which has its own settings: those above stay at their
            defaults. Where None, "calibrated", or "percentile" if a metric, a direction or a
            percentile is given.
        percentile: Per cent of the trials that are kept by the rule "percentile".
        best: For "calibrated" with one objective: the share of all trials that is the best; with
            several the Pareto front is.
        limit: For "calibrated": a trial is pruned if its probability of getting there is below this
            share of the base rate, the probability without any signal (`best`, or the front's
            share of all trials), so that signals that say nothing prune little.
        audit: For "calibrated": the share of trials under the limit that is run on all the same.
        signals: For "calibrated": names of the metrics to learn from; those that a trial does not
            have count for nothing.

    Raises:
        ValueError: If an argument is out of range, or does not go with the rule.

    Example:
        >>> pruner = FlatnessPruner(n_startup_trials=2, direction="minimize", percentile=50.0)
        >>> import optuna
        >>> from flatsearch import report, should_prune
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
        metric: str | Mapping[str, str] | None = "flatness",
        direction: Literal["minimize", "maximize"] | None = None,
        rule: Literal["percentile", "calibrated"] | BasePruner | None = None,
        percentile: float = _PERCENTILE,
        best: float = _SHARES["best"],
        limit: float = _SHARES["limit"],
        audit: float = _SHARES["audit"],
        signals: Sequence[str] = tuple(SIGNALS),
    ) -> None:
        if rule is None:
            plain = metric != "flatness" or direction is not None or percentile != _PERCENTILE
            rule = "percentile" if plain or n_min_trials != 1 else "calibrated"
        own = {
            "n_startup_trials": (n_startup_trials, 0, 5),
            "n_warmup_steps": (n_warmup_steps, 0, 0),
            "interval_steps": (interval_steps, 1, 1),
            "n_min_trials": (n_min_trials, 1, 1),
        }
        for name, (value, least, default) in own.items():
            if value < least:
                raise ValueError(f"`{name}` must be at least {least} but got {value}")
            if isinstance(rule, BasePruner) and value != default:
                raise ValueError(f"`{name}` is for the rule 'percentile'; give it to the pruner")
        if not 0 <= percentile <= 100:
            raise ValueError(f"`percentile` must be between 0 and 100 but got {percentile}")
        shares = {"best": best, "limit": limit, "audit": audit}
        for name, share in shares.items():
            if not 0 < share < 1:
                raise ValueError(f"`{name}` must be between 0 and 1 but got {share}")
            if rule != "calibrated" and share != _SHARES[name]:
                raise ValueError(f"`{name}` is for the rule 'calibrated'")
        if rule == "calibrated" and (metric != "flatness" or direction or n_min_trials != 1):
            raise ValueError(
                "the rule 'calibrated' predicts the study's objectives: leave `metric`,"
                " `direction` and `n_min_trials` at their defaults"
            )
        if not isinstance(rule, BasePruner) and rule not in _RULES:
            raise ValueError(
                f"{unknown_name('rule', str(rule), _RULES)}, or a pruner such as"
                " optuna.pruners.MedianPruner()"
            )
        metric = _checked_metric(metric, direction)
        ranks = isinstance(metric, Mapping) or metric == PARETO_RANK
        self._shares = shares
        self._signals = tuple(signals)
        self._n_startup_trials = n_startup_trials
        self._n_warmup_steps = n_warmup_steps
        self._interval_steps = interval_steps
        self._n_min_trials = n_min_trials
        self._metric = metric
        self._ranks = ranks
        self._direction = direction
        self._rule = rule
        self._percentile = percentile
        self._forget()

    def _forget(self) -> None:
        self._finished: WeakKeyDictionary[optuna.Study, FinishedMetric] = WeakKeyDictionary()
        self._views: WeakKeyDictionary[optuna.Study, MetricView] = WeakKeyDictionary()
        self._rules: WeakKeyDictionary[optuna.Study, CalibratedRule] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, object]:
        # What has been read belongs to this process.
        ours = {"_finished", "_views", "_rules"}
        return {k: v for k, v in self.__dict__.items() if k not in ours}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Decide on a trial from its record and the finished trials'.

        Args:
            study: The study.
            trial: The running trial; its last recorded step is judged.

        Returns:
            True if the trial should be pruned. The rule "percentile" always prunes a NaN, after
            the warm-up.

        Raises:
            ValueError: If the metric's direction is not known.
        """
        if self._rule == "calibrated":
            return self._ask_calibrated(study, trial)
        metric = self._metric
        # A mapping is ranked; the type checker does not know.
        if self._ranks or isinstance(metric, Mapping) or isinstance(self._rule, BasePruner):
            return self._ask_view(study, trial)
        steps = metric_curve(trial, metric)
        if not steps or not self._is_due(list(steps)):
            return False
        step = max(steps)
        sign = 1.0 if self._direction_in(study) == "maximize" else -1.0
        finished = self._finished.setdefault(study, FinishedMetric())
        finished.update(study, metric)
        if finished.complete < max(1, self._n_startup_trials):
            return False
        if math.isnan(steps[step]):
            return True
        others = finished.at(step)
        if len(others) < self._n_min_trials or not others:
            return False
        # An order statistic, not an interpolation: infinite values must not turn into NaN.
        below = (1.0 - self._percentile / 100.0) * (len(others) - 1)
        if sign > 0:
            return steps[step] < others[math.floor(below)]
        return steps[step] > others[len(others) - 1 - math.floor(below)]

    def _ask_calibrated(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        steps = list(TrialRecord(trial).steps)
        if not steps or not self._is_due(steps):
            return False
        if study not in self._rules:
            self._rules[study] = CalibratedRule(
                study,
                n_startup_trials=self._n_startup_trials,
                signals=self._signals,
                **self._shares,
            )
        return self._rules[study].prune(study, trial)

    def _ask_view(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        view = self._views.get(study)
        if view is None:
            metric = self._metric
            if metric == PARETO_RANK:
                if study.metric_names is None:
                    raise ValueError(
                        "the metric 'pareto_rank' needs names: call study.set_metric_names, or give"
                        " `metric` a mapping from names to directions"
                    )
                ways = (direction.name.lower() for direction in study.directions)
                metric = dict(zip(study.metric_names, ways, strict=True))
            view = MetricView(study, self._direction_in(study), metric)
            self._views[study] = view
        return view.ask(self._inner(), trial)

    def _inner(self) -> BasePruner:
        if isinstance(self._rule, BasePruner):
            return self._rule
        return PercentilePruner(
            self._percentile,
            n_startup_trials=self._n_startup_trials,
            n_warmup_steps=self._n_warmup_steps,
            interval_steps=self._interval_steps,
            n_min_trials=self._n_min_trials,
        )

    def _direction_in(self, study: optuna.Study) -> str:
        """Return which values of the metric are kept in a study."""
        if self._direction is not None:
            return self._direction
        if self._ranks:
            return "minimize"
        if self._metric == "flatness":
            return "maximize"
        names = study.metric_names or []
        if self._metric in names:
            return str(study.directions[names.index(self._metric)].name.lower())
        if self._metric is None and len(study.directions) == 1:
            return str(study.direction.name.lower())
        raise ValueError(
            f"metric {self._metric!r} is not an objective of the study"
            f" ({', '.join(names) or 'which has no names'}); give its `direction`"
        )

    def _is_due(self, steps: list[int]) -> bool:
        """Return whether the last step is the first one reported since the last decision point."""
        step = steps[-1]
        if step < self._n_warmup_steps:
            return False
        point = step - (step - self._n_warmup_steps) % self._interval_steps
        return len(steps) == 1 or steps[-2] < point


def _checked_metric(
    metric: str | Mapping[str, str] | None, direction: str | None
) -> str | Mapping[str, str] | None:
    """Return a metric as it is kept, or refuse it or its direction."""
    if direction is not None and direction not in _DIRECTIONS:
        raise ValueError(unknown_name("direction", direction, _DIRECTIONS))
    if isinstance(metric, Mapping):
        if not metric:
            raise ValueError("`metric` must name at least one metric")
        for name, way in metric.items():
            if way not in _DIRECTIONS:
                raise ValueError(f"metric {name!r}: {unknown_name('direction', way, _DIRECTIONS)}")
        metric = dict(metric)
    if direction == "maximize" and (isinstance(metric, Mapping) or metric == PARETO_RANK):
        raise ValueError("a small Pareto rank is good: `direction` cannot be 'maximize'")
    return metric
