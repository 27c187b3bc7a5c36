"""What early signals, and pruning by them, were worth on a study: correlations with intervals.

Trials that were pruned have no final accuracy, so those that have one are a selection. Under the
rule "calibrated" a known share of the trials that would have been pruned was run on: each stands
for `1 / chance` trials here, which makes the figures those of all trials (Horvitz and Thompson
1952).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import stats

from flatsearch.calibrated import FLATNESS, PRIOR, SIGNALS, as_observation
from flatsearch.calibration import Prior, Reference, leave_one_out
from flatsearch.predictor import is_best
from flatsearch.record import AUDITED, first_flag, stands_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record import TrialRecord

__all__ = [
    "FlatnessGain", "ProxyWorth", "PruningWorth", "flatness_gain", "proxy_worth", "pruning_worth",
    "tau_with_interval", "weighted_taus",
]  # fmt: skip

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

# Below this many complete trials a rank correlation says nothing, nor a regression.
_MIN_TRIALS = 8
_MIN_TRIALS_GAIN = 16
_RESAMPLES = 200
# Pairs are compared all with all: of more trials a fixed random part is taken.
_MOST_TRIALS = 2000
# The signals that are compared, and the sign that makes larger mean better for all but
# flatness and trace, whose sign is what the table is about.
_SIGNALS = {
    "flatness": ("flatness", 1.0),
    "hessian_trace": ("hessian_trace", 1.0),
    "flatness_all": ("flatness_all", 1.0),
    "hessian_trace_all": ("hessian_trace_all", 1.0),
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
class FlatnessGain:
    """What flatness adds to all other early signals together.

    Attributes:
        epoch: After how many epochs the signals were read.
        tau: Kendall's tau-b of the prediction from all signals with the final validation accuracy;
            every trial is predicted from the others.
        tau_without: The same without flatness and trace.
        gain: Their difference.
        low: Lower end of its 95% bootstrap interval.
        high: Upper end.
        n_trials: Complete trials it was computed on.
    """

    epoch: int
    tau: float
    tau_without: float
    gain: float
    low: float
    high: float
    n_trials: int


@dataclass(frozen=True)
class PruningWorth:
    """What pruning saved, and what it may have cost.

    Attributes:
        pruned: Trials that were pruned.
        epochs_spent: By all finished trials.
        epochs_saved: That the pruned trials did not train.
        audited: Trials that would have been pruned, were run to the end, and are finished.
        wrong: Of these, how many ended on the front, or in the best share.
        low: Lower end of the 95% interval (Clopper and Pearson 1934) of the share that is wrong.
        high: Upper end.
        suspended: Trials that were run on because the audit said that pruning hurts.
        best: The share that counts as the best; None where it is the front.
    """

    pruned: int
    epochs_spent: int
    epochs_saved: int
    audited: int
    wrong: int
    low: float
    high: float
    suspended: int
    best: float | None


def weighted_taus(x: _Array, y: _Array, weights: _Array) -> _Array:
    """Return Kendall's tau-b under several weightings of the trials.

        tau = sum_ij w_i w_j sgn(x_i - x_j) sgn(y_i - y_j)
              / sqrt( sum_ij w_i w_j [x_i != x_j]  sum_ij w_i w_j [y_i != y_j] )

    Args:
        x: (n,).
        y: (n,).
        weights: (m, n).

    Returns:
        (m,); NaN where all x or all y are the same.

    Example:
        >>> x, y = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
        >>> weighted_taus(x, y, np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])).round(3).tolist()
        [0.333, 1.0]
    """
    dx, dy = (np.sign(v[:, None] - v).astype(np.float32) for v in (x, y))
    w = weights.astype(np.float32)

    def total(pairs: Any) -> _Array:
        summed: _Array = np.einsum("mn,mn->m", w @ pairs, w, dtype=np.float64)
        return summed

    with np.errstate(invalid="ignore", divide="ignore"):
        taus: _Array = total(dx * dy) / np.sqrt(total(np.abs(dx)) * total(np.abs(dy)))
    return taus


def _weights(trials: Sequence[TrialRecord]) -> _Array:
    """Return the trials' weights, then those of resamples of the trials, (1 + resamples, n)."""
    own = np.array([stands_for(trial.decisions) for trial in trials])
    n = len(trials)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1.0 / n), _RESAMPLES)
    return np.vstack([own, counts * own])


