"""Whether autograd's derivatives are those of what the model computes.

They need not be where a tensor is detached on the way, where a Python number is taken from one,
where operations run under `torch.no_grad`, or where an `autograd.Function` brings a backward pass
of its own (a straight-through estimator, say). What autograd says is then compared with
differences of the logits, with no backward pass at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import grad
from torch.autograd.function import BackwardCFunction

from flatsearch.flatness.forward import Network, call
from flatsearch.flatness.graph import match_layouts, ordered
from flatsearch.flatness.watch import without_hooks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

__all__ = ["handwritten", "untrue_derivatives"]

# Relative to the kernels; in float64, so that rounding is far below and few kinks are met. The
# longer ones are for what has so little effect that its differences are lost in rounding: kernels
# behind a layer scale of 1e-6, say.
_STEPS = (1e-7, 1e-5, 1e-3)
_TOLERANCE = 1e-3
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # of the logits, relative to their size
_DIRECTIONS = 3


def handwritten(nodes: Iterable[Any]) -> list[str]:
    """Return what operations are called whose backward pass is not their derivative by rule.

    Return the names of those written in Python, and of torch's fake quantisation.
    """
    return sorted({node.name() for node in nodes if _is_odd(node)})


def _is_odd(node: Any) -> bool:
    return isinstance(node, BackwardCFunction) or "FakeQuantize" in node.name()


def untrue_derivatives(
    model: nn.Module, kernels: Sequence[Tensor], x: Tensor, *, copies: bool
) -> list[bool]:
    """Compare autograd's derivatives at kernels with differences.

    Args:
        model: A copy in float64, whose kernels require gradients.
        kernels: Some of its parameters.
        x: A few samples, in float64.
        copies: Whether the graph keeps copies.

    Returns:
        For every kernel whether the logits change otherwise than autograd says, in a direction in
        which they change smoothly; where they have a kink autograd's choice is as good as any,
        and where they hardly change at all (1e-9 of their size for a kernel that is changed by
        its own size) a difference has too few digits to tell.
    """
    with Network(model, {}, copies=copies, hooks=True).recording():
        logits = call(model, x)
    match_layouts(ordered(logits.grad_fn))
    generator, cpu = torch.Generator("cpu").manual_seed(0), torch.device("cpu")

    def draw(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, dtype=x.dtype, device=cpu)
        return drawn.to(x.device)

    cotangents = [draw(logits) for _ in range(_DIRECTIONS)]
    # All of them before the model is run again, which may change what the graph holds.
    found = [grad(logits, kernels, c, retain_graph=True, allow_unused=True) for c in cotangents]
    # relative to each kernel's own size
    sizes = [float(kernel.detach().square().mean().sqrt()) or 1.0 for kernel in kernels]
    return [
        any(
            _differs(model, x, c, logits.detach(), kernel, size * draw(kernel), gradients[place])
            for c, gradients in zip(cotangents, found, strict=True)
        )
        for place, (kernel, size) in enumerate(zip(kernels, sizes, strict=True))
    ]


def _differs(
    model: nn.Module,
    x: Tensor,
    c: Tensor,
    logits: Tensor,
    kernel: Tensor,
    change: Tensor,
    gradient: Tensor | None,
) -> bool:
    """Return whether <c, logits> changes smoothly with a kernel, and not as a gradient says."""
    expected = 0.0 if gradient is None else float((gradient * change).sum())
    rounding = _ROUNDING * float((c * logits).abs().sum())
    for size in _STEPS:
        backward, forward = (
            float((c * (_moved(model, x, kernel, step * change) - logits)).sum()) / step
            for step in (-size, size)
        )
        tolerance = _TOLERANCE * max(abs(expected), abs(forward), abs(backward))
        if rounding / size > tolerance and size < _STEPS[-1]:
            continue
        tolerance = max(tolerance, rounding / size)
        if abs(forward - backward) <= tolerance:
            return abs(forward - expected) > tolerance
    return False


@torch.no_grad()
def _moved(model: nn.Module, x: Tensor, kernel: Tensor, change: Tensor) -> Tensor:
    """Return the logits with another kernel."""
    original = kernel.detach().clone()
    kernel.add_(change)
    with without_hooks():
        logits = call(model, x)
    kernel.copy_(original)
    return logits
