"""Signals made of loss gradients in the weights, in train mode, on an untrained network.

All sum over the layers that have a kernel or matrix (parameters of two or more dimensions);
biases and normalisations are left out, as in the papers' code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["gradient_norm", "snip", "zico"]


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad and p.dim() > 1]


def _gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the mean cross-entropy's gradient in every weight; zeros where it has none."""
    model.train()
    weights = _weights(model)
    loss = F.cross_entropy(model(x).float(), y)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return [
        torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)
    ]


def gradient_norm(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return sum_l |dL/dW_l|, Euclidean norms.

    Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021, arXiv 2101.08134.
    """
    return sum(float(g.double().norm()) for g in _gradients(model, x, y))


def snip(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return sum_w |w dL/dw|, the connection sensitivity of all weights together.

    Lee et al., "SNIP: Single-shot Network Pruning Based on Connection Sensitivity", ICLR 2019,
    arXiv 1810.02340, summed over the network as in Abdelfattah et al. 2021.
    """
    gradients = _gradients(model, x, y)
    pairs = zip(_weights(model), gradients, strict=True)
    return sum(float((w.detach().double() * g.double()).abs().sum()) for w, g in pairs)


def zico(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the inverse coefficient of variation of the gradients between batches.

        sum_l log( sum_{w in l} E|g_w| / sqrt(Var |g_w|) )

    with mean and (population) variance over two batches, halves of the images; weights whose
    gradient does not vary are left out. Li et al., "ZiCo", ICLR 2023, arXiv 2301.11300, equation
    17.
    """
    size = len(y) // 2
    if size < 2:
        return math.nan
    parts = slice(size), slice(size, 2 * size)
    rows = zip(*(_gradients(model, x[part], y[part]) for part in parts), strict=True)
    total = 0.0
    for row in rows:
        stacked = torch.stack([g.double().abs() for g in row])
        deviation = stacked.std(0, correction=0)
        varies = deviation > 0
        ratio = float((stacked.mean(0)[varies] / deviation[varies]).sum())
        total += math.log(ratio) if ratio > 0 else 0.0
    return total
