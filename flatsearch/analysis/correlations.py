"""How well early signals rank candidates by their final accuracy, with intervals.

Trials that were pruned have no final accuracy, so those that have one are a selection. Under the
calibrated rule a known share of the trials that would have been pruned was run on: each stands
for `1 / chance` trials here, which makes the figures those of all trials (Horvitz and Thompson
1952).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsearch.analysis.intervals import (
    MIN_TRIALS,
    percentiles,
    tau_with_interval,
    trial_weights,
    weighted_taus,
)
from flatsearch.pruners.calibrated import as_observation
from flatsearch.pruners.regression import Prior, Reference, leave_one_out
from flatsearch.signals.table import FLATNESS, PRIOR, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record.trial import TrialRecord

__all__ = [
    "MIN_TRIALS_GAIN",
    "FlatnessGain",
    "SignalCorrelation",
    "flatness_gain",
    "signal_correlations",
]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
# Below this many complete trials a regression says nothing.
MIN_TRIALS_GAIN = 16
# Pairs are compared all with all: of more trials a fixed random part is taken.
_MOST_TRIALS = 2000


@dataclass(frozen=True)
class SignalCorrelation:
    """How well one early signal ranks the candidates by their final validation accuracy.

    Attributes:
        signal: The name of the signal in `SIGNALS`, with a minus sign where smaller is better.
        epoch: The epochs after which it was read; 0 for what is known before training.
        tau: Kendall's tau-b with the final accuracy; positive if better values go with higher ones.
        low: The lower end of its 95% bootstrap interval.
        high: The upper end.
        n_trials: The complete trials it was computed on.
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
        epoch: The epochs after which the signals were read.
        tau: Kendall's tau-b of the prediction from all signals with the final validation accuracy;
            every trial is predicted from the others.
        tau_without: The same without the signals of flatness.
        gain: The difference of the two.
        low: The lower end of the gain's 95% bootstrap interval.
        high: The upper end.
        n_trials: The complete trials it was computed on.
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


def signal_correlations(complete: Sequence[TrialRecord]) -> list[SignalCorrelation]:
    """Return the signals' correlations in complete trials; nothing with too few.

    First those after the first epoch, a quarter and half of them, and at the end, then those of
    the untrained networks.
    """
    complete = _some(complete)
    if len(complete) < MIN_TRIALS:
        return []
    final = np.array([trial.metrics["accuracy"] for trial in complete])
    weights = trial_weights(complete)
    observed = [as_observation(trial, None) for trial in complete]
    steps = _moments(complete)
    found = []
    for step in (*steps, -1):
        first = "epoch" if step >= 0 else "untrained"
        names = [name for name, signal in SIGNALS.items() if signal.first == first]
        columns = np.array([o.signals(step, names) for o in observed]).T
        for name, values in zip(names, columns, strict=True):
            if name == "accuracy" and step == steps[-1]:
                continue  # the final accuracy itself
            tau = tau_with_interval((SIGNALS[name].sign or 1) * values, final, weights)
            if tau is not None:
                n = int((~np.isnan(values)).sum())
                found.append(SignalCorrelation(SIGNALS[name].label, step + 1, *tau, n))
    return found


def flatness_gain(complete: Sequence[TrialRecord]) -> list[FlatnessGain]:
    """Return what flatness adds after the first epoch, a quarter and half of them.

    The final accuracy of every complete trial is predicted from the others, with and without
    flatness; nothing with too few trials, or without flatness.
    """
    complete = _some(complete)
    if len(complete) < MIN_TRIALS_GAIN:
        return []
    final = np.array([trial.metrics["accuracy"] for trial in complete])
    weights = trial_weights(complete)
    y = Reference(final, weights[0]).score(final)
    observed, names = [as_observation(trial, None) for trial in complete], tuple(SIGNALS)
    found = []
    for step in _moments(complete)[:-1]:
        columns = np.array([o.signals(step, names) for o in observed]).T
        scores = {
            name: Reference(values, weights[0]).score(values)
            for name, values in zip(names, columns, strict=True)
            if np.isfinite(values).any()
        }
        if not set(scores) & set(FLATNESS):
            return []
        taus = []
        for left_out in ((), FLATNESS):
            kept = [name for name in scores if name not in left_out]
            x, prior = np.stack([scores[n] for n in kept], 1), np.array([PRIOR[n] for n in kept])
            predicted = leave_one_out(x, y, Prior(prior))
            taus.append(weighted_taus(predicted, final, weights))
        gains = taus[0] - taus[1]
        if math.isnan(gains[0]):
            continue
        tau, without = float(taus[0][0]), float(taus[1][0])
        interval = percentiles(gains[1:])
        found.append(
            FlatnessGain(step + 1, tau, without, tau - without, *interval, n_trials=len(complete))
        )
    return found
