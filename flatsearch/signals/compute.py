"""Computing the proxies of a network."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatsearch.signals.table import PROXIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flatsearch.signals.table import Signal

__all__ = ["ProxyInput", "initial_weights", "measure"]

# A proxy looks at the first images of the probe; the papers use batches of 64 or 128.
_MOST_IMAGES = 128


@dataclass(frozen=True)
class ProxyInput:
    """What a proxy looks at.

    Attributes:
        model: The network as it is now; no proxy changes it.
        inputs: Normalised training images (N, C, H, W), on the model's device.
        targets: Their classes (N,).
        initial: The parameters before training, by name; empty for an untrained network.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    initial: Mapping[str, Tensor] = field(default_factory=dict)


def initial_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the parameters by name, for `ProxyInput.initial`."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def measure(names: Iterable[str], given: ProxyInput) -> dict[str, float]:
    """Return the values of some of `PROXIES`, by the names under which they are recorded.

    They are infinite where nothing gets through a network, NaN where a proxy cannot be computed
    for it. Of the images the first are taken.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(2, 2))
        >>> given = ProxyInput(model, torch.ones(4, 1, 3, 3), torch.tensor([0, 1, 0, 1]))
        >>> measure(["nwot"], given)
        {'untrained_nwot': -inf}
    """
    few = dataclasses.replace(
        given, inputs=given.inputs[:_MOST_IMAGES], targets=given.targets[:_MOST_IMAGES]
    )
    return {PROXIES[name].name: _value(PROXIES[name], few) for name in names}


def _value(signal: Signal, given: ProxyInput) -> float:
    module, _, name = signal.function.partition(".")
    function = getattr(import_module(f"flatsearch.signals.{module}"), name)
    try:
        if signal.first == "epoch":
            return float(function(given))
        # Its own copy of the model, to do with as it likes, and its own random numbers.
        model = copy.deepcopy(given.model)
        for parameter in model.parameters():
            parameter.grad = None
        with torch.random.fork_rng(devices=[given.inputs.device] if given.inputs.is_cuda else []):
            torch.manual_seed(0)
            return float(function(model, given.inputs, given.targets))
    except RuntimeError as error:
        # An operation without a derivative, or no memory, is no reason to lose a candidate.
        warnings.warn(f"{signal.name} could not be computed: {error}", stacklevel=3)
        return math.nan
