"""An architecture as a drawing: the layers that a forward pass executes, with the maps' sizes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flatsearch.networks.inference import eval_mode, zero_images

__all__ = ["Layer", "executed_layers"]

# torchvision's and `resnet_small`'s, by name: to import them takes seconds. Drawn as one layer.
_GATE = "SqueezeExcitation"


@dataclass(frozen=True)
class Layer:
    """One layer, or several equal ones in a row.

    Attributes:
        kind: What it does, for example "conv 3x3 /2".
        channels: Channels or features of its output.
        height: Of the output map; 0 for a vector.
        width: Of the output map; 0 for a vector.
        parameters: Of one of them.
        repeats: How many in a row.
    """

    kind: str
    channels: int
    height: int
    width: int
    parameters: int
    repeats: int = 1


def _pair(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value, value)


def _kind(module: nn.Module) -> str | None:
    """Return what a layer does in a few words; None for one that is not drawn."""
    if isinstance(module, nn.Conv2d):
        name = "x".join(map(str, module.kernel_size))
        if module.groups == module.in_channels > 1:
            name += " depthwise"
        elif module.groups > 1:
            name += f" in {module.groups} groups"
        return f"conv {name}" + (f" /{module.stride[0]}" if max(module.stride) > 1 else "")
    if isinstance(module, nn.Linear):
        return "linear"
    if type(module).__name__ == _GATE:
        return "gate"
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return "global pool" if set(_pair(module.output_size)) == {1} else "adaptive pool"
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        name = "max pool" if isinstance(module, nn.MaxPool2d) else "mean pool"
        stride = _pair(module.stride)[0]
        return f"{name} {_pair(module.kernel_size)[0]}" + (f" /{stride}" if stride > 1 else "")
    return None


def executed_layers(model: nn.Module, in_channels: int, image_size: int) -> list[Layer]:
    """Return the convolutions, pools and linear layers of a forward pass, in its order.

    The network is run on one image in eval mode; equal layers in a row are one entry.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *(nn.Conv2d(2, 2, 1),) * 2)
        >>> [(layer.kind, layer.repeats) for layer in executed_layers(net, 1, 4)]
        [('conv 3x3', 1), ('conv 1x1', 2)]
    """
    layers: list[Layer] = []

    def see(kind: str, module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        # A linear layer has its features last, in maps too (ConvNeXt's).
        if isinstance(module, nn.Linear):
            output = output.movedim(-1, 1)
        height, width = output.shape[2:] if output.dim() == 4 else (0, 0)
        if kind == "global pool":
            height = width = 0
        count = sum(p.numel() for p in module.parameters())
        layer = Layer(kind, output.shape[1], height, width, count)
        if layers and replace(layers[-1], repeats=1) == layer:
            layer = replace(layer, repeats=layers.pop().repeats + 1)
        layers.append(layer)

    gates = [module for module in model.modules() if type(module).__name__ == _GATE]
    inside = {id(part) for gate in gates for part in gate.modules() if part is not gate}
    with eval_mode(model), torch.no_grad(), contextlib.ExitStack() as hooks:
        for module in model.modules():
            if (kind := _kind(module)) is not None and id(module) not in inside:
                hooks.enter_context(module.register_forward_hook(partial(see, kind)))
        model(zero_images(model, in_channels, image_size))
    return layers