def _some(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that have what is compared, or a random part if there are very many."""
    trials = [trial for trial in trials if "accuracy" in trial.metrics and trial.steps]
    if len(trials) > _MOST_TRIALS:
        chosen = np.random.default_rng(0).choice(len(trials), _MOST_TRIALS, replace=False)
        trials = [trials[i] for i in sorted(chosen)]
    return trials


def _moments(trials: Sequence[TrialRecord]) -> list[int]:
    """Return the first step, those after a quarter and half of the epochs, and the last."""
    last = min(max(trial.steps) for trial in trials)
    return sorted({0, (last + 1) // 4, last // 2, last})


def proxy_worth(complete: Sequence[TrialRecord]) -> list[ProxyWorth]:
    """Compare the signals after the first epoch, a quarter and half of them, and at the end.

    Args:
        complete: Trials that were trained to the end.

    Returns:
        One per signal and epoch where it is defined; nothing with too few trials.
    """
    complete = _some(complete)
    if len(complete) < _MIN_TRIALS:
        return []
    final = np.array([trial.metrics["accuracy"] for trial in complete])
    weights = _weights(complete)
    steps = _moments(complete)
    found = []
    for step in steps:
        for name, (metric, sign) in _SIGNALS.items():
            if step == steps[-1] and metric == "accuracy":
                continue  # the final accuracy itself
            values = [trial.steps.get(step, {}).get(metric, math.nan) for trial in complete]
            found.append(_correlate(name, step + 1, sign * np.array(values), final, weights))
    parameters = [trial.metrics.get("parameters", math.nan) for trial in complete]
    found.append(_correlate("parameters", 0, np.array(parameters), final, weights))
    return [worth for worth in found if worth is not None]


def _correlate(
    signal: str, epoch: int, values: _Array, final: _Array, weights: _Array
) -> ProxyWorth | None:
    """Return tau with a percentile bootstrap interval; None if undefined."""
    known = np.isfinite(values)
    if (n := int(known.sum())) < _MIN_TRIALS:
        return None
    found = _with_interval(values[known], final[known], weights[:, known])
    return None if found is None else ProxyWorth(signal, epoch, *found, n)


def _with_interval(x: _Array, y: _Array, weights: _Array) -> tuple[float, float, float] | None:
    """Return tau and its percentile bootstrap interval; None if tau is not defined."""
    taus = weighted_taus(x, y, weights)
    if math.isnan(taus[0]):
        return None
    low, high = np.nanpercentile(taus[1:], [2.5, 97.5])
    return float(taus[0]), float(low), float(high)


def tau_with_interval(
    trials: Sequence[TrialRecord], x: _Array, y: _Array
) -> tuple[float, float, float] | None:
    """Return Kendall's tau-b of two numbers of some trials, with its interval.

    Args:
        trials: At most a few thousand.
        x: (n,), one per trial.
        y: (n,).

    Returns:
        Tau and the ends of its 95% bootstrap interval; None with fewer than 8 trials, or where all
        x or all y are the same.
    """
    return None if len(trials) < _MIN_TRIALS else _with_interval(x, y, _weights(trials))


def flatness_gain(complete: Sequence[TrialRecord]) -> list[FlatnessGain]:
    """Predict the final accuracy with and without flatness, every trial from the others.

    Args:
        complete: Trials that were trained to the end.

    Returns:
        After the first epoch, a quarter and half of them; nothing with too few trials, or without
        flatness.
    """
    complete = _some(complete)
    if len(complete) < _MIN_TRIALS_GAIN:
        return []
    final = np.array([trial.metrics["accuracy"] for trial in complete])
    weights = _weights(complete)
    y = Reference(final, weights[0]).score(final)
    observed = [as_observation(trial, None) for trial in complete]
    found = []
    for step in _moments(complete)[:-1]:
        values = np.array([o.signals(step, SIGNALS) for o in observed])
        known = [i for i, name in enumerate(SIGNALS) if np.isfinite(values[:, i]).any()]
        if not {SIGNALS[i] for i in known} & set(FLATNESS):
            return []
        x = np.stack([Reference(values[:, i], weights[0]).score(values[:, i]) for i in known], 1)
        taus = []
        for left_out in ((), FLATNESS):
            kept = [j for j, i in enumerate(known) if SIGNALS[i] not in left_out]
            prior = Prior(np.array([PRIOR.get(SIGNALS[known[j]], 0.0) for j in kept]))
            taus.append(weighted_taus(leave_one_out(x[:, kept], y, prior), final, weights))
        gains = taus[0] - taus[1]
        if math.isnan(gains[0]):
            continue
        low, high = np.nanpercentile(gains[1:], [2.5, 97.5])
        with_it, without = float(taus[0][0]), float(taus[1][0])
        found.append(
            FlatnessGain(
                epoch=step + 1,
                tau=with_it,
                tau_without=without,
                gain=with_it - without,
                low=float(low),
                high=float(high),
                n_trials=len(complete),
            )
        )
    return found


def pruning_worth(
    trials: Sequence[TrialRecord], directions: Sequence[str], epochs: int | None
) -> PruningWorth | None:
    """Return what pruning was worth.

    Args:
        trials: Of the study.
        directions: "minimize" or "maximize" per objective.
        epochs: Of a trial that is not pruned; the most that one has where None.

    Returns:
        The figures; None if no trial was pruned and no pruner decided on any.
    """
    own = [t for t in trials if t.same_as is None and not t.over_limit and t.steps]
    # One that diverged says so; it was not the pruner.
    pruned = [t for t in own if t.ended_early or (t.state == "PRUNED" and t.failure is None)]
    decided = [decision for t in own for decision in t.decisions]
    if not pruned and not decided:
        return None
    ended = [t for t in own if t.state in {"COMPLETE", "PRUNED"}]
    whole = epochs or max(len(t.steps) for t in ended)
    complete = [t for t in ended if t.values is not None and not t.ended_early]
    # Those that were run on while pruning was suspended are no sample of the pruned ones.
    flagged = [
        t for t in complete
        if (flag := first_flag(t.decisions)) is not None and flag.outcome == AUDITED[0]
    ]  # fmt: skip
    signs = np.array([1.0 if d == "maximize" else -1.0 for d in directions])
    best = next((decision.best for decision in decided), None)
    counted = [t for t in complete if t.feasible or best is not None]
    points = np.array([t.values for t in counted]).reshape(len(counted), len(signs)) * signs
    weights = _weights(counted)[0] if counted else np.zeros(0)
    wrong = sum(
        t.feasible and is_best(points, weights, np.array(t.values) * signs, best) for t in flagged
    )
    audited = len(flagged)
    low, high = 0.0, 1.0
    if audited:
        interval = stats.binomtest(wrong, audited).proportion_ci()
        low, high = float(interval.low), float(interval.high)
    return PruningWorth(
        pruned=len(pruned),
        epochs_spent=sum(len(t.steps) for t in ended),
        epochs_saved=sum(max(0, whole - len(t.steps)) for t in pruned),
        audited=audited,
        wrong=wrong,
        low=low,
        high=high,
        suspended=sum(any(d.outcome == AUDITED[1] for d in t.decisions) for t in own),
        best=best,
    )
