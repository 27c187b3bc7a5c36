"""`torchvision_zoo`: published torchvision architectures, as a baseline to beat.

Small images are enlarged to 32x32 by bilinear interpolation, because these networks halve their
maps five times; other numbers of channels get a first convolution of their own.

With `weights` the networks begin as somebody has trained them, and are fine-tuned by the same
recipe: `--space torchvision_zoo,weights=DEFAULT,networks=resnet18`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision import models

from flatsearch.networks.gap_cnn import replace_stem
from flatsearch.spaces.space import Architecture
from flatsearch.spaces.weights import published_network, replace_head

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

__all__ = ["TorchvisionZoo"]

_SMALLEST_IMAGE = 32
_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "densenet121": models.densenet121,
    "efficientnet_b0": models.efficientnet_b0,
    "mnasnet0_5": models.mnasnet0_5,
    "mnasnet1_0": models.mnasnet1_0,
    "mobilenet_v2": models.mobilenet_v2,
    "mobilenet_v3_large": models.mobilenet_v3_large,
    "mobilenet_v3_small": models.mobilenet_v3_small,
    "regnet_x_400mf": models.regnet_x_400mf,
    "regnet_y_400mf": models.regnet_y_400mf,
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "shufflenet_v2_x0_5": models.shufflenet_v2_x0_5,
    "shufflenet_v2_x1_0": models.shufflenet_v2_x1_0,
    "wide_resnet50_2": models.wide_resnet50_2,
}
# Families whose constructor scales the width.
_SCALED = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")


class TorchvisionZoo:
    """Published torchvision architectures, some with a width factor.

    Parameters of a trial: `network`, and for the MobileNets `width_mult` 0.5, 0.75 or 1.

    Args:
        networks: The networks to search, separated by "+"; all where None.
        weights: Where the networks begin: a name of torchvision's published weights, such as
            "DEFAULT", downloaded where they are not there yet, or a file with a state dictionary
            of the one network. The last layer is drawn anew, and the kernels of the first one are
            added up over the colours for gray images. Drawn at random where None.

    Attributes:
        normalisation: How the images are to be normalised; None for as anything else.
        reference: What `flatsearch.load_space` finds the space by.

    Raises:
        ValueError: If a network is unknown, or a file is for several.

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({"network": "mobilenet_v2", "width_mult": 0.5})
        >>> dict(TorchvisionZoo().suggest(trial).values)
        {'network': 'mobilenet_v2', 'width_mult': 0.5}
    """

    name = "torchvision_zoo"

    def __init__(self, networks: str | None = None, weights: str | None = None) -> None:
        self._networks = sorted(_BUILDERS) if networks is None else networks.split("+")
        for network in self._networks:
            if network not in _BUILDERS:
                known = ", ".join(sorted(_BUILDERS))
                raise ValueError(f"unknown network {network!r}; known: {known}")
        if weights is not None and Path(weights).exists() and len(self._networks) > 1:
            raise ValueError(f"`weights` {weights!r} is a file of one network: give `networks`")
        self._weights = weights
        self.normalisation = None if weights is None else "imagenet"
        given = {"networks": networks, "weights": weights}
        self.reference = ",".join([self.name, *(f"{k}={v}" for k, v in given.items() if v)])

    def untrained(self) -> TorchvisionZoo:
        """Return the space of the same networks without their weights."""
        return TorchvisionZoo("+".join(self._networks))

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters."""
        network = trial.suggest_categorical("network", self._networks)
        if network not in _SCALED or self._weights is not None:
            return Architecture(self.name, {"network": network})
        width = trial.suggest_categorical("width_mult", [0.5, 0.75, 1.0])
        return Architecture(self.name, {"network": network, "width_mult": width})

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> nn.Module:
        """Return a freshly initialised network, as `SearchSpace.build` asks for."""
        options = dict(architecture.values)
        name: Any = options.pop("network")
        if self._weights is None:
            model = _BUILDERS[name](num_classes=num_classes, **options)
            replace_stem(model, in_channels)
        else:
            model = published_network(name, self._weights)
            replace_head(model, num_classes)
            kernels = _stem(model).weight
            replace_stem(model, in_channels)
            if in_channels == 1:
                with torch.no_grad():
                    _stem(model).weight.copy_(kernels.sum(1, keepdim=True))
        if image_size >= _SMALLEST_IMAGE:
            return model
        enlarge = nn.Upsample(
            size=(_SMALLEST_IMAGE, _SMALLEST_IMAGE), mode="bilinear", align_corners=False
        )
        return nn.Sequential(enlarge, model)


def _stem(model: nn.Module) -> nn.Conv2d:
    """Return the first convolution."""
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))
