"""One forward pass, with the graph recorded from the measured convolutions on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _force_original_view_tracking
from torch.autograd.graph import GradientEdge, saved_tensors_hooks

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.convolutions import leaf_users, problem, used_once
from flatsearch.flatness.geometry import ConvGeometry, recorded_geometry
from flatsearch.flatness.graph import ACCUMULATE, match_layouts, name_of, ordered
from flatsearch.flatness.operations import PASSIVE
from flatsearch.flatness.program import Program
from flatsearch.flatness.watch import without_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flatsearch.flatness.state import State

__all__ = [
    "CHANGED_IN_PLACE",
    "HIDDEN",
    "USED_ELSEWHERE",
    "ForwardError",
    "Layer",
    "Network",
    "Pass",
    "call",
    "classifier_input",
    "disagree",
    "forward",
    "influential",
]

# In the words of autograd.
CHANGED_IN_PLACE = "modified by an inplace operation"
# In those of exported programs, of which the second has been unflattened.
_OTHER_SHAPE = ("Guard failed: ", "Expected input at *args[0].shape[0] to be")
USED_ELSEWHERE = "its kernel is used elsewhere too, or changed before use"
HIDDEN = (
    "the logits depend on it, but no gradient reaches it: it runs under torch.no_grad, its output"
    " is detached, or reentrant gradient checkpointing hides it"
)

# The place of the data among the operands; that of the transposed weight is the next one.
_MATRIX_PRODUCTS = {"AddmmBackward0": 1, "MmBackward0": 0}


@dataclass(frozen=True)
class Layer:
    """A convolution to measure.

    Attributes:
        name: The layer's name.
        kernel: The name of the parameter that is its kernel.
        geometry: Kernel size, stride, dilation, padding, groups.
    """

    name: str
    kernel: str
    geometry: ConvGeometry


@dataclass
class Network:
    """The copy of a model that is measured.

    Attributes:
        model: The copy, in eval mode.
        kernels: The kernels that are measured, and the classifier's, by their layers' names.
        others: Kernels that no pass should use, by name: those that the probe has not seen.
        copies: Whether the graph keeps copies, because the model changes in place what it needs.
        hooks: Whether the model puts hooks on tensors on the way, which are left out.
        head: Whether the classifier's kernel is measured.
        keeping: Told of every tensor that the graph keeps.
        born: What the copy was before it was run, if what is proved of it holds for any weights.
        follow: Given what every pass of a batch has called, and its logits.
    """

    model: nn.Module
    kernels: dict[str, Tensor]
    others: dict[str, Tensor] = field(default_factory=dict)
    copies: bool = False
    hooks: bool = False
    head: bool = False
    keeping: Callable[[Tensor], None] | None = None
    born: State | None = None
    follow: Callable[[Program, Tensor], None] | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record operations in a way that all of them can be differentiated."""
        with contextlib.ExitStack() as stack:
            if self.copies or self.keeping is not None:
                stack.enter_context(saved_tensors_hooks(self._keep, _kept))
            if self.hooks:
                stack.enter_context(without_hooks())
            stack.enter_context(torch.enable_grad())
            # What is changed in place by way of a view stays that view's operation in the graph.
            stack.enter_context(_force_original_view_tracking(True))
            yield

    def run(self, x: Tensor) -> Tensor:
        """Return a batch's logits with the recorded graph, and hand on what was called."""
        with self.recording():
            if self.follow is None or self.born is None:
                return call(self.model, x)
            program = Program(self.born.tensors, x)
            with program:
                logits = call(self.model, x)
        self.follow(program, logits)
        return logits

    def _keep(self, tensor: Tensor) -> tuple[Tensor, int]:
        kept = tensor.detach().clone() if self.copies else tensor
        if self.keeping is not None:
            self.keeping(kept)
        return kept, kept._version


def _kept(saved: tuple[Tensor, int]) -> Tensor:
    kept, version = saved
    if kept._version != version:  # with hooks autograd does not look
        raise RuntimeError(f"what an operation needs has been {CHANGED_IN_PLACE}")
    return kept


@dataclass
class Pass:
    """What one forward pass gives.

    Attributes:
        logits: (N, K), with the graph.
        features: g, (N, C), what the linear classifier was given; the logits without one.
        inputs: The measured convolutions' inputs, by layer name; a layer that the logits do not
            depend on in this pass is missing.
        edges: Where their outputs entered the graph, by layer name.
    """

    logits: Tensor
    features: Tensor
    inputs: dict[str, Tensor]
    edges: dict[str, GradientEdge]


def disagree(a: Tensor, b: Tensor) -> Tensor:
    """Return whether two computations of one thing differ by more than rounding, a scalar.

    NaN agrees with NaN.
    """
    if a.shape != b.shape:
        return torch.ones((), dtype=torch.bool, device=b.device)
    if b.numel() == 0:
        return torch.zeros((), dtype=torch.bool, device=b.device)
    tolerance = 1e4 * torch.finfo(b.dtype).eps
    scale = b.nan_to_num(0, 0, 0).abs().amax()
    same = ((a - b).abs() <= tolerance * scale) | (a == b) | (a.isnan() & b.isnan())
    return ~same.all()


class ForwardError(RuntimeError):
    """A copy of a model has failed; the cause is what it has raised.

    Attributes:
        x: What it was given.

    Args:
        cause: What it has raised.
        x: What it was given.
    """

    def __init__(self, cause: Exception, x: Tensor) -> None:
        super().__init__(str(cause))
        self.x = x


