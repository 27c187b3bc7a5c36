"""Arguments that several pruners take."""

from __future__ import annotations

from optuna.pruners import BasePruner

from flatsearch.errors import unknown_name

__all__ = ["check_direction", "check_pruner"]

_DIRECTIONS = ("minimize", "maximize")


def check_direction(metric: str, direction: str) -> None:
    """Refuse what is no direction of a metric."""
    if direction not in _DIRECTIONS:
        unknown = unknown_name("direction", str(direction), _DIRECTIONS)
        raise ValueError(f"metric {metric!r}: {unknown}")


def check_pruner(pruner: BasePruner) -> None:
    """Refuse what is no pruner."""
    if not isinstance(pruner, BasePruner):
        raise TypeError(
            f"`pruner` must be a pruner such as optuna.pruners.MedianPruner() but got {pruner!r}"
        )
