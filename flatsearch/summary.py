"""A study as tables: trials, Pareto front, and what flatness was worth on it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from flatsearch import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

    from flatsearch.record import TrialRecord

__all__ = ["ProxyWorth", "StudySummary", "finite", "summarise"]

# Below this many complete trials a rank correlation says nothing.
_MIN_TRIALS = 8
_RESAMPLES = 200
# The signals that are compared, and the sign that makes larger mean better for all but
# flatness and trace, whose sign is what the table is about.
_SIGNALS = {
    "flatness": ("flatness", 1.0),
    "hessian_trace": ("hessian_trace", 1.0),
    "accuracy": ("accuracy", 1.0),
    "-train_loss": ("train_loss", -1.0),
}


@dataclass(frozen=True)
class ProxyWorth:
    """How well one early signal ranks the candidates by their final validation accuracy.

    Attributes:
        signal: Its name.
        epoch: After how many epochs it was read.
        tau: Kendall's tau-b; positive if larger signal goes with higher final accuracy.
        low: Lower end of the 95% bootstrap interval.
        high: Upper end.
        n_trials: Complete trials it was computed on.
    """

    signal: str
    epoch: int
    tau: float
    low: float
    high: float
    n_trials: int


@dataclass(frozen=True)
class StudySummary:
    """What is to be said about a study.

    Attributes:
        name: The study's name.
        metric_names: One per objective.
        directions: "minimize" or "maximize" per objective.
        settings: What all trials share; None if the study is not ours.
        counts: Trials by state; "REUSED" for those that took over an earlier result, "OVER LIMIT"
            for those that were not trained for their cost.
        trials: All trials.
        front: Numbers of the Pareto-optimal trials, best first in the first objective; of the
            best trial alone if there is one objective.
        worth: What the early signals are worth, empty with too few complete trials.
    """

    name: str
    metric_names: tuple[str, ...]
    directions: tuple[str, ...]
    settings: dict[str, Any] | None
    counts: dict[str, int]
    trials: tuple[TrialRecord, ...]
    front: tuple[int, ...]
    worth: tuple[ProxyWorth, ...]

    def trial(self, number: int) -> TrialRecord:
        """Return a trial by its number."""
        return next(trial for trial in self.trials if trial.number == number)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON types; what is not finite becomes None."""
        trials = [
            {
                "number": trial.number,
                "state": trial.state,
                "values": None
                if trial.values is None
                else dict(zip(self.metric_names, trial.values, strict=True)),
                "params": dict(trial.params),
                "architecture": trial.architecture and dict(trial.architecture.values),
                "metrics": dict(trial.metrics),
                "epochs": [{"epoch": step + 1, **metrics} for step, metrics in trial.steps.items()],
                "recipe": dict(trial.recipe) or None,
                "same_as": trial.same_as,
                "repeats": trial.repeats,
                "failure": trial.failure,
                "model": trial.artifact,
                "seconds": trial.seconds,
            }
            for trial in self.trials
        ]
        fields = {
            "study": self.name,
            "objectives": dict(zip(self.metric_names, self.directions, strict=True)),
            "settings": self.settings,
            "counts": self.counts,
            "pareto_front": list(self.front),
            "proxy_worth": [asdict(worth) for worth in self.worth],
            "trials": trials,
        }
        cleaned: dict[str, Any] = finite(fields)
        return cleaned


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(study: optuna.Study, *, worth: bool = True) -> StudySummary:
    """Read a study.

    Args:
        study: Any Optuna study; one not made by flatsearch has fewer facts.
        worth: Also compute `StudySummary.worth`.

    Returns:
        The summary.
    """
    frozen = study.get_trials(deepcopy=False)
    trials = tuple(record.read_trial(trial) for trial in frozen)
    directions = tuple(direction.name.lower() for direction in study.directions)
    names = study.metric_names or [f"value {i}" for i in range(len(directions))]
    # A result that was taken over is an earlier trial's: neither a point of its own on the front
    # nor another observation.
    complete = [
        t for t in trials if t.values is not None and not t.ended_early and t.same_as is None
    ]
    sign = -1.0 if directions[0] == "maximize" else 1.0
    first = {trial.number: sign * (trial.values or ())[0] for trial in complete}
    if len(directions) > 1:
        best = [trial.number for trial in study.best_trials if trial.number in first]
        best.sort(key=first.__getitem__)
    else:
        good = [trial.number for trial in complete if trial.feasible]
        best = [min(good, key=first.__getitem__)] if good else []
    return StudySummary(
        name=study.study_name,
        metric_names=tuple(names),
        directions=directions,
        settings=record.read_settings(study),
        counts=dict(Counter(map(_outcome, trials))),
        trials=trials,
        front=tuple(best),
        worth=tuple(_worth(complete)) if worth else (),
    )


def _outcome(trial: TrialRecord) -> str:
    if trial.same_as is not None:
        return "REUSED"
    return "OVER LIMIT" if trial.over_limit else trial.state


def _worth(complete: Sequence[TrialRecord]) -> list[ProxyWorth]:
    """Compare the signals after the first epoch, a quarter and half of them, and at the end."""
    complete = [trial for trial in complete if "accuracy" in trial.metrics and trial.steps]
    if len(complete) < _MIN_TRIALS:
        return []
    final = np.array([trial.metrics["accuracy"] for trial in complete])
    last = min(max(trial.steps) for trial in complete)
    steps = sorted({0, (last + 1) // 4, last // 2, last})
    found = []
    for step in steps:
        for name, (metric, sign) in _SIGNALS.items():
            if step == last and metric == "accuracy":
                continue  # the final accuracy itself
            values = [trial.steps.get(step, {}).get(metric, math.nan) for trial in complete]
            found.append(_correlate(name, step + 1, sign * np.array(values), final))
    parameters = [trial.metrics.get("parameters", math.nan) for trial in complete]
    found.append(_correlate("parameters", 0, np.array(parameters), final))
    return [worth for worth in found if worth is not None]


def _correlate(
    signal: str, epoch: int, values: np.ndarray[Any, Any], final: np.ndarray[Any, Any]
) -> ProxyWorth | None:
    """Return Kendall's tau-b with a percentile bootstrap interval; None if undefined."""
    known = np.isfinite(values)
    values, final = values[known], final[known]
    n = len(values)
    if n < _MIN_TRIALS:
        return None
    tau = float(stats.kendalltau(values, final).statistic)
    if math.isnan(tau):
        return None
    generator = np.random.default_rng(0)
    resampled = [
        stats.kendalltau(values[chosen], final[chosen]).statistic
        for chosen in generator.integers(0, n, (_RESAMPLES, n))
    ]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return ProxyWorth(signal, epoch, tau, float(low), float(high), n)
