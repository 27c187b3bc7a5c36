"""Which convolutions a forward pass has recorded, and whether the derivation covers them.

The derivation holds for a kernel that is a parameter and is used once, as the kernel of one plain
2d convolution. All of it is read off the recorded operations, whoever called them: autograd keeps
the very input and the arguments of every convolution, and says which operations took the kernel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.graph import ACCUMULATE, inputs, shape_of, source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flatsearch.flatness.parameters import Parameters
    from flatsearch.flatness.patches import ByHand

__all__ = ["Convolution", "find_convolutions", "leaf_users", "problem", "used_once"]

_CONVOLUTION = "ConvolutionBackward0"
_BACKWARD = "ConvolutionBackwardBackward0"
# Operation and place of its operand.
User = tuple[Any, int]


@dataclass(frozen=True)
class Convolution:
    """A convolution with a kernel to be measured, as it was recorded.

    Attributes:
        name: The layer's name.
        kernel: The name of the parameter that is its kernel, or that the kernel comes from.
        node: The operation; None if none was recorded.
        problem: Why the derivation does not cover it; empty if it does.
        by_hand: Whether it is one that is written as something else.
    """

    name: str
    kernel: str
    node: Any
    problem: str = ""
    by_hand: bool = False


def leaf_users(nodes: Sequence[Any]) -> dict[Any, list[User]]:
    """Return the operations that take each tensor that requires a gradient, or a copy of it."""
    users: dict[Any, list[User]] = {node: [] for node in nodes if node.name() == ACCUMULATE}
    for node in nodes:
        if node is not source(node):
            continue
        for place, (previous, _) in enumerate(node.next_functions):
            leaf = source(previous)
            if leaf in users:
                users[leaf].append((node, place))
    return users


def find_convolutions(
    nodes: Sequence[Any],
    parameters: Parameters,
    samples: int,
    called: Sequence[Tensor] = (),
    by_hand: Sequence[ByHand] = (),
) -> list[Convolution]:
    """Return all convolutions behind whose kernel there is a parameter, in order of execution.

    Args:
        nodes: A forward pass in which all parameters required gradients.
        parameters: The model's.
        samples: N.
        called: Kernels that convolutions were called with, recorded or not.
        by_hand: Products that are convolutions.

    Returns:
        Every such convolution once, those that are not covered with the reason.

    Raises:
        UnsupportedModelError: If a kernel is a tensor that the model does not know as its own.
    """
    users, every = leaf_users(nodes), set(nodes)
    found: dict[str, tuple[int, Convolution]] = {}

    def note(node: Any, leaf: Any, why: str, *, by_hand: bool = False) -> None:
        names = parameters.names(leaf.variable)
        if not names:
            raise UnsupportedModelError(
                f"a convolution's kernel of shape {tuple(leaf.variable.shape)} is no parameter of"
                " the model, but of something that the model refers to"
            )
        layer = parameters.layer(names[0])
        if layer not in found or (why and not found[layer][1].problem):
            one = Convolution(layer, names[0], node, why, by_hand)
            found[layer] = node._sequence_nr(), one

    for node in nodes:
        for leaf, why in _convolved(node, users, parameters, samples):
            note(node, leaf, why)
    leaves = {id(leaf.variable): leaf for leaf in users}
    for weight, product, how in by_hand:
        leaf = _nearest(weight.grad_fn) if weight.grad_fn else leaves.get(id(weight))
        if leaf is not None and leaf.variable.ndim >= 2:
            # Inside of hand-written operations nothing is recorded.
            node = users[leaf][0][0] if product is None else product
            if node in every:
                why = f"its kernel is not used as one plain convolution, but {how}"
                note(node, leaf, why, by_hand=True)
    # What convolves comes first: a kernel that it is computed from has other users too.
    kernels = {id(kernel) for kernel in called}
    for leaf, takers in users.items():
        names = parameters.names(leaf.variable)
        if id(leaf.variable) in kernels or any(map(parameters.is_kernel, names)):
            node = takers[0][0]
            if leaf.variable.ndim >= 3 and "conv" not in node.name().lower():
                by = _word(node)
                note(node, leaf, f"its kernel is not used as one plain convolution, but by {by}")
    return [convolution for _, convolution in sorted(found.values(), key=lambda item: item[0])]


def _convolved(
    node: Any, users: dict[Any, list[User]], parameters: Parameters, samples: int
) -> list[tuple[Any, str]]:
    """Return the leaves of the kernels of a convolution, each with what is wrong about it."""
    if node.name() == _CONVOLUTION:
        weight = source(node.next_functions[1][0])
        if weight is None:  # a fixed filter
            return []
        if weight.name() == ACCUMULATE:
            why = problem(weight, users[weight], samples)
            return [(weight, _with_names(why, parameters, weight, node))]
        leaf = _nearest(weight)
        if leaf is None or (_CONVOLUTION, 1) in {(user.name(), i) for user, i in users[leaf]}:
            return []  # what another convolution gives is no parameter
        name = parameters.names(leaf.variable)[:1]
        how = parameters.computation(name[0]) if name else ""
        return [(leaf, f"its kernel is not used as one plain convolution: it {how}")]
    if "conv" not in node.name().lower():
        return []
    leaves = [previous for previous in inputs(node) if previous.name() == ACCUMULATE]
    kernels = [leaf for leaf in leaves if leaf.variable.ndim >= 3]
    if node.name() == _BACKWARD:  # which takes what was convolved, too
        kernels = [leaf for leaf in kernels if parameters.names(leaf.variable)]
    return [(leaf, _not_covered(parameters, leaf, node)) for leaf in kernels]


def problem(leaf: Any, users: Sequence[User], samples: int) -> str:
    """Return why a kernel is not used as the derivation assumes; nothing if it is.

    It is the end of a sentence that starts with the layer.
    """
    convolutions = [node for node, place in users if (node.name(), place) == (_CONVOLUTION, 1)]
    others = Counter(_word(node) for node, place in users if node not in convolutions)
    if others:
        return f"its kernel is not used as one plain convolution, but also by {', '.join(others)}"
    if len(convolutions) > 1:
        return f"its kernel is used {len(convolutions)} times in one pass"
    node, output = convolutions[0], shape_of(convolutions[0])
    if node._saved_transposed or leaf.variable.ndim != 4:
        return "not covered"
    if output[0] != samples:
        return f"it gives {output} for {samples} samples, not one map of channels for each"
    return ""


def used_once(nodes: Sequence[Any], leaf: Any) -> bool:
    """Return whether a linear layer's weight is transposed and multiplied once, and that is all."""
    users = leaf_users(nodes)[leaf]
    transposed = users[0][0]
    products = [node for node in nodes for one, _ in node.next_functions if one is transposed]
    return len(users) == 1 and transposed.name() == "TBackward0" and len(products) == 1


def _with_names(why: str, parameters: Parameters, leaf: Any, node: Any) -> str:
    names = parameters.names(leaf.variable)
    if why == "not covered":
        return _not_covered(parameters, leaf, node)
    if why.endswith("in one pass") and len(names) > 1:
        return f"{why}, shared by {' and '.join(names)}"
    return why


def _not_covered(parameters: Parameters, leaf: Any, node: Any) -> str:
    names = parameters.names(leaf.variable)
    kind = parameters.kind(names[0]) if names and parameters.is_kernel(names[0]) else _word(node)
    return f"{kind} is not covered, only plain 2d convolutions"


def _word(node: Any) -> str:
    """Return an operation's name as users know it."""
    return str(node.name()).rstrip("0123456789").removesuffix("Backward")


def _nearest(node: Any) -> Any:
    """Return the leaf that the fewest operations separate from one."""
    level, seen = [node], {node}
    while level:
        for one in level:
            if one.name() == ACCUMULATE:
                return one
        level = [previous for one in level for previous in inputs(one) if previous not in seen]
        seen.update(level)
    return None
