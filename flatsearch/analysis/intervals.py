"""Kendall's tau between weighted trials, with bootstrap intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsearch.record.decisions import stands_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record.trial import TrialRecord

__all__ = ["tau_with_interval", "weighted_taus"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
# Below this many complete trials a rank correlation says nothing, nor a regression.
_MIN_TRIALS = 8
_RESAMPLES = 200


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


def trial_weights(trials: Sequence[TrialRecord]) -> _Array:
    """Return the trials' weights, then those of resamples of the trials, (1 + resamples, n)."""
    own = np.array([stands_for(trial.decisions) for trial in trials])
    n = len(trials)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1.0 / n), _RESAMPLES)
    return np.vstack([own, counts * own])


def with_interval(x: _Array, y: _Array, weights: _Array) -> tuple[float, float, float] | None:
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
    return None if len(trials) < _MIN_TRIALS else with_interval(x, y, trial_weights(trials))
