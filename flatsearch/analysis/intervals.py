"""Bootstrap intervals of Kendall's tau between weighted trials."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record.trial import TrialRecord

__all__ = [
    "MIN_TRIALS",
    "percentiles",
    "resamples",
    "tau_with_interval",
    "trial_weights",
    "weighted_taus",
]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
_Interval: TypeAlias = tuple[float, float, float]
# Below this many trials a rank correlation says nothing.
MIN_TRIALS = 8
_RESAMPLES = 200


def resamples(n: int, times: int = _RESAMPLES) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the indices of resamples with replacement, the same for every call, (times, n)."""
    return np.random.default_rng(0).integers(0, n, (times, n))


def percentiles(values: _Array) -> tuple[float, float]:
    """Return the 2.5% and 97.5% order statistics of resampled values, NaN left out.

    Order statistics are not interpolated: values may be infinite.

    Example:
        >>> percentiles(np.array([math.nan, *range(1, 200), math.inf]))
        (5.0, 195.0)
        >>> percentiles(np.array([1.0, math.inf]))
        (1.0, inf)
    """
    low, high = np.nanpercentile(values, [2.5, 97.5], method="closest_observation")
    return float(low), float(high)


def weighted_taus(x: _Array, y: _Array, weights: _Array) -> _Array:
    """Return Kendall's tau-b under several weightings of the trials.

        tau = sum_ij w_i w_j sgn(x_i - x_j) sgn(y_i - y_j)
              / sqrt( sum_ij w_i w_j [x_i != x_j]  sum_ij w_i w_j [y_i != y_j] )

    The values are (n,), where infinite ones are the largest or smallest, and the weights (m, n).
    Tau is (m,); NaN where all x or all y are the same.

    Example:
        >>> x, y = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
        >>> weighted_taus(x, y, np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])).round(3).tolist()
        [0.333, 1.0]
    """
    ranks = (np.unique(v, return_inverse=True)[1] for v in (x, y))
    dx, dy = (np.sign(r[:, None] - r).astype(np.float32) for r in ranks)
    w = weights.astype(np.float32)

    def total(pairs: Any) -> _Array:
        summed: _Array = np.einsum("mn,mn->m", w @ pairs, w, dtype=np.float64)
        return summed

    with np.errstate(invalid="ignore", divide="ignore"):
        taus: _Array = total(dx * dy) / np.sqrt(total(np.abs(dx)) * total(np.abs(dy)))
    return taus


def bootstrap_weights(own: _Array, times: int = _RESAMPLES) -> _Array:
    """Return weights (n,) and those of resamples, how often each is drawn, (1 + times, n)."""
    counts = [np.bincount(rows, minlength=len(own)) for rows in resamples(len(own), times)]
    return np.vstack([own, np.array(counts).reshape(times, len(own)) * own])


def trial_weights(trials: Sequence[TrialRecord]) -> _Array:
    """Return the trials' weights, then those of resamples of the trials, (1 + resamples, n)."""
    return bootstrap_weights(np.array([trial.weight for trial in trials], float))


def tau_with_interval(x: _Array, y: _Array, weights: _Array | None = None) -> _Interval | None:
    """Return Kendall's tau-b of x and y (n,) with its 95% percentile bootstrap interval.

    Pairs with NaN are left out. None of fewer than 8 pairs, or where all x or all y are the same.
    The weights are `trial_weights` of the n trials; those of equal trials where None.
    """
    weights = bootstrap_weights(np.ones(len(x))) if weights is None else weights
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < MIN_TRIALS:
        return None
    taus = weighted_taus(x[known], y[known], weights[:, known])
    return None if math.isnan(taus[0]) else (float(taus[0]), *percentiles(taus[1:]))
