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

from flatsearch.analysis.intervals import trial_weights, weighted_taus, with_interval
from flatsearch.pruners.calibrated import FLATNESS, PRIOR, SIGNALS, as_observation
from flatsearch.pruners.regression import Prior, Reference, leave_one_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record.trial import TrialRecord

__all__ = ["FlatnessGain", "ProxyWorth", "flatness_gain", "proxy_worth"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
# Below this many complete trials a rank correlation says nothing, nor a regression.
_MIN_TRIALS = 8
_MIN_TRIALS_GAIN = 16
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
    weights = trial_weights(complete)
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
    found = with_interval(values[known], final[known], weights[:, known])
    return None if found is None else ProxyWorth(signal, epoch, *found, n)


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
    weights = trial_weights(complete)
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
