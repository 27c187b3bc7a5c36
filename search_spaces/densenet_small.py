"""`densenet_small`: densely connected networks for small images.

After Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, arXiv 1608.06993:
every layer of a block adds `growth` channels to all that came before. The network is
torchvision's, with a 3x3 stem without pooling for images up to 64x64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torchvision.models import DenseNet

from flatsearch.networks.gap_cnn import replace_stem
from flatsearch.spaces.space import Architecture

if TYPE_CHECKING:
    import optuna

__all__ = ["DenseNetSmall"]

_LARGEST_STAGE_MAP = 64


class DenseNetSmall:
    """Densely connected networks of 1 to 3 blocks.

    Parameters of a trial: `growth` 4..24, `blocks` 1..3, `layers_I` 2..8 per block, `stem_width`
    8..32, and `bottleneck` 1..4, how many times `growth` a layer's inner 1x1 convolution is wide.

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({
        ...     "growth": 8, "blocks": 2, "layers_1": 3, "layers_2": 4, "stem_width": 16,
        ...     "bottleneck": 2,
        ... })
        >>> DenseNetSmall().suggest(trial)["layers"]
        (3, 4)
    """

    name = "densenet_small"

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters."""
        blocks = trial.suggest_int("blocks", 1, 3)
        return Architecture(
            self.name,
            {
                "growth": trial.suggest_int("growth", 4, 24, step=4),
                "layers": [trial.suggest_int(f"layers_{i}", 2, 8) for i in range(1, blocks + 1)],
                "stem_width": trial.suggest_int("stem_width", 8, 32, step=8),
                "bottleneck": trial.suggest_int("bottleneck", 1, 4),
            },
        )

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> DenseNet:
        """Return a freshly initialised network, as `SearchSpace.build` asks for."""
        model = DenseNet(
            growth_rate=architecture["growth"],
            block_config=architecture["layers"],
            num_init_features=architecture["stem_width"],
            bn_size=architecture["bottleneck"],
            num_classes=num_classes,
        )
        if image_size <= _LARGEST_STAGE_MAP:
            replace_stem(model, in_channels, kernel=3, stride=1)
            model.features.pool0 = nn.Identity()
        else:
            replace_stem(model, in_channels)
        return model
