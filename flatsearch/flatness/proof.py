"""What the recorded autograd graph proves about the layers after a convolution.

The graph holds the operations that were executed on this very batch, with their shapes and
arguments, so a property that every one of them has is a property of the network behind the
convolution; names of layers say nothing and are not consulted. The lists below are not complete
and need not be: what is not on them counts as not proven, and the measure then takes the way
that needs no such property.

For a convolution with output A, the logits are *piecewise linear* in A if no operation between
them is curved in what depends on A. The tail from A to the features g (N, C) is *channelwise* if
g_c of sample n depends on channel c of sample n alone: every tensor keeps (N, C) as its first two
dimensions, and every operation works within them. It is *pointwise* if everything curved comes
before anything that combines positions, so that second derivatives couple no two positions.

All convolutions are judged in one walk from their outputs to the logits. A set of convolutions is
the bits of an integer, so a union is an `|`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.autograd.graph import GradientEdge, Node

__all__ = ["Proof", "examine", "pooling"]

_ACCUMULATE = "torch::autograd::AccumulateGrad"
# Entry by entry, of one tensor; linear almost everywhere. Where there are two derivatives of one
# operation, the second is that of its variant in place.
_KINKED = frozenset({
    "AbsBackward0",
    "AliasBackward0",
    "ClampBackward1",
    "ClampMaxBackward0",
    "ClampMinBackward0",
    "CloneBackward0",
    "HardshrinkBackward0",
    "HardsigmoidBackward0",
    "HardtanhBackward0",
    "LeakyReluBackward0",
    "LeakyReluBackward1",
    "NegBackward0",
    "ReluBackward0",
    "RsubBackward1",
    "SoftshrinkBackward0",
    "ThresholdBackward0",
    "ThresholdBackward1",
    "ToCopyBackward0",
})
_CURVED = frozenset({
    "CeluBackward0",
    "CeluBackward1",
    "EluBackward0",
    "EluBackward1",
    "ErfBackward0",
    "ExpBackward0",
    "GeluBackward0",
    "HardswishBackward0",
    "LogSigmoidBackward0",
    "MishBackward0",
    "PowBackward0",
    "SigmoidBackward0",
    "SiluBackward0",
    "SoftplusBackward0",
    "TanhBackward0",
})
# Their derivative cannot be differentiated again, so second derivatives in front are out of reach.
_ONCE = frozenset({"HardsigmoidBackward0"})
# Entry by entry, of several tensors, with broadcasting.
_SUMS = frozenset({
    "AddBackward0",
    "ClampBackward0",
    "MaximumBackward0",
    "MinimumBackward0",
    "SubBackward0",
    "WhereBackward0",
})
_ENTRYWISE_PRODUCTS = frozenset({"DivBackward0", "MulBackward0"})
_BROADCASTING = _SUMS | _ENTRYWISE_PRODUCTS
# Bilinear: which of their operands (edges) are multiplied with each other.
_PRODUCTS = {
    "AddmmBackward0": (1, 2),
    "BmmBackward0": (0, 1),
    "ConvolutionBackward0": (0, 1),
    "DivBackward0": (0, 1),
    "MmBackward0": (0, 1),
    "MulBackward0": (0, 1),
    "PreluKernelBackward0": (0, 1),
}
# Within the channels of one sample, on 4d tensors.
_POOLING = frozenset({
    "AdaptiveAvgPool2DBackward0",
    "AdaptiveMaxPool2DBackward0",
    "AvgPool2DBackward0",
    "MaxPool2DWithIndicesBackward0",
    "MkldnnAdaptiveAvgPool2DBackward0",
    "ReflectionPad2DBackward0",
    "ReplicationPad2DBackward0",
    "UpsampleBilinear2DBackward0",
    "UpsampleNearest2DBackward0",
})
_BATCH_NORM = frozenset({"CudnnBatchNormBackward0", "NativeBatchNormBackward0"})
_REDUCING = frozenset({
    "AmaxBackward0",
    "AminBackward0",
    "MaxBackward0",
    "MeanBackward1",
    "MinBackward0",
    "SelectBackward0",
    "SumBackward1",
})
_RESHAPING = frozenset({
    "SliceBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
})
_JOINING = frozenset({"CatBackward0", "StackBackward0"})
_SPLITTING = frozenset({"SplitBackward0", "SplitWithSizesBackward0", "UnbindBackward0"})
_NORMALISING = frozenset({"NativeGroupNormBackward0", "NativeLayerNormBackward0"})
# Linear, and nothing more is asked of them.
_MOVING = frozenset({
    "ChannelShuffleBackward0",
    "ConstantPadNdBackward0",
    "ExpandBackward0",
    "FlipBackward0",
    "IndexBackward0",
    "IndexSelectBackward0",
    "MeanBackward0",
    "PermuteBackward0",
    "PixelShuffleBackward0",
    "PixelUnshuffleBackward0",
    "RepeatBackward0",
    "RollBackward0",
    "SumBackward0",
    "TBackward0",
    "TransposeBackward0",
})
_LINEAR = (
    _KINKED | _SUMS | _POOLING | _REDUCING | _RESHAPING | _JOINING | _SPLITTING | _MOVING
)  # fmt: skip
_POINTWISE = _KINKED | _CURVED | _BROADCASTING | _BATCH_NORM | {"PreluKernelBackward0"}
_CHANNELWISE = _KINKED | _CURVED | _RESHAPING


@dataclass(frozen=True)
class Proof:
    """What is proven; an absent name only says that it is not.

    Attributes:
        samplewise: The logits of sample n depend, behind the convolutions, on sample n alone.
        linear: The convolutions in whose output the logits are piecewise linear.
        channelwise: Those the closed form holds for: their tail is channelwise, and the logits
            are one linear layer of the features.
        pointwise: Those of them whose second derivatives couple no two positions, and can be had.
    """

    samplewise: bool
    linear: frozenset[str]
    channelwise: frozenset[str]
    pointwise: frozenset[str]


def _shape(node: Any) -> tuple[int, ...]:
    """Return the shape of what an operation returned, the first if it returned several."""
    if node.name() == _ACCUMULATE:
        return tuple(node.variable.shape)
    return tuple(node._input_metadata[0].shape)


def _is_complex(node: Any) -> bool:
    if node.name() == _ACCUMULATE:
        return bool(node.variable.is_complex())
    return bool(node._input_metadata[0].dtype.is_complex)


def _inputs(node: Any) -> list[Any]:
    return [previous for previous, _ in node.next_functions if previous is not None]


def _dimensions(saved: int | tuple[int, ...], rank: int) -> list[int]:
    """Return dimensions counted from the front; negative ones are stored modulo 2^64."""
    every = saved if isinstance(saved, tuple) else (saved,)
    return [d - 2**64 + rank if d >= 2**63 else d % rank if rank else d for d in every]


def _ordered(root: Any) -> list[Any]:
    """Return the graph's nodes, each after all of its inputs."""
    ordered: list[Any] = []
    seen: set[Node] = set()
    todo: list[tuple[Any, bool]] = [(root, False)]
    while todo:
        node, done = todo.pop()
        if done:
            ordered.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            todo.append((node, True))
            todo.extend((previous, False) for previous in _inputs(node))
    return ordered


