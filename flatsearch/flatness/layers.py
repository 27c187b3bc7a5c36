"""Which layers are measured.

Everything is read off one forward pass of two samples: which kernels are used, in which order, and
how. What the derivation does not cover is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.forward import (
    CHANGED_IN_PLACE,
    Layer,
    Network,
    disagree,
    forward,
)
from flatsearch.flatness.geometry import recorded_geometry
from flatsearch.flatness.graph import dtype_of, shape_of
from flatsearch.flatness.main_path import last_of_main_path
from flatsearch.flatness.pooling import pooling
from flatsearch.flatness.probe import Probe
from flatsearch.flatness.replica import changed, replicate
from flatsearch.flatness.samplewise import (
    CHANGING,
    changes,
    contrasting,
    refuse_mixed_samples,
)
from flatsearch.flatness.state import State
from flatsearch.flatness.watch import address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.flatness.convolutions import Convolution
    from flatsearch.flatness.watch import RandomState

__all__ = ["Located", "locate"]


@dataclass(frozen=True)
class Located:
    """What is to be measured.

    Attributes:
        layers: The convolutions, in order of execution.
        classifier: The name of the linear layer whose output the logits are; None if there is
            none.
        head: Whether the classifier's own kernel is measured too.
        graph_bytes: What the recorded graph keeps, per sample.
        map_bytes: What a forward pass holds beside it at any moment, per sample, about.
        factor_bytes: Memory of the measured convolutions' outputs, per sample.
        skipped: Layers that should be measured and are not covered, with the reasons.
    """

    layers: list[Layer]
    classifier: str | None
    head: bool
    graph_bytes: int
    map_bytes: int
    factor_bytes: int
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of all layers that are measured."""
        head = [self.classifier] if self.head and self.classifier is not None else []
        return [*(layer.name for layer in self.layers), *head]


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UnsupportedModelError(
                f"layer {name!r}: batch norm without running statistics couples the samples of a"
                " batch; use track_running_stats=True"
            )


def _main(probe: Probe) -> Convolution:
    """Return the last convolution of the main path, whose maps must be pooled globally."""
    if not probe.convolutions:
        hidden = probe.hidden_convolutions()
        _covered(hidden, _problems(hidden), skip=False)
        raise UnsupportedModelError("no convolution is called on the way to the logits")
    n = len(probe.logits)

    def is_map(one: Convolution) -> bool:
        """Return whether it is not convolved along tokens or channels, which are no positions."""
        shape = shape_of(one.node)
        return one.by_hand or len(shape) != 3 or shape[0] != n

    found = list(filter(is_map, probe.convolutions)) or probe.convolutions
    main = found[last_of_main_path(probe.logits, [one.node for one in found])]
    if main.by_hand or len(shape_of(main.node)) != 4:
        return main  # which is refused, whatever becomes of its positions
    how = pooling(probe.logits, main.node)
    if how == "flattened":
        raise UnsupportedModelError(
            f"layer {main.name!r}: its positions are flattened into a dense layer, as in VGG;"
            " flatsearch measures networks with global pooling"
        )
    if how == "none":
        raise UnsupportedModelError(
            f"layer {main.name!r}, the last convolution, is not followed by global pooling;"
            " flatsearch measures convolutional networks with global pooling, not transformers"
        )
    return main


def _choose(probe: Probe, layers: str | Sequence[str]) -> tuple[list[Convolution], bool]:
    """Return the wanted convolutions in order, and whether the head is wanted."""
    if layers == "head":
        if probe.classifier is None:
            raise UnsupportedModelError("the model's logits are not the output of one linear layer")
        return [], True
    main = _main(probe)
    if layers in ("last", "main"):  # unlike a set, it may be asked for a list
        one = main if layers == "main" else probe.convolutions[-1]
        return [one, *probe.hidden_after(one)][-1:], False
    if layers == "all":
        return [*probe.convolutions, *probe.hidden_convolutions()], False
    wanted = [layers] if isinstance(layers, str) else list(layers)
    every = probe.convolutions
    if not set(wanted) <= {name for c in every for name in (c.name, c.kernel)}:
        every = [*every, *probe.hidden_convolutions()]
    head = [] if probe.classifier is None else [probe.classifier]
    for name in wanted:
        if name not in head and not any(name in (c.name, c.kernel) for c in every):
            module = dict(probe.model.named_modules()).get(name)
            what = "unknown" if module is None else f"a {type(module).__name__}"
            raise UnsupportedModelError(
                f"layer {name!r} is {what}; convolutions: {', '.join(c.name for c in every)}"
                + "".join(f"; classifier: {name}" for name in head)
            )
    chosen = [c for c in every if c.name in wanted or c.kernel in wanted]
    return chosen, probe.classifier in wanted


def _problems(chosen: Sequence[Convolution]) -> dict[str, str]:
    return {convolution.name: convolution.problem for convolution in chosen if convolution.problem}


