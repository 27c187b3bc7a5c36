"""One forward pass, with the graph recorded from the measured convolutions on."""

from __future__ import annotations

import contextlib
import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn.parameter import UninitializedParameter

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.graph import match_layouts, ordered
from flatsearch.networks.inference import eval_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flatsearch.flatness.geometry import ConvGeometry

__all__ = [
    "Layer",
    "Pass",
    "State",
    "call",
    "copy_state",
    "disagree",
    "forward",
    "hooks",
    "layer_input",
    "measuring",
]

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A convolution to measure.

    Attributes:
        name: Its name in `model.named_modules()`.
        geometry: Kernel, stride, dilation, padding, groups.
        input_changes: The model changes the convolution's input in place later on.
        output_changes: The model changes the convolution's output in place.
    """

    name: str
    geometry: ConvGeometry
    input_changes: bool = False
    output_changes: bool = False


@dataclass
class Pass:
    """What one forward pass gives.

    Attributes:
        logits: (N, K), with the graph.
        features: g, (N, C), what the linear classifier was given; the logits without one.
        inputs: The measured convolutions' inputs, by layer name.
        edges: Where their outputs entered the graph, by layer name.
        irregular: Whether the logits are something else than the classifier's kernel and bias
            applied to the features; a scalar on the device, so that nothing waits for it.
    """

    logits: Tensor
    features: Tensor
    inputs: dict[str, Tensor]
    edges: dict[str, GradientEdge]
    irregular: Tensor


@contextlib.contextmanager
def hooks(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove hooks afterwards."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _precise() -> Callable[[], None]:
    """Switch off TF32 and bfloat16 in float32 products; return what switches them back."""
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # since torch 2.9
        switches = [
            backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv,
        ]  # fmt: skip
        before = [switch.fp32_precision for switch in switches]
        for switch in switches:
            switch.fp32_precision = "ieee"

        def restore() -> None:
            for switch, precision in zip(switches, before, strict=True):
                switch.fp32_precision = precision

        return restore
    matmul, convolution = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False

    def restore_legacy() -> None:
        torch.set_float32_matmul_precision(matmul)
        backends.cudnn.allow_tf32 = convolution

    return restore_legacy


class _FullPrecision:
    """No TF32 and no bfloat16 in float32 products; the switches as they were afterwards.

    The switches are the process's. Of several threads that measure at the same time the first
    one sets them, and the last one sets them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._restore = _precise()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore()


_full_precision = _FullPrecision()


