"""Which layers are measured, and the proof that their kernels are used as assumed.

Everything is read off one forward pass of two samples: which modules are called, in which order,
how often, and what their kernels' gradients are. A kernel that is shared, is reparametrised or is
used in any other way than one plain convolution has another gradient than the derivation assumes,
and is refused by name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.geometry import ConvGeometry, read_geometry
from flatsearch.flatness.graph import pooling
from flatsearch.flatness.passes import (
    Layer,
    State,
    call,
    disagree,
    forward,
    hooks,
    layer_input,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Located", "locate"]


_PROBED = 64


@dataclass(frozen=True)
class Located:
    """What is to be measured.

    Attributes:
        layers: The convolutions, in order of execution.
        classifier: The linear layer whose output the logits are; None if there is none.
        head: Whether the classifier's own kernel is measured too.
        graph_bytes: What the recorded graph keeps, per sample.
        map_bytes: What a forward pass holds beside it at any moment, per sample, about.
        factor_bytes: Memory of the measured convolutions' outputs, per sample.
    """

    layers: list[Layer]
    classifier: str | None
    head: bool
    graph_bytes: int
    map_bytes: int
    factor_bytes: int


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


class _Probe:
    """One forward pass of a few samples, with everything that was called.

    Attributes:
        convs: Calls of convolutions, in order.
        linears: Calls of linear layers: name, input, output.
        logits: (N, K).
    """

    def __init__(self, model: nn.Module, state: State, x: Tensor) -> None:
        self.convs: list[_Call] = []
        self.linears: list[tuple[str, Tensor, Tensor]] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._sources: list[Tensor] = []
        handles = []
        for module in self._names:
            if isinstance(module, nn.modules.conv._ConvNd):
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._conv, with_kwargs=True))
            elif isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(self._linear, with_kwargs=True))
        with hooks(handles), torch.enable_grad():
            self.logits = call(model, state, x)

    # The model works on copies of the convolutions' inputs and outputs, so that a change in
    # place shows on the version of what it was given.
    def _before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        source = layer_input(args, kwargs)
        self._sources.append(source.clone() if source.is_inference() else source)
        return (source.clone(), *args[1:]), {k: v for k, v in kwargs.items() if k != "input"}

    def _conv(
        self, module: nn.Module, args: tuple[Any, ...], _: dict[str, Any], output: Tensor
    ) -> Tensor:
        source, passed = self._sources.pop(), output.clone()
        edge = get_gradient_edge(output) if output.requires_grad else None
        versions = (source._version, passed._version)
        name = self._names[module]
        self.convs.append(_Call(name, source, args[0].detach(), passed, versions, edge))
        return passed

    def _linear(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        self.linears.append((self._names[module], layer_input(args, kwargs), output))

    def reached(self, calls: list[_Call]) -> list[_Call]:
        """Return the calls whose output the logits depend on."""
        recorded = [(call, call.edge) for call in calls if call.edge is not None]
        if not recorded:
            return []
        gradients = grad(
            self.logits,
            [edge for _, edge in recorded],
            torch.ones_like(self.logits),
            retain_graph=True,
            allow_unused=True,
        )
        pairs = zip(recorded, gradients, strict=True)
        return [call for (call, _), gradient in pairs if gradient is not None]

    def classifier(self, state: State) -> tuple[str, Tensor] | None:
        """Return the linear classifier's name and input, if the logits are one's output."""
        if not self.linears:
            return None
        name, features, output = self.linears[-1]
        calls = Counter(name for name, _, _ in self.linears)
        if calls[name] > 1 or f"{name}.weight" not in state or features.ndim != 2:
            return None
        V, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        plain = F.linear(features, V, bias).detach()
        logits = self.logits.detach()
        if bool(disagree(output.detach(), logits) | disagree(plain, logits)):
            return None
        return name, features


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(
                f"layer {name!r}: batch norm without running statistics couples the samples of a"
                " batch; use track_running_stats=True"
            )


def _last(probe: _Probe) -> _Call:
    """Return the last convolution on the way to the logits, whose maps must be pooled globally."""
    # From the end, so that only the tail is differentiated.
    last = next((call for call in reversed(probe.convs) if probe.reached([call])), None)
    if last is None or last.edge is None:
        raise UnsupportedModelError("no convolution is called on the way to the logits")
    how = pooling(probe.logits, last.edge)
    if how == "flattened":
        raise UnsupportedModelError(
            f"layer {last.name!r}: its positions are flattened into a dense layer, as in VGG;"
            " flatsearch measures networks with global pooling"
        )
    if how == "none":
        raise UnsupportedModelError(
            f"layer {last.name!r}, the last convolution, is not followed by global pooling;"
            " flatsearch measures convolutional networks with global pooling, not transformers"
        )
    return last


def _choose(
    probe: _Probe, layers: str | Sequence[str], model: nn.Module, classifier: str | None
) -> tuple[list[_Call], bool]:
    """Return the calls of the wanted convolutions in order, and whether the head is wanted."""
    if layers == "head":
        if classifier is None:
            raise UnsupportedModelError("the model's logits are not the output of one linear layer")
        return [], True
    last = _last(probe)
    if layers == "last":
        return [last], False
    reached = probe.reached(probe.convs)
    if layers == "all":
        return reached, False
    wanted = [layers] if isinstance(layers, str) else list(layers)
    known = list(dict.fromkeys(call.name for call in reached))
    heads = [] if classifier is None else [classifier]
    for name in wanted:
        if name not in known + heads:
            module = dict(model.named_modules()).get(name)
            what = "unknown" if module is None else f"a {type(module).__name__}"
            raise UnsupportedModelError(
                f"layer {name!r} is {what}; convolutions: {', '.join(known)}"
                + "".join(f"; classifier: {head}" for head in heads)
            )
    return [call for call in reached if call.name in wanted], classifier in wanted


def _check_module(call: _Call, model: nn.Module, calls: int, trained: set[str]) -> ConvGeometry:
    """Return the geometry of a convolution, refusing what the derivation does not cover."""
    conv = model.get_submodule(call.name)
    if not isinstance(conv, nn.Conv2d):
        raise UnsupportedModelError(
            f"layer {call.name!r}: {type(conv).__name__} is not covered, only Conv2d"
        )
    if calls > 1:
        raise UnsupportedModelError(
            f"layer {call.name!r}: its kernel is used {calls} times in one pass"
        )
    if f"{call.name}.weight" not in trained:
        raise UnsupportedModelError(
            f"layer {call.name!r}: its kernel is no parameter of its own: reparametrised, a"
            " buffer, or shared with another layer"
        )
    return read_geometry(conv)


def _prove_plain(
    probe: _Probe, calls: list[_Call], geometries: list[ConvGeometry], state: State
) -> None:
    """Check that autograd's kernel gradients are sum_n g_n Z_n^T, those of plain convolutions."""
    edges = [call.edge for call in calls if call.edge is not None]
    weights = [state[f"{call.name}.weight"] for call in calls]
    edges += [get_gradient_edge(weight) for weight in weights]
    gradients = grad(
        probe.logits, edges, _cotangent(probe.logits), retain_graph=True, allow_unused=True
    )
    through, expected = gradients[: len(calls)], gradients[len(calls) :]
    for conv, geometry, g, gradient, weight in zip(
        calls, geometries, through, expected, weights, strict=True
    ):
        if g.shape[2:] == geometry.output_size(*conv.input_value.shape[2:]):
            ours = _kernel_gradient(conv.input_value, g, geometry).view(weight.shape)
            proven = gradient is not None and not bool(disagree(ours, gradient))
            # A gradient of zero proves nothing; then the recorded operations have to.
            if proven and (bool(gradient.any()) or _used_once(probe.logits, conv, weight)):
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


