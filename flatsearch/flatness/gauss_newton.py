"""Every convolution at once: K - 1 backward passes through the network, no kernel gradients.

With the columns L_k of the softmax's root (`softmax`) as cotangents, one vector-Jacobian product
gives g_k = d <L_k, logits> / d A at the output A of every convolution, and `contraction` turns
them into each kernel's traces and kappa. That is the generalised Gauss-Newton matrix, which is the
Hessian where the logits are piecewise linear in A.

It needs only that the logits of a sample depend on that sample alone. Where the recorded graph
does not prove that, it is checked on the numbers, for two more backward passes: cotangents that
are multiplied with a number of their own for each sample must give derivatives multiplied with the
same numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import grad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.autograd.graph import GradientEdge

    from flatsearch.flatness.softmax import SampledRoot, SoftmaxRoot

__all__ = ["backpropagate", "sample_coupling"]


def backpropagate(
    logits: Tensor,
    edges: Sequence[GradientEdge],
    root: SoftmaxRoot | SampledRoot,
    columns: range,
    *,
    last: bool,
) -> list[list[Tensor]]:
    """Return g_k for some columns k of L, at every convolution.

    Args:
        logits: (N, K), with a recorded graph.
        edges: Where each convolution's output entered the graph.
        root: L, or a sample of it.
        columns: Which k.
        last: Whether the graph is not needed afterwards.

    Returns:
        Per convolution, one (N, C, rows, columns) per column; none where no gradient reaches it.
    """
    found: list[list[Tensor]] = [[] for _ in edges]
    for k in columns:
        keep = not (last and k == columns[-1])
        gradients = grad(logits, edges, root.column(k), retain_graph=keep, allow_unused=True)
        for factors, gradient in zip(found, gradients, strict=True):
            if gradient is not None:
                factors.append(gradient)
    return found


def sample_coupling(logits: Tensor, edges: Sequence[GradientEdge]) -> Tensor:
    """Return how far the logits of a sample depend on other samples, behind the convolutions.

    Args:
        logits: (N, K), with a recorded graph.
        edges: Where each convolution's output entered the graph.

    Returns:
        max_n |g_n(rho) / rho_n - g_n| / |g_n|, the largest over the convolutions, a scalar; 0 if
        they do not, NaN if a derivative is. g_n(rho) comes from cotangents multiplied with rho_n.
    """
    generator = torch.Generator(logits.device).manual_seed(20260309)
    cotangent = torch.randn(
        logits.shape, generator=generator, dtype=logits.dtype, device=logits.device
    )
    # Powers of two, so that multiplying by them is exact and independent samples agree to the last
    # bits; different ones, because two coupled samples of equal weight would not show.
    order = torch.randperm(len(logits), generator=generator, device=logits.device)
    rho = torch.ldexp(1 - 2.0 * (order // 41 % 2), order % 41 - 20).to(logits)
    plain = grad(logits, edges, cotangent, retain_graph=True, allow_unused=True)
    weighted = grad(logits, edges, cotangent * rho[:, None], retain_graph=True, allow_unused=True)
    worst = logits.new_zeros(())
    for a, b in zip(weighted, plain, strict=True):
        if a is None or b is None:
            continue
        difference = torch.linalg.vector_norm(
            a.flatten(1) / rho[:, None] - b.flatten(1), ord=math.inf, dim=1
        )
        ratio = difference / torch.linalg.vector_norm(b.flatten(1), ord=math.inf, dim=1)
        ratio = torch.where(difference == 0, torch.zeros_like(ratio), ratio).amax()
        worst = torch.maximum(worst, ratio)
    return worst
