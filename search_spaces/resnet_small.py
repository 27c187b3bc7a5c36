"""`resnet_small`: CIFAR-style residual networks for small images.

After He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385:
a 3x3 stem, then stages of basic or bottleneck blocks, each stage wider and (where the map is
large enough) half the size of the one before, global average pooling and a linear classifier.
Optionally with pre-activation (He et al., "Identity Mappings in Deep Residual Networks", ECCV
2016, arXiv 1603.05027) and squeeze-and-excitation (Hu et al., CVPR 2018, arXiv 1709.01507).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from flatsearch.networks.gap_cnn import GapCnn, he_initialise
from flatsearch.spaces.space import Architecture

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

__all__ = ["ResNetSmall"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
}
# Images larger than this are halved by the stem until they are not.
_LARGEST_STAGE_MAP = 64
# Below this no stage halves any more.
_SMALLEST_MAP = 4
# How much narrower a squeeze-and-excitation gate is inside than its block.
_SQUEEZE = 4


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class SqueezeExcitation(nn.Module):
    """x times a gate per channel, which depends on the mean of every channel.

    As torchvision's, layer by layer: to import that takes as long as to import PyTorch.
    """

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, inside, 1)
        self.fc2 = nn.Conv2d(inside, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        squeezed = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(squeezed)) * x


class _Block(nn.Module):
    """A residual block: act(branch(x) + shortcut(x)), or with pre-activation without that act.

    Squeeze-and-excitation gates the map that goes into the branch's last convolution, as in
    RegNetY and MobileNetV3: behind it, the gate would couple all channels of the convolution whose
    flatness a search measures after every epoch.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, architecture: Architecture) -> None:
        super().__init__()
        act = _ACTIVATIONS[architecture["activation"]]
        kernel, pre = architecture["kernel"], architecture["pre_activation"]
        # (outputs, kernel, stride) of the branch's convolutions.
        if architecture["block"] == "basic":
            convs = [(outputs, kernel, stride), (outputs, kernel, 1)]
        else:
            inner = max(4, outputs // 4)
            convs = [(inner, 1, 1), (inner, kernel, stride), (outputs, 1, 1)]
        branch: list[nn.Module] = []
        width = inputs
        for index, (wide, size, step) in enumerate(convs):
            last = index == len(convs) - 1
            if pre:
                branch += [nn.BatchNorm2d(width), act()]
            if last and architecture["squeeze_excitation"]:
                branch.append(SqueezeExcitation(width, max(4, width // _SQUEEZE)))
            branch.append(nn.Conv2d(width, wide, size, step, size // 2, bias=False))
            if not pre:
                branch += [nn.BatchNorm2d(wide)] + ([] if last else [act()])
            width = wide
        self.branch = nn.Sequential(*branch)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)
        self.act = nn.Identity() if pre else act()

    def forward(self, x: Tensor) -> Tensor:
        # The shortcut first: the branch's last convolution is then the last one executed.
        shortcut = self.shortcut(x)
        return self.act(self.branch(x) + shortcut)


class ResNetSmall:
    """Residual networks of 1 to 3 stages.

    Parameters of a trial: `stem_width` 8..32, `stages` 1..3, per stage `blocks_I` 1..3 and (from
    the second on) `widen_I` 1, 1.5 or 2, `block` basic or bottleneck, `kernel` 3 or 5,
    `activation` relu, silu or gelu, `pre_activation` and `squeeze_excitation`. Every stage but the
    first halves the map as long as at least 4x4 are left.

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({
        ...     "stem_width": 16, "stages": 2, "blocks_1": 1, "blocks_2": 2, "widen_2": 2.0,
        ...     "block": "basic", "kernel": 3, "activation": "relu",
        ...     "pre_activation": False, "squeeze_excitation": True,
        ... })
        >>> ResNetSmall().suggest(trial)["widths"]
        (16, 32)
    """

    name = "resnet_small"

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters."""
        stem_width = trial.suggest_int("stem_width", 8, 32, step=8)
        stages = trial.suggest_int("stages", 1, 3)
        widths, blocks = [stem_width], []
        for stage in range(1, stages + 1):
            blocks.append(trial.suggest_int(f"blocks_{stage}", 1, 3))
            if stage > 1:
                factor = trial.suggest_float(f"widen_{stage}", 1.0, 2.0, step=0.5)
                widths.append(int(widths[-1] * factor))
        return Architecture(
            self.name,
            {
                "widths": widths,
                "blocks": blocks,
                "block": trial.suggest_categorical("block", ["basic", "bottleneck"]),
                "kernel": trial.suggest_int("kernel", 3, 5, step=2),
                "activation": trial.suggest_categorical("activation", ["relu", "silu", "gelu"]),
                "pre_activation": trial.suggest_categorical("pre_activation", [False, True]),
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
    ) -> GapCnn:
        """Return a freshly initialised network, as `SearchSpace.build` asks for."""
        widths = architecture["widths"]
        act = _ACTIVATIONS[architecture["activation"]]
        size, layers, inputs = image_size, [], in_channels
        while size > _LARGEST_STAGE_MAP:
            layers += [_conv_norm(inputs, widths[0], 3, 2), act()]
            size, inputs = (size + 1) // 2, widths[0]
        layers += [_conv_norm(inputs, widths[0], 3), act()]
        inputs = widths[0]
        for stage, (width, blocks) in enumerate(zip(widths, architecture["blocks"], strict=True)):
            halve = stage > 0 and size // 2 >= _SMALLEST_MAP
            for index in range(blocks):
                stride = 2 if halve and index == 0 else 1
                layers.append(_Block(inputs, width, stride, architecture))
                size, inputs = (size + stride - 1) // stride, width
        if architecture["pre_activation"]:
            layers += [nn.BatchNorm2d(widths[-1]), act()]
        return GapCnn(he_initialise(nn.Sequential(*layers)), widths[-1], num_classes)
