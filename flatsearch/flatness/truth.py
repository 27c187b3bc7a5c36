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
from torch.autograd.graph import GradientEdge

from flatsearch.flatness.convolutions import leaf_users
from flatsearch.flatness.forward import Network, call
from flatsearch.flatness.graph import match_layouts, ordered, shape_of
from flatsearch.flatness.watch import Calls, input_of, kernel_of, perturbing, without_hooks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from flatsearch.flatness.watch import Arguments, Named

__all__ = ["derivatives_are_true", "handwritten"]

# Relative to the outputs; in float64, so that rounding is far below and few kinks are met.
_STEP = 1e-7
_TOLERANCE = 1e-3
_DIRECTIONS = 3


def handwritten(nodes: Iterable[Any]) -> list[str]:
    """Return what operations are called whose backward pass is not their derivative by rule.

    Return the names of those written in Python, and of torch's fake quantisation.
    """
    return sorted({node.name() for node in nodes if _is_odd(node)})


def _is_odd(node: Any) -> bool:
    return isinstance(node, BackwardCFunction) or "FakeQuantize" in node.name()


class _Inputs(Calls):
    """Keeps what convolutions are given: it may be changed behind autograd's back, by its data."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}

    def call(self, function: Any, args: Arguments, kwargs: Named) -> Any:
        """Return what the function returns."""
        kernel = kernel_of(function, args, kwargs)
        if kernel is not None:
            self.seen[id(kernel)] = input_of(args, kwargs).detach().clone()
        return super().call(function, args, kwargs)


def derivatives_are_true(model: nn.Module, kernels: set[int], x: Tensor, *, copies: bool) -> bool:
    """Compare autograd's derivatives at the outputs of convolutions with differences.

    Args:
        model: A copy in float64, whose kernels require gradients.
        kernels: The ids of the kernels.
        x: A few samples, in float64.
        copies: Whether the graph keeps copies.

    Returns:
        False where the logits change otherwise than autograd says, in a direction in which they
        change smoothly; where they have a kink autograd's choice is as good as any. False too
        where a convolution's input is no longer what it was, or where it cannot be found out.
    """
    given = _Inputs()
    with Network(model, {}, copies=copies, hooks=True).recording(), given:
        logits = call(model, x)
    nodes = ordered(logits.grad_fn)
    match_layouts(nodes)
    edges = {
        id(leaf.variable): users[0][0]
        for leaf, users in leaf_users(nodes).items()
        if id(leaf.variable) in kernels
    }
    for key, node in edges.items():
        before, now = given.seen.get(key), node._saved_input
        if before is not None and before.shape == now.shape and not torch.equal(before, now):
            return False
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)

    directions = [
        (draw(tuple(logits.shape)), {key: draw(shape_of(node)) for key, node in edges.items()})
        for _ in range(_DIRECTIONS)
    ]
    places = [GradientEdge(node, 0) for node in edges.values()]
    # All of them before the model is run again, which may change what the graph holds.
    found = [grad(logits, places, c, retain_graph=True, allow_unused=True) for c, _ in directions]
    for (c, changes), gradients in zip(directions, found, strict=True):
        (backward, outputs), (forward, _) = (
            _slope(model, x, c, logits.detach(), changes, step) for step in (-_STEP, _STEP)
        )
        if outputs.keys() != edges.keys():
            return False  # a convolution is called that Python does not see
        terms = [
            0.0 if gradient is None else float((gradient * outputs[key] * changes[key]).sum())
            for key, gradient in zip(edges, gradients, strict=True)
        ]
        scale = max(map(abs, [*terms, forward, backward]), default=0.0)
        smooth = abs(forward - backward) <= _TOLERANCE * scale
        if smooth and abs(forward - sum(terms)) > _TOLERANCE * scale:
            return False
    return True


def _slope(
    model: nn.Module, x: Tensor, c: Tensor, logits: Tensor, changes: dict[int, Tensor], step: float
) -> tuple[float, dict[int, Tensor]]:
    """Return the slope of <c, logits> as the outputs change, and the outputs."""
    moved = perturbing(changes, step)
    with torch.no_grad(), without_hooks(), moved:
        end = call(model, x)
    return float((c * (end - logits)).sum()) / step, moved.outputs