def call(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits (N, K) of a copy of x: models may change their input in place.

    Raises:
        UnsupportedModelError: If they are something else.
        ForwardError: If the model fails.
        OutOfMemoryError: If there is not enough memory.
    """
    try:
        logits = model(x.clone())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if "nference tensor" in str(error):
            raise UnsupportedModelError(
                "a part of the model runs in torch.inference_mode, and nothing behind it can be"
                " differentiated; use torch.no_grad there"
            ) from error
        if "saved tensor hooks" in str(error):
            raise UnsupportedModelError(
                "the forward pass differentiates by torch.func, and what it records cannot be kept"
            ) from error
        if any(words in str(error) for words in _OTHER_SHAPE):
            raise UnsupportedModelError(
                f"the exported program does not take {len(x)} images at a time; export it with a"
                " dynamic batch: torch.export.export(model, (x,), dynamic_shapes=({0:"
                " torch.export.Dim('n')},))"
            ) from error
        raise ForwardError(error, x) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(
            f"the model must return logits of shape (N, K) but gave {shape} for {len(x)} images"
        )
    if logits.shape[1] < 2:
        raise UnsupportedModelError(
            "the model gives one logit per image, of which the softmax is always 1: the measure is"
            " of at least 2 classes"
        )
    return logits


def influential(model: nn.Module, kernels: dict[str, Tensor], x: Tensor) -> list[str]:
    """Return which kernels the logits depend on, whether or not autograd knows of it.

    NaN in a kernel shows wherever its layer's output goes.
    """
    if not kernels:
        return []
    with torch.no_grad():
        plain = call(model, x)
        if not _show(list(kernels.values()), model, x, plain):
            return []
        return [name for name, kernel in kernels.items() if _show([kernel], model, x, plain)]


def _show(kernels: list[Tensor], model: nn.Module, x: Tensor, plain: Tensor) -> bool:
    originals = [kernel.data for kernel in kernels]
    try:
        for kernel in kernels:
            kernel.data = torch.full_like(kernel.data, torch.nan)
        return not torch.equal(call(model, x), plain)
    except ForwardError:  # it does not take NaN
        return True
    finally:
        for kernel, original in zip(kernels, originals, strict=True):
            kernel.data = original


def classifier_input(logits: Tensor) -> tuple[Tensor, Any] | None:
    """Return what the linear classifier was given, and the leaf of its weight.

    That is g (N, C), with the graph, and the leaf of V (K, C) where the logits are g V^T, plus a
    bias; None where they are something else.
    """
    node: Any = logits.grad_fn
    while node is not None and name_of(node) in PASSIVE:
        node = node.next_functions[0][0]
    if node is None or name_of(node) not in _MATRIX_PRODUCTS:
        return None
    place = _MATRIX_PRODUCTS[name_of(node)]
    transposed = node.next_functions[place + 1][0]
    if transposed is None or transposed.name() != "TBackward0":
        return None
    weight = transposed.next_functions[0][0]
    scaled = place == 1 and (node._saved_alpha, node._saved_beta) != (1, 1)
    if weight.name() != ACCUMULATE or scaled:
        return None
    features: Tensor = node._saved_mat1 if place == 1 else node._saved_self
    return (features, weight) if len(features) == len(logits) else None


def forward(network: Network, x: Tensor, layers: Sequence[Layer], classifier: str | None) -> Pass:
    """Run the model once and record the graph from the measured convolutions on.

    Args:
        network: Of whose parameters only its `kernels` and `others` require gradients, so that
            nothing is recorded before the first of them.
        x: A batch of inputs.
        layers: The measured convolutions.
        classifier: The linear classifier's name; None if the network ends without one.

    Returns:
        What it gives.

    Raises:
        UnsupportedModelError: If the forward pass differs from the one that was probed.
    """
    logits = network.run(x)
    features = logits
    if classifier is not None:
        head = classifier_input(logits)
        if head is None or head[1].variable is not network.kernels[classifier]:
            raise UnsupportedModelError(
                f"layer {classifier!r}: the logits are not this linear layer's weight"
                " times its input, plus its bias"
            )
        features = head[0]
        if network.head and not used_once(ordered(logits.grad_fn), head[1]):
            raise UnsupportedModelError(f"layer {classifier!r}: {USED_ELSEWHERE}")
    run = Pass(logits, features, {}, {})
    if layers:
        _read(run, network, layers)
    missing = {
        layer.name: network.kernels[layer.name] for layer in layers if layer.name not in run.edges
    }
    hidden = influential(network.model, missing, x)
    if hidden:
        raise UnsupportedModelError(f"layer {hidden[0]!r}: {HIDDEN}")
    return run


def _read(run: Pass, network: Network, layers: Sequence[Layer]) -> None:
    """Take the convolutions' inputs and edges from the graph, which proves what they are."""
    nodes = ordered(run.logits.grad_fn)
    match_layouts(nodes)
    measured = {id(network.kernels[layer.name]): layer for layer in layers}
    others = {id(kernel): name for name, kernel in network.others.items()}
    for leaf, users in leaf_users(nodes).items():
        if id(leaf.variable) in others:
            raise UnsupportedModelError(
                f"layer {others[id(leaf.variable)]!r}: the layers that are called depend on the"
                " input"
            )
        layer = measured.get(id(leaf.variable))
        if layer is None:
            continue
        why = problem(leaf, users, len(run.logits))
        node = users[0][0]
        if not why and recorded_geometry(node) != layer.geometry:
            why = "its stride, dilation or padding depends on the input"
        if why:
            raise UnsupportedModelError(f"layer {layer.name!r}: {why}")
        try:
            run.inputs[layer.name] = node._saved_input.detach()
        except AssertionError as error:  # hooks of the model's on what the graph keeps
            raise UnsupportedModelError(
                f"layer {layer.name!r}: the model cannot be differentiated: {error}"
            ) from error
        run.edges[layer.name] = GradientEdge(node, 0)