def _covered(
    chosen: list[Convolution], problems: dict[str, str], *, skip: bool
) -> list[Convolution]:
    """Return the convolutions without a problem, which must be some; all of them but to skip."""
    covered = [convolution for convolution in chosen if convolution.name not in problems]
    if problems and not (skip and covered):
        more = "; skip_unsupported=True measures the others" if covered else ""
        reasons = "; ".join(f"layer {name!r}: {why}" for name, why in problems.items())
        raise UnsupportedModelError(reasons + more)
    return covered


def _network(
    model: nn.Module,
    dtype: torch.dtype,
    probe: Probe,
    layers: list[Layer],
    *,
    every: bool,
    copies: bool,
    head: bool,
) -> Network:
    """Return the copy to be measured, whose kernels alone require gradients."""
    twin = replicate(model, dtype)
    kernels: dict[str, Tensor] = {layer.name: twin.get_parameter(layer.kernel) for layer in layers}
    if probe.classifier is not None and probe.classifier_kernel is not None:
        kernels[probe.classifier] = twin.get_parameter(probe.classifier_kernel)
    others: dict[str, Tensor] = {
        name: twin.get_parameter(name) for name in (probe.unseen() if every else ())
    }
    settled = not changed(model, probe.model, dtype)
    for kernel in (*kernels.values(), *others.values()):
        kernel.requires_grad_()
    return Network(
        twin,
        kernels,
        others,
        copies=copies,
        hooks=probe.watch.left_out,
        head=head,
        born=State(twin) if settled and probe.is_structural() else None,
    )


def _memory(
    network: Network, x: Tensor, layers: list[Layer], classifier: str | None
) -> tuple[Tensor, int]:
    """Return the logits, and the bytes per sample that the recorded graph keeps."""
    owned = {address(value) for value in network.model.parameters()}  # each in a storage of its own
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> None:
        if tensor.layout != torch.strided or not address(tensor):
            kept[id(tensor)] = tensor.numel() * tensor.itemsize  # at most
            return
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()

    run = forward(replace(network, keeping=count), x, layers, classifier)
    return run.logits.detach(), sum(kept.values()) // len(x)


def _bytes(convolution: Convolution) -> int:
    """Return what a convolution's output takes."""
    return math.prod(shape_of(convolution.node)) * dtype_of(convolution.node).itemsize


def locate(
    model: nn.Module,
    dtype: torch.dtype,
    x: Tensor,
    layers: str | Sequence[str],
    *,
    skip_unsupported: bool,
    random: RandomState,
) -> tuple[Network, Located]:
    """Find the convolutions to measure and the linear classifier.

    Args:
        model: A model, which is only read.
        dtype: The precision to measure in.
        x: The first samples.
        layers: "last" (the last convolution that is executed before the logits), "main" (the last
            one of the main path), "all", "head", a name or several names.
        skip_unsupported: Whether layers that are not covered are left out.
        random: The generators of random numbers.

    Returns:
        The copy of the model to be measured; the layers, the classifier, and what a sample costs
        in memory.

    Raises:
        UnsupportedModelError: If the derivation does not cover the model; names the layer.
        RuntimeError: If the model fails.
    """
    _refuse_batch_statistics(model)
    try:
        return _locate(model, dtype, x, layers, skip_unsupported, random, copies=False)
    except RuntimeError as error:
        if CHANGED_IN_PLACE not in str(error):
            raise
    return _locate(model, dtype, x, layers, skip_unsupported, random, copies=True)


def _locate(
    model: nn.Module,
    dtype: torch.dtype,
    x: Tensor,
    layers: str | Sequence[str],
    skip: bool,
    random: RandomState,
    *,
    copies: bool,
) -> tuple[Network, Located]:
    every, x = x, contrasting(x)
    probe = Probe(model, dtype, x, copies=copies, random=random)
    chosen, head = _choose(probe, layers)
    skipped = _problems(chosen)
    chosen = _covered(chosen, skipped, skip=skip)
    if head:
        probe.prove_head()
    untrue = probe.untrue(chosen)
    chosen, skipped = _covered(chosen, untrue, skip=skip), skipped | untrue
    found = [Layer(c.name, c.kernel, recorded_geometry(c.node)) for c in chosen]
    network = _network(model, dtype, probe, found, every=layers == "all", copies=copies, head=head)
    logits, graph = _memory(network, x, found, probe.classifier)
    # Few passes of few images do not show what is dropped one time in ten.
    rarely = random.draws and changes(network, every, passes=32)
    if rarely or bool(disagree(logits, probe.logits.detach())):
        raise UnsupportedModelError(CHANGING)
    refuse_mixed_samples(network, x, logits)
    return network, Located(
        found,
        probe.classifier,
        head,
        graph_bytes=graph,
        # At any moment some of the largest maps are alive beside what the graph keeps.
        map_bytes=4 * probe.watch.largest // len(x),
        factor_bytes=sum(_bytes(convolution) for convolution in chosen) // len(x),
        skipped=skipped,
    )
