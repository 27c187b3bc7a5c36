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
import torch.nn.functional as F
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


def _source(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a layer's input, however it was passed."""
    source: Tensor = args[0] if args else kwargs["input"]
    return source


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two computations of one thing agree up to rounding; NaN agrees with NaN."""
    if a.shape != b.shape:
        return False
    tolerance = 1e4 * torch.finfo(b.dtype).eps
    return torch.allclose(
        a, b, rtol=0, atol=tolerance * float(b.nan_to_num(0, 0, 0).abs().max()), equal_nan=True
    )


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
        UnsupportedModelError: If the forward pass differs from the one that was probed, or the
            logits are not the classifier's kernel and bias applied to its input.
    """
    inputs: dict[str, tuple[Tensor, int]] = {}
    outputs: dict[str, Tensor] = {}
    features: list[Tensor] = []

    def tap(layer: Layer) -> Callable[..., Tensor]:
        def hook(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            if layer.name in inputs:
                raise UnsupportedModelError(f"layer {layer.name!r}: it is called more than once")
            source = _source(args, kwargs).detach()
            if layer.input_changes or source.is_inference():
                source = source.clone()
            inputs[layer.name] = (source, source._version)
            # In place, so that whoever else keeps this tensor is seen to use it.
            tracked = output.clone() if output.is_inference() else output
            outputs[layer.name] = tracked if tracked.requires_grad else tracked.requires_grad_()
            return tracked.clone() if layer.output_changes else tracked

        return hook

    def keep_features(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features.append(_source(args, kwargs))

    handles = [
        model.get_submodule(layer.name).register_forward_hook(tap(layer), with_kwargs=True)
        for layer in layers
    ]
    head = model.get_submodule(classifier)
    handles.append(head.register_forward_pre_hook(keep_features, with_kwargs=True))
    with _hooks(handles), torch.enable_grad():
        # A copy: models may change their input in place.
        logits = functional_call(model, state, (x.clone(),))
    logits = _check_logits(logits, len(x)).detach()
    for layer in layers:
        if layer.name not in inputs or len(features) != 1:
            raise UnsupportedModelError(
                f"layer {layer.name!r}: the layers that are called depend on the input"
            )
        source, version = inputs[layer.name]
        if source._version != version:
            raise UnsupportedModelError(f"layer {layer.name!r}: its input is changed in place")
        if not outputs[layer.name].requires_grad or features[0].grad_fn is None:
            raise UnsupportedModelError(f"layer {layer.name!r}: no gradient reaches it")
    V, bias = state[f"{classifier}.weight"], state.get(f"{classifier}.bias")
    if not _same(F.linear(features[0].detach(), V, bias), logits):
        raise UnsupportedModelError(
            f"layer {classifier!r}: the logits are not this linear layer's weight times its input,"
            " plus its bias"
        )
    return Pass(logits, features[0], {k: v for k, (v, _) in inputs.items()}, outputs)


def _check_logits(logits: object, n: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(
            f"the model must return logits of shape (N, K) but gave {shape} for {n} images"
        )
    return logits


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
    def before_conv(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        source = _source(args, kwargs)
        sources.append(source.clone() if source.is_inference() else source)
        return (source.clone(), *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}

    def on_conv(
        module: nn.Module, args: tuple[Any, ...], _: dict[str, Any], output: Tensor
    ) -> Tensor:
        source, passed = sources.pop(), output.clone()
        edge = get_gradient_edge(output) if output.requires_grad else None
        versions = (source._version, passed._version)
        convs.append(_Call(names[module], source, args[0].detach(), passed, versions, edge))
        return passed

    def on_linear(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        linears.append((names[module], _source(args, kwargs), output))

    handles = []
    for module in names:
        if isinstance(module, nn.modules.conv._ConvNd):
            handles.append(module.register_forward_pre_hook(before_conv, with_kwargs=True))
            handles.append(module.register_forward_hook(on_conv, with_kwargs=True))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(on_linear, with_kwargs=True))
    with _hooks(handles), torch.enable_grad():
        logits = functional_call(model, state, (x.clone(),))
    return convs, linears, _check_logits(logits, len(x))


def _find_classifier(
    linears: list[tuple[str, Tensor, Tensor]], logits: Tensor, state: State
) -> tuple[str, Tensor]:
    """Return the linear classifier's name and input, the pooled features."""
    if not linears:
        raise UnsupportedModelError("the model has no linear classifier after its convolutions")
    name, features, output = linears[-1]
    if not _same(output.detach(), logits.detach()):
        raise UnsupportedModelError(
            f"layer {name!r}: the model's output is not the output of its last linear layer"
        )
    if Counter(call[0] for call in linears)[name] > 1:
        raise UnsupportedModelError(f"layer {name!r}: the classifier is called more than once")
    if f"{name}.weight" not in state:
        raise UnsupportedModelError(
            f"layer {name!r}: the classifier is reparametrised or shared with another layer"
        )
    return name, features


def _reached(calls: list[_Call], features: Tensor) -> list[_Call]:
    """Return the calls whose output the features depend on."""
    recorded = [(call, call.edge) for call in calls if call.edge is not None]
    if not recorded:
        return []
    gradients = grad(
        features,
        [edge for _, edge in recorded],
        torch.ones_like(features),
        retain_graph=True,
        allow_unused=True,
    )
    pairs = zip(recorded, gradients, strict=True)
    return [call for (call, _), gradient in pairs if gradient is not None]


def _choose(
    calls: list[_Call], features: Tensor, layers: str | Sequence[str], model: nn.Module
) -> list[_Call]:
    """Return the calls of the wanted convolutions, in the order of execution."""
    if layers == "last":
        # From the end, so that only the tail is differentiated.
        last = next((call for call in reversed(calls) if _reached([call], features)), None)
        reached = [] if last is None else [last]
    else:
        reached = _reached(calls, features)
    if not reached:
        raise UnsupportedModelError("no convolution is called on the way to the classifier")
    if layers in ("last", "all"):
        return reached
    wanted = [layers] if isinstance(layers, str) else list(layers)
    known = [call.name for call in reached]
    for name in wanted:
        if name not in known:
            module = dict(model.named_modules()).get(name)
            what = "unknown" if module is None else f"a {type(module).__name__}"
            raise UnsupportedModelError(
                f"layer {name!r} is {what}; convolutions: {', '.join(known)}"
            )
    return [call for call in reached if call.name in wanted]


def _prove_plain(call: _Call, features: Tensor, state: State, geometry: ConvGeometry) -> None:
    """Check that autograd's kernel gradient is sum_n S_n Z_n^T, that of one plain convolution."""
    weight = state[f"{call.name}.weight"]
    generator = torch.Generator("cpu").manual_seed(0)
    cotangent = torch.randn(
        features.shape, generator=generator, dtype=torch.float64, device="cpu"
    ).to(features)
    assert call.edge is not None  # noqa: S101 - `_choose` keeps reached calls only
    (through,) = grad(features, call.edge, cotangent, retain_graph=True)
    (expected,) = grad(features, weight, cotangent, retain_graph=True, allow_unused=True)
    if through.shape[2:] == geometry.output_size(*call.input_value.shape[2:]):
        ours = _kernel_gradient(call.input_value, through, geometry).view(weight.shape)
        proven = expected is not None and _same(ours, expected)
        # No gradient at all proves nothing, unless the layer is dead.
        if proven and (bool(expected.any()) or not bool(through.any())):
            return
    raise UnsupportedModelError(
        f"layer {call.name!r}: its kernel is not used as one plain convolution"
        " (shared, changed before use, its output changed by a hook), or the first images are"
        " blank"
    )


def _kernel_gradient(x: Tensor, through: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return sum_n S_n Z_n^T, written down once more without the routines it is to check."""
    padded = geometry.pad(x)
    columns = [
        torch.einsum("ncij,nzij->cz", through, padded[:, :, rows, cols])
        for rows, cols in geometry.shifts(*through.shape[2:])
    ]
    return torch.stack(columns, -1)


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
    frozen, state = state, {k: v.detach().requires_grad_(k in trained) for k, v in state.items()}
    # The two images with most contrast: blank ones would prove nothing.
    x = x[x.flatten(1).std(1, correction=0).topk(min(2, len(x))).indices]
    calls, linears, logits = _probe(model, state, x)
    classifier, features = _find_classifier(linears, logits, state)
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
        if f"{call.name}.weight" not in trained:
            raise UnsupportedModelError(
                f"layer {call.name!r}: its kernel is no parameter of its own: reparametrised, a"
                " buffer, or shared with another layer"
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
    if not _same(forward(model, frozen, x, found, classifier).logits, logits.detach()):
        raise UnsupportedModelError("the model gives different logits for the same images")
    return found, classifier
