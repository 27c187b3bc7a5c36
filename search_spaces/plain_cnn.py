"""`plain_cnn`: VGG-like networks without shortcuts.

After Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", ICLR 2015, arXiv 1409.1556, with batch norm, and with global average pooling in
place of the dense layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from flatsearch.networks.gap_cnn import GapCnn, he_initialise
from flatsearch.spaces.space import Architecture, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

__all__ = ["PlainCnn"]

_ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
}
# Images larger than this are halved by the stem until they are not.
_LARGEST_STAGE_MAP = 64
# Below this no stage halves any more.
_SMALLEST_MAP = 4


class PlainCnn:
    """VGG-like networks: stages of convolutions, halved in between.

    Parameters of a trial: `width` 8..64, `stages` 1..4, `convs_I` 1..3 per stage, `widen` whether
    each stage is twice as wide as the one before, `kernel` 3 or 5, `activation` relu, leaky_relu or
    silu, and with several stages `halving` by max pooling or by stride.

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({
        ...     "width": 16, "stages": 2, "convs_1": 1, "convs_2": 2, "widen": True, "kernel": 3,
        ...     "activation": "relu", "halving": "stride",
        ... })
        >>> PlainCnn().suggest(trial)["widths"]
        (16, 32, 32)
    """

    name = "plain_cnn"

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters."""
        width = trial.suggest_int("width", 8, 64, step=8)
        stages = trial.suggest_int("stages", 1, 4)
        convs = [trial.suggest_int(f"convs_{stage}", 1, 3) for stage in range(1, stages + 1)]
        widen = stages > 1 and trial.suggest_categorical("widen", [False, True])
        widths = [
            width * (2**stage if widen else 1)
            for stage, count in enumerate(convs)
            for _ in range(count)
        ]
        starts = [sum(convs[:stage]) for stage in range(1, stages)]
        values: dict[str, Value] = {
            "widths": widths,
            "halve_before": starts,
            "kernel": trial.suggest_int("kernel", 3, 5, step=2),
            "activation": trial.suggest_categorical("activation", sorted(_ACTIVATIONS)),
        }
        if stages > 1:  # a single stage has nothing to halve
            values["halving"] = trial.suggest_categorical("halving", ["max_pool", "stride"])
        return Architecture(self.name, values)

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> GapCnn:
        """Return a freshly initialised network, as `SearchSpace.build` asks for."""
        widths, kernel = architecture["widths"], architecture["kernel"]
        activation = _ACTIVATIONS[architecture["activation"]]
        size, layers, inputs = image_size, list[nn.Module](), in_channels

        def conv(width: int, stride: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, width, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                activation(inplace=True),
            )

        while size > _LARGEST_STAGE_MAP:
            layers.append(conv(widths[0], 2))
            size, inputs = (size + 1) // 2, widths[0]
        for index, width in enumerate(widths):
            stride = 1
            if index in architecture["halve_before"] and size // 2 >= _SMALLEST_MAP:
                if architecture["halving"] == "stride":
                    stride, size = 2, (size + 1) // 2
                else:
                    layers.append(nn.MaxPool2d(2))
                    size //= 2
            layers.append(conv(width, stride))
            inputs = width
        return GapCnn(he_initialise(nn.Sequential(*layers)), widths[-1], num_classes)
