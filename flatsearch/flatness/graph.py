"""Reading the graph of operations that autograd has recorded for a forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

__all__ = [
    "ACCUMULATE",
    "dimensions",
    "dtype_of",
    "inputs",
    "match_layouts",
    "name_of",
    "ordered",
    "shape_of",
    "source",
]

# The leaf of a tensor that requires a gradient, `node.variable`.
ACCUMULATE = "torch::autograd::AccumulateGrad"
_COPIES = frozenset({"AliasBackward0", "CloneBackward0"})
# The same derivatives of what is reshaped in place.
_IN_PLACE = {
    "SqueezeBackward3": "SqueezeBackward0",
    "SqueezeBackward4": "SqueezeBackward1",
    "SqueezeBackward5": "SqueezeBackward2",
    "TransposeBackward1": "TransposeBackward0",
    "UnsqueezeBackward1": "UnsqueezeBackward0",
}


def _returned(node: Any) -> Any:
    return node.variable if node.name() == ACCUMULATE else node._input_metadata[0]


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of what an operation returned, the first if it returned several.

    Nested tensors have none.
    """
    returned = _returned(node)
    return () if getattr(returned, "is_nested_tensor", False) else tuple(returned.shape)


def dtype_of(node: Any) -> torch.dtype:
    """Return the precision of what an operation returned, the first if it returned several."""
    dtype: torch.dtype = _returned(node).dtype
    return dtype


def inputs(node: Any) -> list[Any]:
    """Return the operations whose results an operation was given, as far as recorded."""
    return [previous for previous, _ in node.next_functions if previous is not None]


def name_of(node: Any) -> str:
    """Return an operation's name; that of a view where it only hands on what it is given.

    That is what a hook on a module's gradients records, and the strides that global average
    pooling gives its result where channels are last in memory.
    """
    name: str = node.name()
    if name == "BackwardHookFunctionBackward" and len(node.next_functions) == 1:
        return "AliasBackward0"
    if name == "AsStridedBackward1":
        previous, (n, channels, *rest) = node.next_functions[0][0], shape_of(node)
        strides = (channels, 1, channels, channels)
        plain = node._saved_storage_offset in {None, 0} and tuple(node._saved_stride) == strides
        mean = previous is not None and previous.name() == "MeanBackward1"
        if mean and plain and rest == [1, 1] and shape_of(previous) == (n, channels, 1, 1):
            return "AliasBackward0"
    return _IN_PLACE.get(name, name)


def source(node: Any) -> Any:
    """Return the operation behind copies, which are made for another layout in memory, say."""
    while node is not None and node.name() in _COPIES:
        node = node.next_functions[0][0]
    return node


def dimensions(saved: int | tuple[int, ...], rank: int) -> list[int]:
    """Return dimensions counted from the front; negative ones are stored modulo 2^64."""
    every = saved if isinstance(saved, tuple) else (saved,)
    return [d - 2**64 + rank if d >= 2**63 else d % rank if rank else d for d in every]


def ordered(root: Any) -> list[Any]:
    """Return the graph's nodes, each after all of its inputs."""
    found: list[Any] = []
    seen: set[Any] = set()
    todo: list[tuple[Any, bool]] = [(root, False)]
    while todo:
        node, done = todo.pop()
        if done:
            found.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            todo.append((node, True))
            todo.extend((previous, False) for previous in inputs(node))
    return found


def match_layouts(nodes: Iterable[Any]) -> None:
    """Make batch norms differentiate gradients that lie in memory as their inputs do.

    On a CPU `native_batch_norm_backward` takes a gradient of shape (1, C, H, W) that lies
    channels-last for a contiguous one, and returns wrong numbers without a word; the same holds
    for maps of one row or column, and for instance norm, which is a batch norm of one sample
    (docs/torch-channels-last.md). Gradients come to lie so behind attention, for example.

    Args:
        nodes: The operations; those that are no batch norms are left alone.
    """
    for node in nodes:
        if node.name() == "NativeBatchNormBackward0":
            node.register_prehook(_laying_out_as(node._saved_input))


def _laying_out_as(like: Tensor) -> Callable[[tuple[Tensor | None, ...]], tuple[Any, ...] | None]:
    stride = like.stride()
    dense = torch.empty_like(like, device="meta").stride() == stride

    def lay_out(gradients: tuple[Tensor | None, ...]) -> tuple[Any, ...] | None:
        gradient, *others = gradients
        if gradient is None or gradient.stride() == stride:
            return None
        if not dense:
            return (gradient.contiguous(), *others)
        return (gradient.new_empty_strided(gradient.shape, stride).copy_(gradient), *others)

    return lay_out
