"""Signals that training leaves behind for nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["tse", "with_tse"]


def tse(losses: Sequence[float]) -> float:
    """Return the training speed estimate: the sum of the running training losses so far.

        TSE(E) = sum_{e=1..E} mean_b loss_{e,b}

    with loss_{e,b} of batch b in epoch e before its step. Ru et al., "Speedy Performance
    Estimation for Neural Architecture Search", NeurIPS 2021, arXiv 2006.04492, equation 2.

    Example:
        >>> tse([2.0, 1.5, 1.0])
        4.5
    """
    return float(sum(losses))


def with_tse(steps: Mapping[int, Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """Return metrics by step with `tse` among them, from their "train_loss" so far.

    Example:
        >>> with_tse({0: {"train_loss": 2.0}, 1: {"train_loss": 1.5}})[1]
        {'train_loss': 1.5, 'tse': 3.5}
    """
    losses: list[float] = []
    found = {}
    for step, metrics in steps.items():
        losses.append(metrics.get("train_loss", math.nan))
        found[step] = {**metrics, "tse": tse(losses)}
    return found
