"""Which convolution is the last one of a network's main path.

The last convolution that is *executed* may be one that few would call the last: the projection of
a shortcut, one of a side branch, or in squeeze-and-excitation that of the gate, which is a dense
layer on one pooled position. The *main path* is the longest path from the images to the logits,
counted in convolutions, those behind a global pooling left out. Of several that are equally long
the one counts whose last convolution is executed last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flatsearch.flatness import operations as ops
from flatsearch.flatness.graph import inputs, ordered, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["last_of_main_path"]

# They leave one position where they leave one; other poolings shrink maps on the way.
_GLOBAL = (ops.REDUCING - {"SelectBackward0"}) | {
    "AdaptiveAvgPool2DBackward0",
    "AdaptiveMaxPool2DBackward0",
    "MkldnnAdaptiveAvgPool2DBackward0",
}


def last_of_main_path(logits: Tensor, convolutions: Sequence[Any]) -> int:
    """Return which of the convolutions, in order of execution, is the last of the main path."""
    places = {node: place for place, node in enumerate(convolutions)}
    steps: dict[Any, int] = {}  # convolutions on the longest path up to a node
    pooled: set[Any] = set()
    longest = (0, 0)
    for node in ordered(logits.grad_fn):
        before = [previous for previous in inputs(node) if steps[previous]]
        steps[node] = max((steps[previous] for previous in before), default=0)
        behind = bool(before) and all(previous in pooled for previous in before)
        if node in places and not behind:
            steps[node] += 1
            longest = max(longest, (steps[node], places[node]))
        one = steps[node] > 0 and math.prod(shape_of(node)[2:]) == 1
        if behind or (one and node.name() in _GLOBAL):
            pooled.add(node)  # in any shape: a gate may convolve along the channels
    return longest[1]
