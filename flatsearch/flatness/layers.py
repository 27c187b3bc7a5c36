"""Which layers are measured.

Everything is read off one forward pass of two samples: which modules are called, in which order,
and how often. What the derivation does not cover is refused by name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.forward import Layer, State, disagree, forward
from flatsearch.flatness.forward import call as run_alone
from flatsearch.flatness.geometry import ConvGeometry, read_geometry
from flatsearch.flatness.kernel_use import prove_linear, prove_plain
from flatsearch.flatness.main_path import last_of_main_path
from flatsearch.flatness.pooling import pooling
from flatsearch.flatness.probe import Call, Probe

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


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(
                f"layer {name!r}: batch norm without running statistics couples the samples of a"
                " batch; use track_running_stats=True"
            )


def _last(probe: Probe) -> Call:
    """Return the last convolution on the way to the logits, whose maps must be pooled globally."""
    # From the end, so that only the tail is differentiated.
    last = next((call for call in reversed(probe.convs) if probe.reached([call])), None)
    if last is None or last.edge is None:
        raise UnsupportedModelError("no convolution is called on the way to the logits")
    how = pooling(probe.logits, last.edge.node)
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
    probe: Probe, layers: str | Sequence[str], model: nn.Module, classifier: str | None
) -> tuple[list[Call], bool]:
    """Return the calls of the wanted convolutions in order, and whether the head is wanted."""
    if layers == "head":
        if classifier is None:
            raise UnsupportedModelError("the model's logits are not the output of one linear layer")
        return [], True
    last = _last(probe)
    if layers == "last":
        return [last], False
    reached = probe.reached(probe.convs)
    if layers == "main":
        nodes = [call.edge.node for call in reached if call.edge is not None]
        return [reached[last_of_main_path(probe.logits, nodes)]], False
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


def _check_module(call: Call, model: nn.Module, calls: int, trained: set[str]) -> ConvGeometry:
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
        layers: "last" (the last convolution that is executed before the logits), "main" (the last
            one of the main path), "all", "head", a name or several names.

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
    probe = Probe(model, state, x)
    classifier = probe.classifier(state)
    name = None if classifier is None else classifier[0]
    calls, head = _choose(probe, layers, model, name)
    if classifier is not None and head:
        prove_linear(probe, *classifier, state)
    counts = Counter(call.name for call in probe.convs)
    geometries = [_check_module(call, model, counts[call.name], trained) for call in calls]
    if calls:
        prove_plain(probe, calls, geometries, state)
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
    alone = torch.cat([run_alone(model, frozen, image[None]) for image in x])
    if bool(disagree(alone.detach(), logits)):
        raise UnsupportedModelError(
            "the model mixes samples: the logits of one depend on others of its batch"
        )
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
