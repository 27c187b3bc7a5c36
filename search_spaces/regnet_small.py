"""`regnet_small`: the four-parameter RegNet family for small images.

After Radosavovic et al., "Designing Network Design Spaces", CVPR 2020, arXiv 2003.13678: block
widths follow a line u_j = w_0 + w_a j, quantised to powers of w_m; depth is the number of blocks.
The network is torchvision's, with a stem of stride 1 for images up to 64x64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchvision.models.regnet import BlockParams, RegNet

from flatsearch.networks.gap_cnn import replace_stem
from flatsearch.spaces.space import Architecture

if TYPE_CHECKING:
    import optuna

__all__ = ["RegNetSmall"]

_LARGEST_STAGE_MAP = 64


class RegNetSmall:
    """RegNets of a few blocks.

    Parameters of a trial: `depth` 2..10 blocks, `w_0` 8..64, `w_a` 4..32 and `w_m` 1.5..3, the
    line and the quantisation of the widths, `group_width` 4, 8 or 16, and `squeeze_excitation`.

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({
        ...     "depth": 4, "w_0": 16, "w_a": 8.0, "w_m": 2.0, "group_width": 8,
        ...     "squeeze_excitation": False,
        ... })
        >>> RegNetSmall().suggest(trial)["widths"]
        (16, 32)
    """

    name = "regnet_small"

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters.

        Different parameters often give the same widths; the architecture holds those.
        """
        group_width = trial.suggest_categorical("group_width", [4, 8, 16])
        params = BlockParams.from_init_params(
            depth=trial.suggest_int("depth", 2, 10),
            w_0=trial.suggest_int("w_0", 8, 64, step=8),
            w_a=trial.suggest_float("w_a", 4.0, 32.0),
            w_m=trial.suggest_float("w_m", 1.5, 3.0),
            group_width=group_width,
        )
        return Architecture(
            self.name,
            {
                "depths": params.depths,
                "widths": params.widths,
                "group_widths": params.group_widths,
                "squeeze_excitation": trial.suggest_categorical(
                    "squeeze_excitation", [False, True]
                ),
            },
        )

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> RegNet:
        """Return a freshly initialised network, as `SearchSpace.build` asks for."""
        stages = len(architecture["widths"])
        params = BlockParams(
            depths=list(architecture["depths"]),
            widths=list(architecture["widths"]),
            group_widths=list(architecture["group_widths"]),
            bottleneck_multipliers=[1.0] * stages,
            strides=[2] * stages,
            se_ratio=0.25 if architecture["squeeze_excitation"] else None,
        )
        model = RegNet(params, num_classes=num_classes, stem_width=16)
        small = image_size <= _LARGEST_STAGE_MAP
        replace_stem(model, in_channels, kernel=3, stride=1 if small else 2)
        return model
