"""Directions, Pareto fronts and ranks, and what counts as the best."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ParetoRanks", "accuracy_error", "front_of", "is_best", "signs"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def signs(directions: Iterable[Any]) -> _Array:
    """Return the factors that make larger values better, of directions by Optuna or by name.

    They are 1 for an objective that is maximised, -1 for one that is minimised, (objectives,).

    Example:
        >>> signs(["maximize", "minimize"]).tolist()
        [1.0, -1.0]
    """
    names = (str(getattr(direction, "name", direction)).lower() for direction in directions)
    return np.array([1.0 if name == "maximize" else -1.0 for name in names])


def accuracy_error(accuracy: float, n: int) -> float:
    """Return the standard error of an accuracy p on n images, sqrt(p (1 - p) / n).

    Example:
        >>> accuracy_error(0.5, 100)
        0.05
    """
    return math.sqrt(max(0.0, accuracy * (1.0 - accuracy)) / n)


def is_best(finals: _Array, weights: _Array, mine: _Array, best: float | None) -> bool:
    """Return whether a trial's final values are among the best.

    Args:
        finals: The final values of all trials, larger is better, (n, objectives).
        weights: The number of trials that each of them stands for, (n,).
        mine: The final values of the trial, (objectives,).
        best: With one objective, the share that counts as the best; None for the front.

    Returns:
        Whether fewer than that share are better; whether none dominates it.

    Example:
        >>> finals, ones = np.arange(10.0)[:, None], np.ones(10)
        >>> is_best(finals, ones, np.array([8.0]), 0.2), is_best(finals, ones, finals[7], 0.2)
        (True, False)
    """
    if best is not None:
        better = finals[:, 0] > mine[0]
        return bool(weights[better].sum() < best * weights.sum())
    return not bool(np.any(np.all(finals >= mine, axis=1) & np.any(finals > mine, axis=1)))


def front_of(points: _Array) -> _Array:
    """Return the points that no other dominates: what they do not dominate, no other does.

    The point with the largest sum is on the front; it and what is nowhere better than it are taken
    away, until nothing is left.

    Args:
        points: Larger is better, (n, objectives).

    Returns:
        The points of the front, (m, objectives).

    Example:
        >>> front_of(np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0]])).tolist()
        [[1.0, 3.0], [2.0, 2.0]]
    """
    front = []
    while len(points):
        best = points[np.argmax(points.sum(axis=1))]
        front.append(best)
        points = points[np.any(points > best, axis=1)]
    return np.array(front).reshape(len(front), points.shape[1])


class ParetoRanks:
    """Points, ranked by the number of others that dominate them (Fonseca and Fleming 1993).

    Adding a point and ranking one take time in proportion to the number of points.

    Args:
        n_metrics: The length of a point.

    Example:
        >>> ranks = ParetoRanks(2)
        >>> for losses in ((1.0, 3.0), (3.0, 1.0), (4.0, 4.0)):
        ...     ranks.add(np.array(losses))
        >>> others, own = ranks.rank(np.array([5.0, 5.0]))
        >>> others.tolist(), own
        ([0.0, 0.0, 2.0], 3.0)
    """

    def __init__(self, n_metrics: int) -> None:
        self._points = np.empty((0, n_metrics))
        self._dominators = np.empty(0)

    def __len__(self) -> int:
        return len(self._points)

    def add(self, losses: _Array) -> None:
        """Add a point, of which smaller is better; NaN is worst."""
        losses = _comparable(losses)
        dominated, dominating = self._compare(losses)
        self._dominators = np.append(self._dominators + dominated, dominating.sum())
        self._points = np.vstack([self._points, losses])

    def rank(self, losses: _Array) -> tuple[_Array, float]:
        """Rank a point among the others.

        Where others have as many dominators, the point that dominates the larger volume (down
        to a reference 10% beyond the worst of them) comes first, by less than 1.

        Args:
            losses: The point, which is not added.

        Returns:
            The ranks of the others, 0 for those on the front, and the point's own; -1 if it is on
            the front.
        """
        losses = _comparable(losses)
        dominated, dominating = self._compare(losses)
        others, own = self._dominators + dominated, float(dominating.sum())
        if own == 0:
            return others, -1.0
        tied = others == own
        points = np.vstack([self._points[tied], losses])
        if tied.any() and np.isfinite(points).all():
            worst = points.max(0)
            reference = worst + 0.1 * np.abs(worst)
            volume = (reference - points).prod(1)
            later = 0.5 * (1 - volume / volume.max()) if volume.max() > 0 else 0 * volume
            others[tied] += later[:-1]
            own += float(later[-1])
        return others, own

    def _compare(self, losses: _Array) -> tuple[_Array, _Array]:
        """Return which points this one dominates, and which dominate it."""
        lower = np.asarray((self._points < losses).any(1))
        higher = np.asarray((self._points > losses).any(1))
        return higher & ~lower, lower & ~higher


def _comparable(losses: _Array) -> _Array:
    return np.where(np.isnan(losses), np.inf, losses)
