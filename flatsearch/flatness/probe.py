"""One forward pass of a few samples that records everything a network calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flatsearch.flatness.forward import State, call, disagree, hooks, layer_input

__all__ = ["Call", "Probe"]


@dataclass(frozen=True)
class Call:
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


class Probe:
    """One forward pass of a few samples, with everything that was called.

    Attributes:
        convs: Calls of convolutions, in order.
        linears: Calls of linear layers: name, input, output.
        logits: (N, K).

    Args:
        model: In eval mode.
        state: Parameters, which require gradients, and buffers.
        x: The samples.
    """

    def __init__(self, model: nn.Module, state: State, x: Tensor) -> None:
        self.convs: list[Call] = []
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
        self.convs.append(Call(name, source, args[0].detach(), passed, versions, edge))
        return passed

    def _linear(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        self.linears.append((self._names[module], layer_input(args, kwargs), output))

    def reached(self, calls: list[Call]) -> list[Call]:
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
