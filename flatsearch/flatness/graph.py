"""What the recorded autograd graph of a tail proves.

The graph holds the operations that were executed on this very batch, with their shapes and
arguments, so a property that every one of them has is a property of the tail; names of layers
say nothing and are not consulted. The lists below are not complete and need not be: what they do
not prove is decided on numbers by `tail`.

A tail is *channelwise* if g_c of sample n depends on channel c of sample n alone: every tensor
keeps (N, C) as its first two dimensions, and every operation works within them. It is
*piecewise linear* if every operation is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.autograd.graph import Node

__all__ = ["Proof", "examine"]

_ACCUMULATE = "torch::autograd::AccumulateGrad"
# Per operation: is it piecewise linear in its inputs?
_ELEMENTWISE = {
    "AliasBackward0": True,
    "CloneBackward0": True,
    "ClampBackward1": True,
    "EluBackward0": False,
    "GeluBackward0": False,
    "HardswishBackward0": False,
    "HardtanhBackward0": True,
    "LeakyReluBackward0": True,
    "MishBackward0": False,
    "ReluBackward0": True,
    "SigmoidBackward0": False,
    "SiluBackward0": False,
    "SoftplusBackward0": False,
    "TanhBackward0": False,
}
_BINARY = {"AddBackward0": True, "MulBackward0": False, "SubBackward0": True}
_POOLING = {
    "AdaptiveAvgPool2DBackward0": True,
    "AdaptiveMaxPool2DBackward0": True,
    "AvgPool2DBackward0": True,
    "MaxPool2DWithIndicesBackward0": True,
    "MkldnnAdaptiveAvgPool2DBackward0": True,
}
_BATCH_NORM = {"CudnnBatchNormBackward0": True, "NativeBatchNormBackward0": True}
_REDUCING = {"MeanBackward1": True, "SelectBackward0": True, "SumBackward1": True}
_RESHAPING = {
    "SliceBackward0": True,
    "SqueezeBackward0": True,
    "SqueezeBackward1": True,
    "SqueezeBackward2": True,
    "UnsafeViewBackward0": True,
    "UnsqueezeBackward0": True,
    "ViewBackward0": True,
}
_LINEAR = _ELEMENTWISE | _BINARY | _POOLING | _BATCH_NORM | _REDUCING | _RESHAPING


@dataclass(frozen=True)
class Proof:
    """What is proven; False only says that it is not.

    Attributes:
        channelwise: g_c of sample n depends on channel c of sample n alone.
        piecewise_linear: Second derivatives vanish almost everywhere.
    """

    channelwise: bool
    piecewise_linear: bool


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
        return not node._saved_training
    if name in _REDUCING:
        return min(_dimensions(node), default=0) >= 2
    return name == _ACCUMULATE or name in _ELEMENTWISE or name in _RESHAPING


def examine(features: Tensor, output: Tensor) -> Proof:
    """Walk the graph from the pooled features to the convolution's output.

    Args:
        features: g, (N, C).
        output: A, (N, C, rows, columns), a leaf of the graph.

    Returns:
        What the operations in between prove.
    """
    lead = (output.shape[0], output.shape[1])
    channelwise = linear = tuple(features.shape) == lead and output.is_leaf
    seen: set[Node] = set()
    todo = [features.grad_fn]
    while todo and (channelwise or linear):
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [previous for previous, _ in node.next_functions if previous is not None]
        name = node.name()
        if name != _ACCUMULATE:
            trained = name in _BATCH_NORM and node._saved_training  # type: ignore[attr-defined]
            linear = linear and _LINEAR.get(name, False) and not trained
        channelwise = channelwise and _keeps_channels(node, inputs, lead)
        todo.extend(inputs)
    return Proof(channelwise, linear)
