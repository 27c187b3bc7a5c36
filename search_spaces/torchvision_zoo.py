"""`torchvision_zoo`: published torchvision architectures, as a baseline to beat.

Small images are enlarged to 32x32 by bilinear interpolation, because these networks halve their
maps five times; other numbers of channels get a first convolution of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torchvision import models

from flatsearch.networks.gap_cnn import replace_stem
from flatsearch.spaces.space import Architecture

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

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({"network": "mobilenet_v2", "width_mult": 0.5})
        >>> dict(TorchvisionZoo().suggest(trial).values)
        {'network': 'mobilenet_v2', 'width_mult': 0.5}
    """

    name = "torchvision_zoo"

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters."""
        network = trial.suggest_categorical("network", sorted(_BUILDERS))
        if network not in _SCALED:
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
        options: dict[str, Any] = {k: v for k, v in architecture.values.items() if k != "network"}
        model = _BUILDERS[architecture["network"]](num_classes=num_classes, **options)
        replace_stem(model, in_channels)
        if image_size >= _SMALLEST_IMAGE:
            return model
        enlarge = nn.Upsample(
            size=(_SMALLEST_IMAGE, _SMALLEST_IMAGE), mode="bilinear", align_corners=False
        )
        return nn.Sequential(enlarge, model)
