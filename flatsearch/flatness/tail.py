"""Derivatives of the pooled features with respect to the convolution's output.

The *tail* is everything between the measured convolution's output A (N, C, rows, columns) and
the features g (N, C) that enter the linear classifier. The closed form needs

    S_c(p)   = d g_c / d A_c(p)            and, for smooth tails,
    f''_c(p) = d^2 g_c / d A_c(p)^2

and it holds only where g_c of sample n depends on channel c of sample n alone, and f'' only
where the second derivatives couple no two positions. Where the recorded operations do not prove
that (`graph`), it is checked on the numbers themselves: backpropagating random weights rho_nc
through a separable tail must give rho_nc S_nc(p), and anything else shows as a difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import grad

from flatsearch.flatness.graph import examine

__all__ = ["TailDerivatives", "differentiate_tail"]


@dataclass(frozen=True)
class TailDerivatives:
    """What one batch gives.

    Attributes:
        first: S, (N, C, rows, columns).
        second: f'', the same shape; None where it is zero, or is not known.
        not_separable: max |grad(<rho, g>) / rho - S| / max |S|; 0 for a separable tail.
        not_elementwise: max |grad(<rho, S>) / rho - f''| / max |f''|; 0 for a tail whose second
            derivatives couple no two positions, inf where they cannot be had.
    """

    first: Tensor
    second: Tensor | None
    not_separable: Tensor
    not_elementwise: Tensor


def _random_weights(like: Tensor) -> Tensor:
    """Return +-2^k for random k in [-20, 20], from a fixed seed, leaving torch's generator alone.

    Powers of two, so that multiplying by them is exact and a separable tail agrees to the last
    bits; many different ones, because two coupled entries of equal weight would not show.
    """
    generator = torch.Generator(like.device).manual_seed(20260309)
    shape = like.shape
    power = torch.randint(-20, 21, shape, generator=generator, device=like.device)
    sign = torch.randint(0, 2, shape, generator=generator, device=like.device) * 2 - 1
    return torch.ldexp(sign.to(like.dtype), power)


def _relative_difference(a: Tensor, weights: Tensor, b: Tensor) -> Tensor:
    """Return max |a / weights - b| / max |b|, per channel, the largest over the channels.

    Per channel, because filters may differ in scale by any factor. 0 where both vanish, inf
    where only b does.
    """
    every = (0, 2, 3)
    difference = torch.linalg.vector_norm(a / weights - b, ord=math.inf, dim=every)
    ratio = difference / torch.linalg.vector_norm(b, ord=math.inf, dim=every)
    return torch.where(difference == 0, torch.zeros_like(ratio), ratio).amax()


def differentiate_tail(
    features: Tensor, output: Tensor, *, keep_graph: bool = False
) -> TailDerivatives:
    """Differentiate the pooled features with respect to the convolution's output.

    Args:
        features: g, (N, C), with a recorded graph that reaches `output`.
        output: A, (N, C, rows, columns).
        keep_graph: Whether another layer will be differentiated in the same graph.

    Returns:
        The derivatives and how far the tail is from separable and elementwise. The latter
        are tensors, so that nothing waits for the device here; the caller judges them.

    Raises:
        RuntimeError: If differentiating fails for another reason than a missing derivative.
    """
    proof = examine(features, output)
    linear = proof.piecewise_linear
    ones = torch.ones_like(features)
    keep = keep_graph or not (linear and proof.channelwise)
    (first,) = grad(features, output, ones, retain_graph=keep, create_graph=not linear)
    separable = elementwise = ones.new_zeros(())
    if not proof.channelwise:
        rho = _random_weights(features)
        (weighted,) = grad(features, output, rho, retain_graph=keep_graph or not linear)
        separable = _relative_difference(weighted, rho[:, :, None, None], first.detach())
    if linear:
        return TailDerivatives(first.detach(), None, separable, elementwise)
    unknown = torch.full_like(elementwise, math.inf)
    if not proof.own:
        return TailDerivatives(first.detach(), None, separable, unknown)
    if not first.requires_grad:  # piecewise linear in a way that is not on the list
        return TailDerivatives(first.detach(), None, separable, elementwise)
    try:
        second = _second(first, output, torch.ones_like(first))
        if not proof.pointwise:
            rho = _random_weights(first)
            elementwise = _relative_difference(_second(first, output, rho), rho, second)
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return TailDerivatives(first.detach(), None, separable, unknown)
    return TailDerivatives(first.detach(), second, separable, elementwise)


def _second(first: Tensor, output: Tensor, cotangent: Tensor) -> Tensor:
    """Return grad(<cotangent, S>, A), zero where S does not depend on A."""
    (result,) = grad(
        first, output, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return result