class _Reach(dict[Any, int]):
    """The convolutions that each node's value depends on; none for what is not a node."""

    def __missing__(self, _: object) -> int:
        return 0

    def into(self, node: Any) -> int:
        """Return those that an operation's operands depend on."""
        result = 0
        for previous in _inputs(node):
            result |= self[previous]
        return result

    def operands(self, node: Any) -> list[Any]:
        """Return the operands that depend on any."""
        return [previous for previous in _inputs(node) if self[previous]]


def _is_affine(node: Any, reach: _Reach) -> bool:
    """Return whether a batch norm uses stored statistics, and a gain that A has no part in."""
    parameters = (previous for previous, _ in node.next_functions[1:])
    return not node._saved_training and not any(reach[previous] for previous in parameters)


def _curved(node: Any, reach: _Reach) -> int:
    """Return the convolutions that an operation may be curved in."""
    name = node.name()
    if name in _PRODUCTS:
        first, second = (reach[node.next_functions[i][0]] for i in _PRODUCTS[name])
        return second if name == "DivBackward0" else first & second
    if name in _LINEAR or (name in _BATCH_NORM and _is_affine(node, reach)):
        return 0
    return reach.into(node)


def _keeps_channels(node: Any, reach: _Reach, lead: tuple[int, int]) -> bool:
    """Return whether an operation works within (N, C); its operands are checked in their turn."""
    name, shape = node.name(), _shape(node)
    ranks = {len(_shape(previous)) for previous in reach.operands(node)}
    if shape[:2] != lead:
        return False
    if name in _BROADCASTING:
        return ranks == {len(shape)}  # broadcasting then aligns (N, C) with (N, C)
    if name in _POOLING:
        return ranks == {4}
    if name in _BATCH_NORM:
        return _is_affine(node, reach)
    if name in _REDUCING:
        return min(_dimensions(node._saved_dim, max(ranks)), default=0) >= 2
    if name == "PreluKernelBackward0":
        return not reach[node.next_functions[1][0]]
    if name == "ConvolutionBackward0":
        # depthwise, one filter per channel
        depthwise = node._saved_groups == lead[1] and ranks == {4} and not node._saved_transposed
        return depthwise and not any(reach[previous] for previous, _ in node.next_functions[1:])
    return name in _CHANNELWISE


