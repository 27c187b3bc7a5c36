"""`mobilenet_small`: inverted residuals for small images.

After Sandler et al., "MobileNetV2", CVPR 2018, arXiv 1801.04381, and Howard et al., "Searching
for MobileNetV3", ICCV 2019, arXiv 1905.02244: expand by a 1x1 convolution, filter each channel
(depthwise), optionally gate the channels (squeeze and excitation), project back. The block is
torchvision's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.ops import Conv2dNormActivation

from flatsearch.networks.gap_cnn import GapCnn, he_initialise
from flatsearch.spaces.space import Architecture

if TYPE_CHECKING:
    import optuna

__all__ = ["MobileNetSmall"]

_ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}
_LARGEST_STAGE_MAP = 64
_SMALLEST_MAP = 4


class MobileNetSmall:
    """Inverted residual networks of 1 to 4 stages.

    Parameters of a trial: `stem_width` 8..24, `stages` 1..4, per stage `blocks_I` 1..3, `width_I`
    8..64, `expand_I` 1 to 6 and `kernel_I` 3 or 5, `squeeze_excitation`, `activation` relu or
    hardswish, and `head_factor`, how much wider than the last stage the final 1x1 convolution is
    (1, 2 or 4).

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({
        ...     "stem_width": 8, "stages": 1, "blocks_1": 2, "width_1": 16, "expand_1": 3,
        ...     "kernel_1": 3, "squeeze_excitation": True, "activation": "relu", "head_factor": 2,
        ... })
        >>> MobileNetSmall().suggest(trial)["head_width"]
        32
    """

    name = "mobilenet_small"

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters."""
        stem_width = trial.suggest_int("stem_width", 8, 24, step=8)
        stages = range(1, trial.suggest_int("stages", 1, 4) + 1)
        blocks = [trial.suggest_int(f"blocks_{i}", 1, 3) for i in stages]
        widths = [trial.suggest_int(f"width_{i}", 8, 64, step=8) for i in stages]
        return Architecture(
            self.name,
            {
                "stem_width": stem_width,
                "blocks": blocks,
                "widths": widths,
                "expand": [trial.suggest_int(f"expand_{i}", 1, 6) for i in stages],
                "kernels": [trial.suggest_int(f"kernel_{i}", 3, 5, step=2) for i in stages],
                "squeeze_excitation": trial.suggest_categorical(
                    "squeeze_excitation", [False, True]
                ),
                "activation": trial.suggest_categorical("activation", sorted(_ACTIVATIONS)),
                "head_width": widths[-1] * trial.suggest_categorical("head_factor", [1, 2, 4]),
            },
        )

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> GapCnn:
        """Return a freshly initialised network, as `SearchSpace.build` asks for."""
        hardswish = architecture["activation"] == "hardswish"
        activation = _ACTIVATIONS[architecture["activation"]]
        size, inputs = image_size, in_channels
        layers: list[nn.Module] = []
        width, stride = architecture["stem_width"], 1 + (size > _LARGEST_STAGE_MAP)
        layers.append(Conv2dNormActivation(inputs, width, 3, stride, activation_layer=activation))
        size, inputs = (size + stride - 1) // stride, width
        stages = zip(
            architecture["blocks"],
            architecture["widths"],
            architecture["expand"],
            architecture["kernels"],
            strict=True,
        )
        for stage, (blocks, width, expand, kernel) in enumerate(stages):
            # Every stage but the first halves; all do while the map is larger than a stage's.
            halve = size > _LARGEST_STAGE_MAP or (stage > 0 and size // 2 >= _SMALLEST_MAP)
            for index in range(blocks):
                stride = 2 if halve and index == 0 else 1
                config = InvertedResidualConfig(
                    inputs,
                    kernel,
                    inputs * expand,
                    width,
                    architecture["squeeze_excitation"],
                    "HS" if hardswish else "RE",
                    stride,
                    1,
                    1.0,
                )
                layers.append(InvertedResidual(config, partial(nn.BatchNorm2d)))
                size, inputs = (size + stride - 1) // stride, width
        head = architecture["head_width"]
        layers.append(Conv2dNormActivation(inputs, head, 1, activation_layer=activation))
        return GapCnn(he_initialise(nn.Sequential(*layers)), head, num_classes)
