"""What the recorded autograd graph of a tail proves.

The graph holds the operations that were executed on this very batch, with their shapes and
arguments, so a property that every one of them has is a property of the tail; names of layers
say nothing and are not consulted. The lists below are not complete and need not be: what they do
not prove is decided on numbers by `tail`.

A tail is *channelwise* if g_c of sample n depends on channel c of sample n alone: every tensor
keeps (N, C) as its first two dimensions, and every operation works within them. It is
*piecewise linear* if every operation is, and *pointwise* if everything that is not comes before
anything that combines positions, so that second derivatives couple no two positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.autograd.function import BackwardCFunction

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["Proof", "examine"]

_ACCUMULATE = "torch::autograd::AccumulateGrad"
_ELEMENTWISE = frozenset({
    "AliasBackward0",
    "CloneBackward0",
    "ClampBackward1",
    "EluBackward0",
    "GeluBackward0",
    "HardsigmoidBackward0",
    "HardswishBackward0",
    "HardtanhBackward0",
    "LeakyReluBackward0",
    "MishBackward0",
    "ReluBackward0",
    "SigmoidBackward0",
    "SiluBackward0",
    "SoftplusBackward0",
    "TanhBackward0",
})
_BINARY = frozenset({"AddBackward0", "MulBackward0", "SubBackward0"})
_POOLING = frozenset({
    "AdaptiveAvgPool2DBackward0",
    "AdaptiveMaxPool2DBackward0",
    "AvgPool2DBackward0",
    "MaxPool2DWithIndicesBackward0",
    "MkldnnAdaptiveAvgPool2DBackward0",
})
_BATCH_NORM = frozenset({"CudnnBatchNormBackward0", "NativeBatchNormBackward0"})
_REDUCING = frozenset({"MeanBackward1", "SelectBackward0", "SumBackward1"})
_RESHAPING = frozenset({
    "SliceBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
})
# Those that work position by position.
_POINTWISE = _ELEMENTWISE | _BINARY | _BATCH_NORM | {_ACCUMULATE}
_KNOWN = _POINTWISE | _POOLING | _REDUCING | _RESHAPING
# Those that are not piecewise linear in their inputs.
_SMOOTH = frozenset({
    "EluBackward0",
    "GeluBackward0",
    "HardswishBackward0",
    "MishBackward0",
    "MulBackward0",
    "SigmoidBackward0",
    "SiluBackward0",
    "SoftplusBackward0",
    "TanhBackward0",
})


@dataclass(frozen=True)
class Proof:
    """What is proven; False only says that it is not.

    Attributes:
        channelwise: g_c of sample n depends on channel c of sample n alone.
        piecewise_linear: Second derivatives vanish almost everywhere.
        pointwise: Second derivatives couple no two positions.
        own: Every derivative is torch's own; a hand-written one may itself have none.
    """

    channelwise: bool
    piecewise_linear: bool
    pointwise: bool
    own: bool


def _shape(node: Any) -> tuple[int, ...]:
    """Return the shape of what an operation returned."""
    if node.name() == _ACCUMULATE:
        return tuple(node.variable.shape)
    return tuple(node._input_metadata[0].shape)


def _dimensions(node: Any) -> list[int]:
    """Return the dimensions an operation reduces, counted from the front."""
    saved = node._saved_dim
    total = len(node._saved_self_sym_sizes)
    # Negative ones are stored modulo 2^64.
    return [
        d - 2**64 + total if d >= 2**63 else d
        for d in (saved if isinstance(saved, tuple) else (saved,))
    ]


def _keeps_channels(node: Any, inputs: list[Any], lead: tuple[int, int]) -> bool:
    """Return whether an operation works within (N, C); its inputs are checked in their turn."""
    name, shape = node.name(), _shape(node)
    if shape[:2] != lead:
        return False
    if name in _BINARY:
        # Equal rank: broadcasting then aligns (N, C) with (N, C).
        return all(len(_shape(previous)) == len(shape) for previous in inputs)
    if name in _POOLING:
        return all(len(_shape(previous)) == 4 for previous in inputs)
    if name in _BATCH_NORM:
        return _is_affine(node)
    if name in _REDUCING:
        return min(_dimensions(node), default=0) >= 2
    return name == _ACCUMULATE or name in _ELEMENTWISE or name in _RESHAPING


def _is_affine(node: Any) -> bool:
    """Return whether a batch norm uses stored statistics, and a gain that A has no part in."""
    only_images = all(previous is None for previous, _ in node.next_functions[1:])
    return not node._saved_training and only_images


def _is_linear(node: Any) -> bool:
    name = node.name()
    return _is_affine(node) if name in _BATCH_NORM else name in _KNOWN - _SMOOTH


def _inputs(node: Any) -> list[Any]:
    return [previous for previous, _ in node.next_functions if previous is not None]


def _ordered(features: Tensor) -> list[Any]:
    """Return the graph's nodes, each after all of its inputs."""
    ordered: list[Any] = []
    seen: set[Node] = set()
    todo: list[tuple[Any, bool]] = [(features.grad_fn, False)]
    while todo:
        node, done = todo.pop()
        if done:
            ordered.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            todo.append((node, True))
            todo.extend((previous, False) for previous in _inputs(node))
    return ordered


def examine(features: Tensor, output: Tensor) -> Proof:
    """Walk the graph from the pooled features to the convolution's output.

    Args:
        features: g, (N, C).
        output: A, (N, C, rows, columns), a leaf of the graph.

    Returns:
        What the operations in between prove.
    """
    lead = (output.shape[0], output.shape[1])
    channelwise = tuple(features.shape) == lead and output.is_leaf
    linear = pointwise = own = True
    combined: set[Node] = set()  # nodes whose value may combine positions
    for node in _ordered(features):
        name, inputs = node.name(), _inputs(node)
        own = own and not isinstance(node, BackwardCFunction)
        linear = linear and _is_linear(node)
        channelwise = channelwise and _keeps_channels(node, inputs, lead)
        after = any(previous in combined for previous in inputs)
        if after or name not in _POINTWISE:
            combined.add(node)
        # What is not listed is not known to be pointwise either.
        pointwise = pointwise and name in _KNOWN and (_is_linear(node) or not after)
    return Proof(channelwise, linear, channelwise and pointwise, own)
