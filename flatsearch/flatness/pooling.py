"""What becomes of the positions of a convolution's output on the way to the logits.

Every dimension of every tensor behind the convolution is followed as a row-major product of
factors, each of which counts samples, positions or something else: a reshape merges factors and
takes them apart again, a transposition moves them, a matrix product sums over some. Maps are
*pooled* where an operation gets positions and hands none on, however that is written: a mean, a
product with a vector of weights, or attention with one query.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from flatsearch.flatness import operations as ops
from flatsearch.flatness.graph import dimensions, inputs, name_of, ordered, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

__all__ = ["pooling"]

Kind = Literal["sample", "position", "other"]
Factors = list[tuple[Kind, int]]

_RESHAPES = (ops.RESHAPING - {"SliceBackward0"}) | {"AliasBackward0"}
# They leave the other positions out, which is no pooling.
_PICKING = ops.SPLITTING | {
    *("GatherBackward0", "IndexBackward0", "IndexSelectBackward0"),
    *("SelectBackward0", "SliceBackward0"),
}
_MATRIX_PRODUCTS = {"AddmmBackward0", "BmmBackward0", "MmBackward0"}


def pooling(logits: Tensor, convolution: Any) -> Literal["global", "flattened", "none"]:
    """Say what happens to the positions of a convolution's output on the way to the logits.

    Args:
        logits: (N, K).
        convolution: The operation, as recorded, that gave (N, C, rows, columns).

    Returns:
        "global" if something reduces all positions to one, "flattened" if several are handed to
        a dense layer side by side, "none" otherwise.
    """
    behind: dict[Any, list[Factors]] = {}
    result: Literal["global", "none"] = "none"
    for node in ordered(logits.grad_fn):
        if node is convolution:
            n, channels, *positions = shape_of(node)
            start: list[Factors] = [[("sample", n)], [("other", channels)]]
            behind[node] = start + [[("position", size)] for size in positions]
            if math.prod(positions) == 1:
                result = "global"
            continue
        operands = [previous for previous in inputs(node) if previous in behind]
        if not operands:
            continue
        before = [behind[operand] for operand in operands]
        after = behind[node] = _follow(node, behind)
        if name_of(node) in _RESHAPES and len(after) == 2 and _has(after[:1], "sample"):
            if _has(after[1:], "position") and not _has(after[:1], "position", "other"):
                return "flattened"
        elif (
            node.name() not in _PICKING
            and any(_has(dims, "position") for dims in before)
            and not _has(after, "position")
        ):
            result = "global"
    return result


def _has(dims: Sequence[Factors], *kinds: Kind) -> bool:
    return any(kind in kinds and size > 1 for factors in dims for kind, size in factors)


def _follow(node: Any, behind: dict[Any, list[Factors]]) -> list[Factors]:
    """Return the dimensions of an operation's result."""
    name, shape = name_of(node), shape_of(node)
    operand = next(previous for previous in inputs(node) if previous in behind)
    dims = behind[operand]
    if name == "torch::autograd::CopySlices" and node.next_functions[0][0] in behind:
        return behind[node.next_functions[0][0]]  # what it is changed in, in place
    if name in _RESHAPES:
        return list(_regroup([factor for factors in dims for factor in factors], shape))
    if name == "TransposeBackward0":
        order = list(range(len(shape)))
        a, b = dimensions((node._saved_dim0, node._saved_dim1), len(shape))
        order[a], order[b] = order[b], order[a]
        return [dims[d] for d in order]
    if name == "TBackward0":
        return dims[::-1]
    if name == "PermuteBackward0":
        return [dims[d] for d in dimensions(node._saved_dims, len(shape))]
    if name == "Im2ColBackward0":
        return [dims[0], [("other", shape[1])], [("position", shape[2])]]
    if name in _MATRIX_PRODUCTS:
        left, right = (node.next_functions[i][0] for i in ops.PRODUCTS[name])
        rows, columns = (behind.get(matrix, [[]] * len(shape)) for matrix in (left, right))
        batch = [a or b for a, b in zip(rows[:-2], columns[:-2], strict=True)]
        return _fit([*batch, rows[-2], columns[-1]], shape)
    if name.startswith("ScaledDotProduct"):
        query = behind.get(node.next_functions[0][0])
        # the keys' and values' positions are summed over
        return _fit([*dims[:-2], [] if query is None else query[-2], []], shape)
    if name in ops.REDUCING | {"LogsumexpBackward0", "UnbindBackward0"} and len(dims) > len(shape):
        gone = dimensions(node._saved_dim, len(dims))
        dims = [factors for d, factors in enumerate(dims) if d not in gone]
    if len(dims) > len(shape):
        # an operation that is not known: it has positions still, unless it gives features
        unknown: list[Factors] = [[] if len(shape) < 3 else [("position", d)] for d in shape]
        return [*_fit(dims[: len(shape[:1])], shape[:1]), *unknown[1:]]
    every = [dims, *(behind[previous] for previous in inputs(node) if previous in behind)]
    aligned: list[list[Factors]] = [
        [[]] * (len(shape) - len(d)) + d for d in every if len(d) <= len(shape)
    ]
    return _fit([_first(candidates) for candidates in zip(*aligned, strict=True)], shape)


def _first(candidates: Sequence[Factors]) -> Factors:
    """Return the factors of the operand that brings most to a dimension."""
    return max(candidates, key=lambda factors: (_has([factors], "position"), len(factors)))


def _fit(dims: list[Factors], shape: tuple[int, ...]) -> list[Factors]:
    """Return dimensions of the sizes that they have: cut, padded, joined or reduced."""
    fitted: list[Factors] = []
    for factors, size in zip(dims, shape, strict=True):
        if size == 1:
            fitted.append([])
        elif math.prod(s for _, s in factors) == size and factors:
            fitted.append(factors)
        else:
            kind: Kind = "position" if _has([factors], "position") else "other"
            fitted.append([(kind, size)])
    return fitted


def _regroup(factors: Factors, shape: tuple[int, ...]) -> Iterator[Factors]:
    """Yield the dimensions of a row-major reshape."""
    todo = [factor for factor in factors if factor[1] != 1]
    for size in shape:
        group: Factors = []
        while size > 1 and todo:
            kind, most = todo.pop(0)
            part = math.gcd(most, size)
            if part == 1:  # the boundaries do not meet: what is inside cannot be told apart
                kind = "position" if _has([[(kind, most)], todo], "position") else kind
                group.append((kind, size))
                break
            group.append((kind, part))
            if most > part:
                todo.insert(0, (kind, most // part))
            size //= part
        yield group