def _used_once(logits: Tensor, call: _Call, weight: Tensor) -> bool:
    """Return whether the only operation on a kernel is the convolution that was called."""
    todo, seen, users = [logits.grad_fn], set(), []
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for previous, _ in node.next_functions:
            if getattr(previous, "variable", None) is weight:
                users.append(node)
            todo.append(previous)
    return (
        call.edge is not None
        and users == [call.edge.node]
        and (users[0].name() == "ConvolutionBackward0")
    )


def _prove_linear(probe: _Probe, name: str, features: Tensor, state: State) -> None:
    """Check that autograd's gradient of the classifier's kernel is sum_n c_n g_n^T."""
    cotangent = _cotangent(probe.logits)
    weight = state[f"{name}.weight"]
    (gradient,) = grad(probe.logits, weight, cotangent, retain_graph=True, allow_unused=True)
    ours = cotangent.T @ features.detach()
    if gradient is None or bool(disagree(ours, gradient)):
        raise UnsupportedModelError(
            f"layer {name!r}: its kernel is used elsewhere too, or changed before use"
        )


def _memory(
    model: nn.Module, state: State, x: Tensor, layers: list[Layer], classifier: str | None
) -> tuple[Tensor, int]:
    """Return the logits, and the bytes per sample that the recorded graph keeps."""
    owned = {value.untyped_storage().data_ptr() for value in state.values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run = forward(model, state, x, layers, classifier)
    return run.logits.detach(), sum(kept.values()) // len(x)


def locate(model: nn.Module, state: State, x: Tensor, layers: str | Sequence[str]) -> Located:
    """Find the convolutions to measure and the linear classifier.

    Args:
        model: In eval mode.
        state: Parameters and buffers to use.
        x: The first samples.
        layers: "last" (the last convolution that is executed before the logits), "all", "head",
            a name or several names.

    Returns:
        The layers, the classifier, and what a sample costs in memory.

    Raises:
        UnsupportedModelError: If the derivation does not cover the model; names the layer.
    """
    _refuse_batch_statistics(model)
    trained = {name for name, _ in model.named_parameters()}
    frozen, state = state, {k: v.detach().requires_grad_(k in trained) for k, v in state.items()}
    # Of the first images the two with most contrast: blank ones would prove nothing.
    x = x[:_PROBED]
    x = x[x.flatten(1).std(1, correction=0).topk(min(2, len(x))).indices]
    probe = _Probe(model, state, x)
    classifier = probe.classifier(state)
    name = None if classifier is None else classifier[0]
    calls, head = _choose(probe, layers, model, name)
    if classifier is not None and head:
        _prove_linear(probe, *classifier, state)
    counts = Counter(call.name for call in probe.convs)
    geometries = [_check_module(call, model, counts[call.name], trained) for call in calls]
    if calls:
        _prove_plain(probe, calls, geometries, state)
    found = [
        Layer(
            call.name,
            geometry,
            input_changes=call.input._version != call.versions[0],
            output_changes=call.output._version != call.versions[1],
        )
        for call, geometry in zip(calls, geometries, strict=True)
    ]
    logits, graph = _memory(model, frozen, x, found, name)
    if bool(disagree(logits, probe.logits.detach())):
        raise UnsupportedModelError("the model gives different logits for the same images")
    # At any moment some of the largest maps are alive beside what the graph keeps.
    largest = max((call.input.nbytes + call.output.nbytes for call in probe.convs), default=0)
    return Located(
        found,
        name,
        head,
        graph_bytes=graph,
        map_bytes=4 * largest // len(x),
        factor_bytes=sum(call.output.nbytes for call in calls) // len(x),
    )
