"""Signals that training leaves behind for nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flatsearch.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

__all__ = ["tse", "weight_movement", "with_tse"]


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


def weight_movement(model: nn.Module, initial: Mapping[str, Tensor]) -> float:
    """Return how far kernels and matrices have moved, relative to where they began.

        mean_l |W_l - W_l(0)| / |W_l(0)|,   Frobenius norms

    over the parameters of two or more dimensions that did not begin as zeros.

    Args:
        model: The network as it is now.
        initial: Its parameters before training, by name.

    Returns:
        The mean over the layers; 0 without any.

    Raises:
        SettingsError: If the initial parameters are not those of the same network.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 0.0]]))
        >>> weight_movement(model, {"weight": torch.tensor([[0.0, 4.0]])})
        1.25
    """
    moved = []
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        if name not in initial or initial[name].shape != weight.shape:
            raise SettingsError(f"parameter {name!r} is not among the initial ones in that shape")
        start = initial[name].double()
        norm = float(start.norm())
        if norm > 0:
            moved.append(float((weight.detach().double() - start).norm()) / norm)
    return sum(moved) / len(moved) if moved else 0.0
