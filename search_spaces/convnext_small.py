"""`convnext_small`: ConvNeXts for small images.

After Liu et al., "A ConvNet for the 2020s", CVPR 2022, arXiv 2201.03545: patches, then stages of
depthwise 7x7 convolutions with layer norm, GELU and 1x1 layers. The network is torchvision's,
with patches and strides that follow the image's size.

The last convolution is followed by a layer norm, so its flatness is that of the Gauss-Newton
matrix and takes a backward pass per class: the report labels it so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from flatsearch.networks.gap_cnn import replace_stem
from flatsearch.spaces.space import Architecture

if TYPE_CHECKING:
    import optuna

__all__ = ["ConvNeXtSmall"]

# The patches are as large as it takes to have no more positions than this on a side.
_LARGEST_STAGE_MAP = 32
# Below this no stage halves any more.
_SMALLEST_MAP = 4


class ConvNeXtSmall:
    """ConvNeXts of 1 to 3 stages.

    Parameters of a trial: `width` 16..64, `stages` 1..3, `blocks_1` 2..4, `blocks_I` 1..4 per
    further stage, and `widen`
    1, 1.5 or 2 from stage to stage.

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial(
        ...     {"width": 16, "stages": 2, "blocks_1": 2, "blocks_2": 1, "widen": 2.0}
        ... )
        >>> ConvNeXtSmall().suggest(trial)["widths"]
        (16, 32)
    """

    name = "convnext_small"

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters."""
        width = trial.suggest_int("width", 16, 64, step=16)
        stages = trial.suggest_int("stages", 1, 3)
        # torchvision's ConvNeXt needs two blocks in all
        blocks = [trial.suggest_int(f"blocks_{i}", 1 + (i == 1), 4) for i in range(1, stages + 1)]
        factor = trial.suggest_float("widen", 1.0, 2.0, step=0.5) if stages > 1 else 1.0
        widths = [int(width * factor**stage) for stage in range(stages)]
        return Architecture(self.name, {"widths": widths, "blocks": blocks})

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> ConvNeXt:
        """Return a freshly initialised network, as `SearchSpace.build` asks for."""
        widths = architecture["widths"]
        following = [*widths[1:], None]
        stages = [
            CNBlockConfig(width, out, blocks)
            for width, out, blocks in zip(widths, following, architecture["blocks"], strict=True)
        ]
        model = ConvNeXt(stages, num_classes=num_classes)
        patch = max(1, -(-image_size // _LARGEST_STAGE_MAP))
        stem = model.features[0]
        stem[0] = nn.Conv2d(in_channels, widths[0], patch, patch)
        size = image_size // patch
        for stage in range(1, len(widths)):
            if size // 2 >= _SMALLEST_MAP:
                size //= 2
            else:
                replace_stem(model.features[2 * stage], widths[stage - 1], kernel=1, stride=1)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return model
