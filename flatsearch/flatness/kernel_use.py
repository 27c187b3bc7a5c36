"""The proof that a kernel is used once, as one plain convolution (or linear layer).

A kernel that is shared, is reparametrised or is used in any other way has another gradient than
the derivation assumes: autograd's own gradient of it is compared with the one of a plain layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.graph import get_gradient_edge

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.forward import State, disagree

if TYPE_CHECKING:
    from flatsearch.flatness.geometry import ConvGeometry
    from flatsearch.flatness.probe import Call, Probe

__all__ = ["prove_linear", "prove_plain"]


def prove_plain(
    probe: Probe, calls: list[Call], geometries: list[ConvGeometry], state: State
) -> None:
    """Check that autograd's kernel gradients are sum_n g_n Z_n^T, those of plain convolutions.

    Args:
        probe: The recorded forward pass.
        calls: Of the convolutions.
        geometries: Theirs.
        state: Parameters and buffers of the pass.

    Raises:
        UnsupportedModelError: If one is not; names the layer.
    """
    edges = [call.edge for call in calls if call.edge is not None]
    weights = [state[f"{call.name}.weight"] for call in calls]
    edges += [get_gradient_edge(weight) for weight in weights]
    gradients = grad(
        probe.logits, edges, _cotangent(probe.logits), retain_graph=True, allow_unused=True
    )
    through, expected = gradients[: len(calls)], gradients[len(calls) :]
    users = _users(probe.logits)
    for conv, geometry, g, gradient, weight in zip(
        calls, geometries, through, expected, weights, strict=True
    ):
        if g.shape[2:] == geometry.output_size(*conv.input_value.shape[2:]):
            ours = _kernel_gradient(conv.input_value, g, geometry).view(weight.shape)
            proven = gradient is not None and not bool(disagree(ours, gradient))
            # The numbers are those of two images, and of first derivatives; that nothing else is
            # done with the kernel or its output the recorded operations have to prove.
            if proven and _used_once(users, conv, weight):
                continue
        raise UnsupportedModelError(
            f"layer {conv.name!r}: its kernel is not used as one plain convolution"
            " (shared, changed before use, or its output changed by a hook)"
        )


def _cotangent(logits: Tensor) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)


def _kernel_gradient(x: Tensor, g: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return sum_n g_n Z_n^T, written down once more without the routines it is to check."""
    padded = geometry.pad(x)
    groups = geometry.groups
    g = torch.unflatten(g, 1, (groups, -1))
    padded = torch.unflatten(padded, 1, (groups, -1))
    columns = [
        torch.einsum("ngcij,ngzij->gcz", g, padded[..., rows, cols])
        for rows, cols in geometry.shifts(*g.shape[3:])
    ]
    return torch.stack(columns, -1)


def _users(logits: Tensor) -> dict[Any, list[Any]]:
    """Return the operations that take each operation's result."""
    users: dict[Any, list[Any]] = {}
    todo, seen = [logits.grad_fn], set()
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for previous, _ in node.next_functions:
            if previous is not None:
                users.setdefault(previous, []).append(node)
                todo.append(previous)
    return users


def _used_once(users: dict[Any, list[Any]], call: Call, weight: Tensor) -> bool:
    """Return whether the only operation on a kernel is the convolution that was called."""
    found = users.get(get_gradient_edge(weight).node, [])
    node: Any = None if call.edge is None else call.edge.node
    return found == [node] and node.name() == "ConvolutionBackward0"


def _is_linear_of(logits: Tensor, weight: Tensor) -> bool:
    """Return whether the logits are a matrix product with a kernel that nothing else uses."""
    users = _users(logits)
    node: Any = logits.grad_fn
    while node is not None and node.name() in {"AliasBackward0", "CloneBackward0"}:
        node = node.next_functions[0][0]
    transposed = users.get(get_gradient_edge(weight).node, [])
    return (
        node is not None
        and node.name() in {"AddmmBackward0", "MmBackward0"}
        and [n.name() for n in transposed] == ["TBackward0"]
        and users[transposed[0]] == [node]
    )


def prove_linear(probe: Probe, name: str, features: Tensor, state: State) -> None:
    """Check that autograd's gradient of the classifier's kernel is sum_n c_n g_n^T.

    Args:
        probe: The recorded forward pass.
        name: The classifier's.
        features: Its input, (N, C).
        state: Parameters and buffers of the pass.

    Raises:
        UnsupportedModelError: If it is not.
    """
    cotangent = _cotangent(probe.logits)
    weight = state[f"{name}.weight"]
    (gradient,) = grad(probe.logits, weight, cotangent, retain_graph=True, allow_unused=True)
    ours = cotangent.T @ features.detach()
    plain = gradient is not None and not bool(disagree(ours, gradient))
    if not (plain and _is_linear_of(probe.logits, weight)):
        raise UnsupportedModelError(
            f"layer {name!r}: its kernel is used elsewhere too, or changed before use"
        )