def _keeps_samples(node: Any, reach: _Reach, n: int) -> bool:
    """Return whether an operation works within each sample."""
    name, shape, operands = node.name(), _shape(node), reach.operands(node)
    shapes = [_shape(previous) for previous in operands]
    if any(s[:1] != (n,) for s in [shape, *shapes]):
        return False
    same_rank = all(len(s) == len(shape) for s in shapes)
    if name in _PRODUCTS and name not in _ENTRYWISE_PRODUCTS | {"BmmBackward0"}:
        # one operand holds samples, the others are weights
        data = node.next_functions[_PRODUCTS[name][0]][0]
        return len(operands) == 1 and operands[0] is data and same_rank
    if name in _BATCH_NORM:
        return _is_affine(node, reach)
    if name in _POOLING:
        return len(shape) == 4 and same_rank
    if name in _JOINING:
        # a stack adds a dimension, so its own rank is what counts
        return 0 not in _dimensions(node._saved_dim, len(shape))
    if name in _REDUCING or name in _SPLITTING:
        return 0 not in _dimensions(node._saved_dim, len(shapes[0])) and (node._saved_dim != ())
    if name == "PermuteBackward0":
        return _dimensions(node._saved_dims, len(shape))[0] == 0
    if name == "TransposeBackward0":
        saved = (node._saved_dim0, node._saved_dim1)
        return 0 not in _dimensions(saved, len(shape))
    if name in _NORMALISING and any(reach[n] for n, _ in node.next_functions[1:]):
        return False  # a gain computed from the samples
    if name == "NativeLayerNormBackward0":
        return len(node._saved_normalized_shape) < len(shape)
    if name in _RESHAPING or name in {"BmmBackward0", "NativeGroupNormBackward0"}:
        return True
    return same_rank and (name in _KINKED | _CURVED | _BROADCASTING)


def _is_linear_head(nodes: set[Any], features: Any) -> bool:
    """Return whether the nodes between features and logits are one linear layer of the features."""
    matrix = [node for node in nodes if node.name() in {"AddmmBackward0", "MmBackward0"}]
    passive = {"AliasBackward0", "CloneBackward0", "UnsafeViewBackward0", "ViewBackward0"}
    if len(matrix) != 1 or any(n.name() not in passive for n in nodes if n not in matrix):
        return False
    data, _ = _PRODUCTS[matrix[0].name()]
    below = {previous for node in nodes for previous in _inputs(node)} - nodes
    # neither the weights nor the bias may depend on the features
    return below == {features} and _inputs(matrix[0]) == [matrix[0].next_functions[data][0]]


