"""Pareto fronts and what counts as the best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["is_best", "signs"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def signs(directions: Sequence[Any]) -> _Array:
    """Return the factors that make larger values better.

    Args:
        directions: The directions of the objectives, as Optuna's constants or by name.

    Returns:
        1 for an objective that is maximised, -1 for one that is minimised, (objectives,).

    Example:
        >>> signs(["maximize", "minimize"]).tolist()
        [1.0, -1.0]
    """
    names = (str(getattr(direction, "name", direction)).lower() for direction in directions)
    return np.array([1.0 if name == "maximize" else -1.0 for name in names])


def is_best(finals: _Array, weights: _Array, mine: _Array, best: float | None) -> bool:
    """Return whether final values are among the best.

    Args:
        finals: Of the trials it is one of, larger is better, (n, objectives).
        weights: How many trials each stands for, (n,).
        mine: (objectives,).
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
    """
    front = []
    while len(points):
        best = points[np.argmax(points.sum(axis=1))]
        front.append(best)
        points = points[np.any(points > best, axis=1)]
    return np.array(front).reshape(len(front), points.shape[1])