@contextlib.contextmanager
def measuring(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, full precision and gradients on; everything as it was afterwards."""
    with (
        _full_precision,
        eval_mode(model),
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def copy_state(model: nn.Module, dtype: torch.dtype) -> State:
    """Return detached parameters and buffers, floating-point ones in the measure's precision.

    Args:
        model: Whose.
        dtype: The precision.

    Returns:
        By name; shared ones once.

    Raises:
        UnsupportedModelError: If the model has not been built to the end.
    """
    state = {}
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        if isinstance(value, UninitializedParameter):
            raise UnsupportedModelError(
                f"parameter {name!r} of a lazy layer has no shape yet; run the model once before"
            )
        state[name] = value.detach().to(dtype) if value.is_floating_point() else value.detach()
    return state


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a layer's input, however it was passed."""
    source: Tensor = args[0] if args else kwargs["input"]
    return source


def disagree(a: Tensor, b: Tensor) -> Tensor:
    """Return whether two computations of one thing differ by more than rounding, a scalar.

    NaN agrees with NaN.
    """
    if a.shape != b.shape:
        return torch.ones((), dtype=torch.bool, device=b.device)
    if b.numel() == 0:
        return torch.zeros((), dtype=torch.bool, device=b.device)
    tolerance = 1e4 * torch.finfo(b.dtype).eps
    if b.device.type == "cpu" and bool((a - b).abs().amax() <= tolerance * b.abs().amax()):
        return torch.zeros((), dtype=torch.bool)  # the same, and nothing in it is NaN
    scale = b.nan_to_num(0, 0, 0).abs().amax()
    same = ((a - b).abs() <= tolerance * scale) | (a == b) | (a.isnan() & b.isnan())
    return ~same.all()


def call(model: nn.Module, state: State, x: Tensor) -> Tensor:
    """Return the logits (N, K) of a copy of x: models may change their input in place.

    Args:
        model: In eval mode.
        state: Parameters and buffers to use.
        x: A batch of inputs.

    Returns:
        The logits.

    Raises:
        UnsupportedModelError: If they are something else.
    """
    logits = functional_call(model, state, (x.clone(),))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(
            f"the model must return logits of shape (N, K) but gave {shape} for {len(x)} images"
        )
    return logits


class _Taps:
    """Hooks that record the measured convolutions' inputs, and where their outputs enter."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self.inputs: dict[str, tuple[Tensor, int]] = {}
        self.edges: dict[str, GradientEdge] = {}
        self.features: list[Tensor] = []

    def tap(self, layer: Layer) -> Callable[..., Tensor]:
        def hook(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            if layer.name in self.inputs:
                raise UnsupportedModelError(f"layer {layer.name!r}: it is called more than once")
            source = layer_input(args, kwargs).detach()
            if output.ndim != 4 or len(output) != self._samples:
                raise UnsupportedModelError(
                    f"layer {layer.name!r}: it gives {tuple(output.shape)} for {self._samples}"
                    " samples, not one map of channels for each"
                )
            if layer.input_changes or source.is_inference():
                source = source.clone()
            self.inputs[layer.name] = (source, source._version)
            # In place, so that whoever else keeps this tensor is seen to use it.
            tracked = output.clone() if output.is_inference() else output
            leaf = not tracked.requires_grad
            if leaf:
                tracked.requires_grad_()
            self.edges[layer.name] = get_gradient_edge(tracked)
            return tracked.clone() if leaf and layer.output_changes else tracked

        return hook

    def keep_features(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.features.append(layer_input(args, kwargs))


def forward(
    model: nn.Module, state: State, x: Tensor, layers: Sequence[Layer], classifier: str | None
) -> Pass:
    """Run the model once and record the graph from the measured convolutions on.

    Args:
        model: In eval mode.
        state: Parameters and buffers to use, none of which requires a gradient, so that
            nothing is recorded before the first measured convolution.
        x: A batch of inputs.
        layers: The measured convolutions.
        classifier: The linear classifier's name; None if the network ends without one.

    Returns:
        Logits, features, and each measured convolution's input and edge.

    Raises:
        UnsupportedModelError: If the forward pass differs from the one that was probed.
    """
    taps = _Taps(len(x))
    handles = [
        model.get_submodule(layer.name).register_forward_hook(taps.tap(layer), with_kwargs=True)
        for layer in layers
    ]
    if classifier is not None:
        head = model.get_submodule(classifier)
        handles.append(head.register_forward_pre_hook(taps.keep_features, with_kwargs=True))
    with hooks(handles), torch.enable_grad():
        logits = call(model, state, x)
    for layer in layers:
        if layer.name not in taps.inputs:
            raise UnsupportedModelError(
                f"layer {layer.name!r}: the layers that are called depend on the input"
            )
        source, version = taps.inputs[layer.name]
        if source._version != version:
            raise UnsupportedModelError(f"layer {layer.name!r}: its input is changed in place")
    if layers and logits.grad_fn is None:
        raise UnsupportedModelError(f"layer {layers[-1].name!r}: no gradient reaches it")
    match_layouts(ordered(logits.grad_fn))
    features, irregular = logits, torch.zeros((), dtype=torch.bool, device=x.device)
    if classifier is not None:
        if len(taps.features) != 1:
            raise UnsupportedModelError(
                f"layer {classifier!r}: the layers that are called depend on the input"
            )
        features = taps.features[0]
        V, bias = state[f"{classifier}.weight"], state.get(f"{classifier}.bias")
        irregular = disagree(F.linear(features.detach(), V, bias), logits.detach())
    inputs = {name: source for name, (source, _) in taps.inputs.items()}
    return Pass(logits, features, inputs, taps.edges, irregular)