def examine(logits: Tensor, features: Tensor, taps: Mapping[str, GradientEdge]) -> Proof:
    """Walk the graph from the convolutions' outputs to the logits.

    Args:
        logits: (N, K).
        features: g, (N, C), what the linear classifier was given; the logits themselves if the
            network ends without one.
        taps: Where each convolution's output entered the graph, by its name.

    Returns:
        What the operations in between prove.
    """
    n = logits.shape[0]
    lead = (n, features.shape[1] if features.ndim == 2 else 0)
    tail = set(_ordered(features.grad_fn))
    order = _ordered(logits.grad_fn)
    plain = features is logits or _is_linear_head(set(order) - tail, features.grad_fn)
    bits = {edge.node: 1 << i for i, edge in enumerate(taps.values())}
    reach = _Reach()
    combined: dict[Any, int] = {}  # convolutions whose positions the node's value may combine
    curved = mixing = coupling = 0
    samplewise = True
    for node in order:
        bit, into = bits.get(node, 0), reach.into(node)
        if bit and _shape(node)[:2] != lead:
            mixing |= bit
        together = 0
        for previous in _inputs(node):
            together |= combined[previous]
        if into:
            unusual = any(map(_is_complex, [node, *reach.operands(node)]))
            bent = into if unusual else _curved(node, reach)
            curved |= bent
            if node in tail:
                # A curved operation that is not entrywise couples positions by itself.
                coupling |= bent & together if node.name() in _POINTWISE else bent
                if node.name() in _ONCE or unusual:
                    coupling |= into
                if not _keeps_channels(node, reach, lead):
                    mixing |= into
            samplewise = samplewise and _keeps_samples(node, reach, n)
            if node.name() not in _POINTWISE:
                together |= into
        combined[node] = together
        reach[node] = into | bit
    names = {name: 1 << i for i, name in enumerate(taps)}

    def without(mask: int) -> frozenset[str]:
        return frozenset(name for name, bit in names.items() if not mask & bit)

    # A convolution that the logits of this batch do not depend on is nobody's channel.
    absent = ~reach[logits.grad_fn]
    channelwise = without(mixing | absent) if plain else frozenset[str]()
    pointwise = channelwise & without(coupling)
    return Proof(samplewise or n == 1, without(curved), channelwise, pointwise)


def pooling(logits: Tensor, tap: GradientEdge) -> str:
    """Say what happens to the positions of a convolution's output on the way to the logits.

    Args:
        logits: (N, K).
        tap: Where the output, (N, C, rows, columns), entered the graph.

    Returns:
        "global" if something reduces all positions to one, "flattened" if several are handed to
        a dense layer side by side, "none" otherwise.
    """
    reach = _Reach()
    result = "none"
    for node in _ordered(logits.grad_fn):
        if node is tap.node:
            reach[node] = 1
            if _positions(_shape(node)) == 1:
                result = "global"
        elif reach.into(node):
            reach[node] = 1
            shape = _shape(node)
            before = max(_positions(_shape(previous)) for previous in reach.operands(node))
            if node.name() in {"UnsafeViewBackward0", "ViewBackward0"}:
                maps = _shape(reach.operands(node)[0])
                flat = len(maps) == 4 and len(shape) == 2 and shape[0] == maps[0]
                if flat and before > 1:
                    return "flattened"
            elif before > 1 and _positions(shape) == 1 and node.name() != "SelectBackward0":
                result = "global"
    return result


def _positions(shape: tuple[int, ...]) -> int:
    """Return the number of positions of maps (N, C, ...); 1 for features."""
    count = 1
    for size in shape[2:]:
        count *= size
    return count
