"""Derivatives of the pooled features with respect to a convolution's output.

The *tail* is everything between the convolution's output A (N, C, rows, columns) and the features
g (N, C) that enter the linear classifier. The closed form needs

    S_c(p)   = d g_c / d A_c(p)            and, for smooth tails,
    f''_c(p) = d^2 g_c / d A_c(p)^2.

It holds only where g_c of sample n depends on channel c of sample n alone, and f'' only where the
second derivatives couple no two positions; `proof` proves both, or the closed form is not used.
One backward pass with ones as cotangents then gives every S at once, and one more every f''.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd import grad

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import GradientEdge

__all__ = ["differentiate_tail"]


def differentiate_tail(
    features: Tensor, edge: GradientEdge, *, second: bool = False, keep_graph: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Differentiate the pooled features with respect to the convolution's output.

    Args:
        features: g, (N, C), with a recorded graph that reaches `edge`.
        edge: Where A, (N, C, rows, columns), entered the graph.
        second: Whether to differentiate twice.
        keep_graph: Whether the graph is differentiated again afterwards.

    Returns:
        S and f'', each of A's shape; f'' is None unless asked for, or where S is constant.
    """
    ones = torch.ones_like(features)
    (first,) = grad(features, edge, ones, retain_graph=keep_graph or second, create_graph=second)
    if not (second and first.requires_grad):
        return first.detach(), None
    (curvature,) = grad(first, edge, torch.ones_like(first), retain_graph=True, allow_unused=True)
    return first.detach(), curvature
