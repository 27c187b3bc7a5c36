"""The one interface of all signals, and their table."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from flatsearch.errors import SettingsError, unknown_name
from flatsearch.networks.cost import count_flops, count_parameters
from flatsearch.signals import aznas, curve, gradients, synflow, units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flatsearch.training.trainer import EpochResult

__all__ = ["PROXIES", "Evidence", "Needs", "Proxy", "compute"]

Needs: TypeAlias = Literal["network", "images", "training"]


@dataclass(frozen=True)
class Evidence:
    """What a signal may look at.

    Attributes:
        model: The network as it is now; no signal changes it.
        inputs: Normalised training images (N, C, H, W), on the model's device.
        targets: Their classes (N,).
        initial: The parameters before training, by name; empty if there was none.
        history: One result per epoch of training so far.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    history: Sequence[EpochResult] = ()


@dataclass(frozen=True)
class Proxy:
    """A signal.

    Attributes:
        name: Its name in `PROXIES`.
        needs: "network" where it is a count, "images" where it looks at an untrained network on a
            batch, "training" where it looks at a network in training.
        better: "larger" or "smaller": which values the paper says are better.
        source: Where it comes from.
        function: From evidence to the value.
    """

    name: str
    needs: Needs
    better: Literal["larger", "smaller"]
    source: str
    function: Callable[[Evidence], float]


def _flops(e: Evidence) -> float:
    return float(count_flops(e.model, e.inputs.shape[1], e.inputs.shape[2]))


def _on_copy(
    function: Callable[[nn.Module, Tensor, Tensor], float],
) -> Callable[[Evidence], float]:
    """Give a function its own copy of the model, to do with as it likes, and no randomness."""

    def on_copy(e: Evidence) -> float:
        model = copy.deepcopy(e.model)
        for parameter in model.parameters():
            parameter.grad = None
        with torch.random.fork_rng(devices=[e.inputs.device] if e.inputs.is_cuda else []):
            torch.manual_seed(0)
            return function(model, e.inputs, e.targets)

    return on_copy


_ABDELFATTAH = "Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021"
_TABLE = (
    Proxy(
        "parameters", "network", "larger", "count", lambda e: float(count_parameters(e.model))
    ),
    Proxy("flops", "network", "larger", "count, two per multiply-add, of one image", _flops),
    Proxy(
        "nwot", "images", "larger",
        "Mellor et al., Neural Architecture Search without Training, ICML 2021",
        _on_copy(units.nwot),
    ),
    Proxy(
        "synflow", "network", "larger",
        "Tanaka et al., Pruning neural networks without any data, NeurIPS 2020",
        _on_copy(lambda model, x, _: synflow.synflow(model, x.shape[1:])),
    ),
    Proxy(
        "snip", "images", "larger",
        "Lee et al., SNIP: Single-shot Network Pruning, ICLR 2019",
        _on_copy(gradients.snip),
    ),
    Proxy("gradient_norm", "images", "larger", _ABDELFATTAH, _on_copy(gradients.gradient_norm)),
    Proxy(
        "zico", "images", "larger",
        "Li et al., ZiCo: Zero-shot NAS via Inverse Coefficient of Variation, ICLR 2023",
        _on_copy(gradients.zico),
    ),
    *(
        Proxy(
            name, "network", "larger",
            "Lee and Ham, AZ-NAS: Assembling Zero-Cost Proxies, CVPR 2024",
            _on_copy(function),
        )
        for name, function in (
            ("expressivity", aznas.expressivity),
            ("progressivity", aznas.progressivity),
            ("trainability", aznas.trainability),
        )
    ),
    Proxy(
        "tse", "training", "smaller",
        "Ru et al., Speedy Performance Estimation for NAS, NeurIPS 2021",
        lambda e: curve.tse([epoch.train_loss for epoch in e.history]),
    ),
    Proxy(
        "validation_accuracy", "training", "larger", "the last epoch's",
        lambda e: curve.last([epoch.accuracy for epoch in e.history]),
    ),
    Proxy(
        "train_loss", "training", "smaller", "the last epoch's running mean",
        lambda e: curve.last([epoch.train_loss for epoch in e.history]),
    ),
    Proxy(
        "weight_movement", "training", "larger",
        "distance of the weights from where they began, relative to their norm",
        lambda e: curve.weight_movement(dict(e.model.named_parameters()), e.initial),
    ),
)  # fmt: skip
PROXIES: Mapping[str, Proxy] = {proxy.name: proxy for proxy in _TABLE}


def compute(name: str, evidence: Evidence) -> float:
    """Return a signal's value.

    Args:
        name: From `PROXIES`.
        evidence: What it may look at.

    Returns:
        The value, whichever way is better; see `Proxy.better`.

    Raises:
        SettingsError: If there is no such signal, or it needs training and there was none.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(2, 2))
        >>> evidence = Evidence(model, torch.ones(4, 1, 3, 3), torch.tensor([0, 1, 0, 1]))
        >>> compute("parameters", evidence)
        24.0
    """
    if name not in PROXIES:
        raise SettingsError(unknown_name("proxy", name, PROXIES))
    proxy = PROXIES[name]
    if proxy.needs == "training" and not (evidence.history or evidence.initial):
        raise SettingsError(f"the proxy {name!r} needs a network in training: give its history")
    return proxy.function(evidence)
