"""Which convolutions are measured, and the proof that the derivation applies to them.

Everything is read off one forward pass of the first two samples: which modules are called, in
which order, how often, and what their kernels' gradients are. A kernel that is shared, is
reparametrised or is used in any other way than a plain convolution has another gradient than
the closed form assumes, and is refused by name.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.contraction import ConvGeometry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Layer", "Pass", "State", "forward", "locate"]

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A convolution to measure.

    Attributes:
        name: Its name in `model.named_modules()`.
        geometry: Kernel, stride, dilation, padding.
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
        logits: (N, K).
        features: g, (N, C), the classifier's input.
        inputs: The measured convolutions' inputs, by layer name.
        outputs: Their outputs, tracked by autograd, by layer name.
    """

    logits: Tensor
    features: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    """One call of a convolution during the probe.

    Attributes:
        name: The layer's name.
        input: What the model gave it.
        input_value: A copy of that, which nothing changes.
        output: What the model went on with.
        versions: Of input and output, at the time of the call.
        edge: Where to differentiate; None if nothing is recorded.
    """

    name: str
    input: Tensor
    input_value: Tensor
    output: Tensor
    versions: tuple[int, int]
    edge: GradientEdge | None


@contextlib.contextmanager
def _hooks(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward(
    model: nn.Module, state: State, x: Tensor, layers: Sequence[Layer], classifier: str
) -> Pass:
    """Run the model once and record the graph from the measured convolutions on.

    Args:
        model: In eval mode.
        state: Parameters and buffers to use, none of which requires a gradient, so that
            nothing is recorded before the first measured convolution.
        x: A batch of inputs.
        layers: The measured convolutions.
        classifier: The linear classifier's name.

    Returns:
        Logits, features, and each measured convolution's input and output.

    Raises:
        UnsupportedModelError: If the forward pass differs from the one that was probed.
    """
    inputs: dict[str, tuple[Tensor, int]] = {}
    outputs: dict[str, Tensor] = {}
    features: list[Tensor] = []

    def tap(layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            source = args[0].detach()
            source = source.clone() if layer.input_changes else source
            inputs[layer.name] = (source, source._version)
            tracked = output if output.requires_grad else output.detach().requires_grad_()
            outputs[layer.name] = tracked
            return tracked.clone() if layer.output_changes else tracked

        return hook

    def keep_features(_: nn.Module, args: tuple[Any, ...]) -> None:
        features.append(args[0])

    handles = [model.get_submodule(a.name).register_forward_hook(tap(a)) for a in layers]
    handles.append(model.get_submodule(classifier).register_forward_pre_hook(keep_features))
    with _hooks(handles), torch.enable_grad():
        logits = functional_call(model, state, (x,))
    for layer in layers:
        if layer.name not in inputs or len(features) != 1:
            raise UnsupportedModelError(
                f"layer {layer.name!r}: the layers that are called depend on the input"
            )
        source, version = inputs[layer.name]
        if source._version != version:
            raise UnsupportedModelError(f"layer {layer.name!r}: its input is changed in place")
    return Pass(logits, features[0], {k: v for k, (v, _) in inputs.items()}, outputs)


def _geometry(name: str, conv: nn.Conv2d) -> ConvGeometry:
    """Read a convolution's geometry, refusing what the closed form does not cover."""
    if conv.groups != 1:
        raise UnsupportedModelError(
            f"layer {name!r}: grouped convolutions are not covered (groups={conv.groups})"
        )
    kh, kw = conv.kernel_size
    dilation = (conv.dilation[0], conv.dilation[1])
    if conv.padding == "valid":
        padding = (0, 0, 0, 0)
    elif conv.padding == "same":
        # torch pads the odd pixel at the end
        rows, columns = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
        padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    else:
        ph, pw = cast("tuple[int, int]", conv.padding)
        padding = (int(pw), int(pw), int(ph), int(ph))
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return ConvGeometry((kh, kw), (conv.stride[0], conv.stride[1]), dilation, padding, mode)


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(
                f"layer {name!r}: batch norm without running statistics couples the samples of a"
                " batch; use track_running_stats=True"
            )


def _probe(
    model: nn.Module, state: State, x: Tensor
) -> tuple[list[_Call], list[tuple[str, Tensor, Tensor]], Tensor]:
    """Run two samples; return calls of convolutions, of linear layers, and the logits."""
    convs: list[_Call] = []
    linears: list[tuple[str, Tensor, Tensor]] = []
    names = {module: name for name, module in model.named_modules()}

    sources: list[Tensor] = []

    # The model works on copies of the convolutions' inputs and outputs, so that a change in
    # place shows on the version of what it was given.
    def before_conv(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        sources.append(args[0])
        return (args[0].clone(), *args[1:])

    def on_conv(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        source, passed = sources.pop(), output.clone()
        edge = get_gradient_edge(output) if output.requires_grad else None
        versions = (source._version, passed._version)
        convs.append(_Call(names[module], source, args[0].detach(), passed, versions, edge))
        return passed

    def on_linear(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        linears.append((names[module], args[0], output))

    handles = []
    for module in names:
        if isinstance(module, nn.modules.conv._ConvNd):
            handles.append(module.register_forward_pre_hook(before_conv))
            handles.append(module.register_forward_hook(on_conv))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(on_linear))
    with _hooks(handles), torch.enable_grad():
        logits = functional_call(model, state, (x,))
    return convs, linears, logits


def _find_classifier(
    linears: list[tuple[str, Tensor, Tensor]], logits: object
) -> tuple[str, Tensor]:
    """Return the linear classifier's name and input, the pooled features."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(
            f"the model must return logits of shape (N, K) but gave {shape}"
        )
    if not linears:
        raise UnsupportedModelError("the model has no linear classifier after its convolutions")
    name, features, output = linears[-1]
    if output.shape != logits.shape or not torch.equal(output, logits):
        raise UnsupportedModelError(
            f"layer {name!r}: the model's output is not the output of its last linear layer"
        )
    if Counter(call[0] for call in linears)[name] > 1:
        raise UnsupportedModelError(f"layer {name!r}: the classifier is called more than once")
    return name, features


def _choose(
    calls: list[_Call], features: Tensor, layers: str | Sequence[str], model: nn.Module
) -> list[_Call]:
    """Return the calls of the wanted convolutions, in the order of execution."""
    reached = [
        call
        for call in calls
        if call.edge is not None
        and grad(
            features, call.edge, torch.ones_like(features), retain_graph=True, allow_unused=True
        )[0] is not None
    ]  # fmt: skip
    if not reached:
        raise UnsupportedModelError("no convolution is called on the way to the classifier")
    if layers == "last":
        return reached[-1:]
    if layers == "all":
        return reached
    wanted = [layers] if isinstance(layers, str) else list(layers)
    known = [call.name for call in reached]
    for name in wanted:
        if name not in known:
            module = dict(model.named_modules()).get(name)
            what = "unknown" if module is None else f"a {type(module).__name__}"
            raise UnsupportedModelError(
                f"layer {name!r} is {what}; measurable convolutions: {', '.join(known)}"
            )
    return [call for call in reached if call.name in wanted]


def _prove_plain(call: _Call, features: Tensor, state: State, geometry: ConvGeometry) -> None:
    """Check that autograd's kernel gradient is sum_n S_n Z_n^T, that of one plain convolution."""
    weight = state[f"{call.name}.weight"]
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(features.shape, generator=generator, dtype=torch.float64)
    cotangent = cotangent.to(features)
    assert call.edge is not None  # noqa: S101 - `_choose` keeps reached calls only
    (through,) = grad(features, call.edge, cotangent, retain_graph=True)
    (expected,) = grad(features, weight, cotangent, retain_graph=True, allow_unused=True)
    padded = geometry.pad(call.input_value)
    columns = [
        torch.einsum("ncij,nzij->cz", through, padded[:, :, rows, cols])
        for rows, cols in geometry.shifts(*through.shape[2:])
    ]
    ours = torch.stack(columns, -1).view(weight.shape)
    tolerance = 1e4 * torch.finfo(features.dtype).eps
    if expected is None or (ours - expected).abs().max() > tolerance * expected.abs().max():
        raise UnsupportedModelError(
            f"layer {call.name!r}: its kernel is not used as one plain convolution"
            " (shared, changed before use, or its output changed by a hook)"
        )


def locate(
    model: nn.Module, state: State, x: Tensor, layers: str | Sequence[str]
) -> tuple[list[Layer], str]:
    """Find the convolutions to measure and the linear classifier.

    Args:
        model: In eval mode.
        state: Parameters and buffers to use.
        x: The first samples.
        layers: "last" (the last convolution that is executed before the classifier), "all", a
            name or several names.

    Returns:
        The layers in order of execution, and the classifier's name.

    Raises:
        UnsupportedModelError: If the closed form does not cover the model; names the layer.
    """
    _refuse_batch_statistics(model)
    trained = {name for name, _ in model.named_parameters()}
    state = {k: v.detach().requires_grad_(k in trained) for k, v in state.items()}
    calls, linears, logits = _probe(model, state, x[:2])
    classifier, features = _find_classifier(linears, logits)
    counts = Counter(call.name for call in calls)
    found = []
    for call in _choose(calls, features, layers, model):
        conv = model.get_submodule(call.name)
        if not isinstance(conv, nn.Conv2d):
            raise UnsupportedModelError(
                f"layer {call.name!r}: {type(conv).__name__} is not covered, only Conv2d"
            )
        if counts[call.name] > 1:
            raise UnsupportedModelError(
                f"layer {call.name!r}: its kernel is used {counts[call.name]} times in one pass"
            )
        if f"{call.name}.weight" not in state:
            raise UnsupportedModelError(
                f"layer {call.name!r}: its kernel is reparametrised or shared with another layer"
            )
        width = tuple(features.shape)
        if features.ndim != 2 or width[1] != conv.out_channels:
            raise UnsupportedModelError(
                f"layer {call.name!r}: the classifier's input has shape {width}, but global pooling"
                f" of this layer's {conv.out_channels} channels gives (N, {conv.out_channels})"
            )
        geometry = _geometry(call.name, conv)
        _prove_plain(call, features, state, geometry)
        found.append(
            Layer(
                call.name,
                geometry,
                input_changes=call.input._version != call.versions[0],
                output_changes=call.output._version != call.versions[1],
            )
        )
    return found, classifier
