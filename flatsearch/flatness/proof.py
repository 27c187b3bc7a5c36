"""What the recorded autograd graph proves about the layers after a convolution.

The graph holds the operations that were executed on this very batch, with their shapes and
arguments, so a property that every one of them has is a property of the network behind the
convolution; names of layers say nothing and are not consulted. `operations` has what is known.

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

from flatsearch.flatness import operations as ops
from flatsearch.flatness.graph import dimensions, dtype_of, inputs, name_of, ordered, shape_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.autograd.graph import GradientEdge

__all__ = ["Proof", "examine", "keep_samples"]


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


class _Reach(dict[Any, int]):
    """The convolutions that each node's value depends on; none for what is not a node."""

    def __missing__(self, _: object) -> int:
        return 0

    def into(self, node: Any) -> int:
        """Return those that an operation's operands depend on."""
        result = 0
        for previous in inputs(node):
            result |= self[previous]
        return result

    def operands(self, node: Any) -> list[Any]:
        """Return the operands that depend on any."""
        return [previous for previous in inputs(node) if self[previous]]


def _is_affine(node: Any, reach: _Reach) -> bool:
    """Return whether a batch norm uses stored statistics, and a gain that A has no part in."""
    parameters = (previous for previous, _ in node.next_functions[1:])
    return not node._saved_training and not any(reach[previous] for previous in parameters)


def _curved(node: Any, reach: _Reach) -> int:
    """Return the convolutions that an operation may be curved in."""
    name = name_of(node)
    if name in ops.PRODUCTS:
        first, second = (reach[node.next_functions[i][0]] for i in ops.PRODUCTS[name])
        return second if name == "DivBackward0" else first & second
    if name in ops.LINEAR or (name in ops.BATCH_NORM and _is_affine(node, reach)):
        return 0
    return reach.into(node)


def _keeps_channels(node: Any, reach: _Reach, lead: tuple[int, int]) -> bool:
    """Return whether an operation works within (N, C); its operands are checked in their turn."""
    name, shape = name_of(node), shape_of(node)
    ranks = {len(shape_of(previous)) for previous in reach.operands(node)}
    if shape[:2] != lead:
        return False
    if name in ops.BROADCASTING:
        return ranks == {len(shape)}  # broadcasting then aligns (N, C) with (N, C)
    if name in ops.POOLING:
        return ranks == {4}
    if name in ops.BATCH_NORM:
        return _is_affine(node, reach)
    if name in ops.REDUCING:
        return min(dimensions(node._saved_dim, max(ranks)), default=0) >= 2
    if name == "PreluKernelBackward0":
        return not reach[node.next_functions[1][0]]
    if name == "ConvolutionBackward0":
        # depthwise, one filter per channel
        depthwise = node._saved_groups == lead[1] and ranks == {4} and not node._saved_transposed
        return depthwise and not any(reach[previous] for previous, _ in node.next_functions[1:])
    return name in ops.CHANNELWISE


def _keeps_samples(node: Any, reach: _Reach, n: int) -> bool:
    """Return whether an operation works within each sample."""
    name, shape, operands = name_of(node), shape_of(node), reach.operands(node)
    shapes = [shape_of(previous) for previous in operands]
    if any(s[:1] != (n,) for s in [shape, *shapes]):
        return False
    same_rank = all(len(s) == len(shape) for s in shapes)
    if name in ops.PRODUCTS and name not in ops.ENTRYWISE_PRODUCTS | {"BmmBackward0"}:
        # one operand holds samples, the others are weights
        data = node.next_functions[ops.PRODUCTS[name][0]][0]
        return len(operands) == 1 and operands[0] is data and same_rank
    if name in ops.BATCH_NORM:
        return _is_affine(node, reach)
    if name in ops.POOLING:
        return len(shape) == 4 and same_rank
    if name in ops.JOINING:
        # a stack adds a dimension, so its own rank is what counts
        return 0 not in dimensions(node._saved_dim, len(shape))
    if name in ops.REDUCING or name in ops.SPLITTING:
        return 0 not in dimensions(node._saved_dim, len(shapes[0])) and (node._saved_dim != ())
    if name == "PermuteBackward0":
        return dimensions(node._saved_dims, len(shape))[0] == 0
    if name == "TransposeBackward0":
        saved = (node._saved_dim0, node._saved_dim1)
        return 0 not in dimensions(saved, len(shape))
    if name in ops.NORMALISING and any(reach[n] for n, _ in node.next_functions[1:]):
        return False  # a gain computed from the samples
    if name == "NativeLayerNormBackward0":
        return len(node._saved_normalized_shape) < len(shape)
    if name in ops.RESHAPING or name in {"BmmBackward0", "NativeGroupNormBackward0"}:
        return True
    return same_rank and (name in ops.KINKED | ops.CURVED | ops.BROADCASTING)


