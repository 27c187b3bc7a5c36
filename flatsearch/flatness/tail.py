"""Derivatives of the pooled features with respect to the convolution's output.

The *tail* is everything between the measured convolution's output A (N, C, rows, columns) and
the features g (N, C) that enter the linear classifier. The closed form needs

    S_c(p)   = d g_c / d A_c(p)            and, for smooth tails,
    f''_c(p) = d^2 g_c / d A_c(p)^2

and it holds only where g_c of sample n depends on channel c of sample n alone. Where the
recorded operations do not prove that (`graph`), it is checked on the numbers themselves:
backpropagating random signs rho_nc through a separable tail must give rho_nc S_nc(p) exactly,
and anything else shows as a difference.
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
        second: f'', the same shape; None where it is proven to be zero.
        not_separable: max |grad(<rho, g>) - rho S| / max |S|; 0 for a separable tail.
        not_elementwise: max |grad(<rho, S>) - rho f''| / max |f''|; 0 for a tail
            whose second derivative couples no two positions. None where `second` is None.
    """

    first: Tensor
    second: Tensor | None
    not_separable: Tensor
    not_elementwise: Tensor | None


def _random_signs(like: Tensor) -> Tensor:
    """Return +-1 of the given shape from a fixed seed, leaving torch's own generator alone."""
    generator = torch.Generator(like.device).manual_seed(20260309)
    bits = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
    return bits.to(like.dtype) * 2 - 1


def _relative_difference(a: Tensor, signs: Tensor, b: Tensor) -> Tensor:
    """Return max |a - signs b| / max |b|, 0 where both vanish, inf where only b does."""
    difference = torch.linalg.vector_norm(torch.addcmul(a, signs, b, value=-1), ord=math.inf)
    ratio = difference / torch.linalg.vector_norm(b, ord=math.inf)
    return torch.where(difference == 0, torch.zeros_like(ratio), ratio)


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
    """
    proof = examine(features, output)
    linear = proof.piecewise_linear
    ones = torch.ones_like(features)
    keep = keep_graph or not (linear and proof.channelwise)
    (first,) = grad(features, output, ones, retain_graph=keep, create_graph=not linear)
    separable = ones.new_zeros(())
    if not proof.channelwise:
        signs = _random_signs(features)
        (signed,) = grad(features, output, signs, retain_graph=keep_graph or not linear)
        separable = _relative_difference(signed, signs[:, :, None, None], first.detach())
    if linear or not first.requires_grad:
        return TailDerivatives(first.detach(), None, separable, None)
    position_signs = _random_signs(first)
    signed_second = _second(first, output, position_signs, keep=True)
    second = _second(first, output, torch.ones_like(first), keep=keep_graph)
    if signed_second is None or second is None:
        return TailDerivatives(first.detach(), None, separable, None)
    elementwise = _relative_difference(signed_second, position_signs, second)
    return TailDerivatives(first.detach(), second, separable, elementwise)


def _second(first: Tensor, output: Tensor, cotangent: Tensor, *, keep: bool) -> Tensor | None:
    """Return grad(<cotangent, S>, A), or None where S does not depend on A at all."""
    (result,) = grad(first, output, cotangent, retain_graph=keep, allow_unused=True)
    return result