def keep_samples(logits: Tensor, images: Any) -> bool:
    """Return whether every operation from the images to the logits works within each sample.

    Args:
        logits: (N, K), with a graph that is recorded from the images on.
        images: The leaf of the images, (N, ...), at least two of them.

    Returns:
        False too where the logits do not depend on the images.
    """
    reach = _Reach({images: 1})
    for node in ordered(logits.grad_fn):
        if node is images:
            continue
        reach[node] = reach.into(node)
        if reach[node] and not _keeps_samples(node, reach, logits.shape[0]):
            return False
    return bool(reach[logits.grad_fn])


def _is_linear_head(logits: Any, features: Any, reach: _Reach) -> bool:
    """Return whether the logits are one linear layer of the features, with constant weights."""
    while name_of(logits) in ops.PASSIVE:
        logits = logits.next_functions[0][0]
    if name_of(logits) not in {"AddmmBackward0", "MmBackward0"}:
        return False
    place, _ = ops.PRODUCTS[name_of(logits)]
    operands = [previous for previous, _ in logits.next_functions]
    constants = [operand for i, operand in enumerate(operands) if i != place]
    return operands[place] is features and not any(reach[operand] for operand in constants)


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
    tail = set(ordered(features.grad_fn))
    order = ordered(logits.grad_fn)
    bits = {edge.node: 1 << i for i, edge in enumerate(taps.values())}
    reach = _Reach()
    combined: dict[Any, int] = {}  # convolutions whose positions the node's value may combine
    curved = mixing = coupling = 0
    samplewise = True
    for node in order:
        bit, into = bits.get(node, 0), reach.into(node)
        if bit and shape_of(node)[:2] != lead:
            mixing |= bit
        together = 0
        for previous in inputs(node):
            together |= combined[previous]
        if into:
            unusual = any(dtype_of(one).is_complex for one in [node, *reach.operands(node)])
            bent = into if unusual else _curved(node, reach)
            curved |= bent
            if node in tail:
                # A curved operation that is not entrywise couples positions by itself.
                coupling |= bent & together if name_of(node) in ops.POINTWISE else bent
                if name_of(node) in ops.ONCE or unusual:
                    coupling |= into
                if not _keeps_channels(node, reach, lead):
                    mixing |= into
            samplewise = samplewise and _keeps_samples(node, reach, n)
            if name_of(node) not in ops.POINTWISE:
                together |= into
        combined[node] = together
        reach[node] = into | bit
    names = {name: 1 << i for i, name in enumerate(taps)}

    def without(mask: int) -> frozenset[str]:
        return frozenset(name for name, bit in names.items() if not mask & bit)

    # A convolution that the logits of this batch do not depend on is nobody's channel.
    absent = ~reach[logits.grad_fn]
    plain = features is logits or _is_linear_head(logits.grad_fn, features.grad_fn, reach)
    channelwise = without(mixing | absent) if plain else frozenset[str]()
    pointwise = channelwise & without(coupling)
    return Proof(samplewise or n == 1, without(curved), channelwise, pointwise)
