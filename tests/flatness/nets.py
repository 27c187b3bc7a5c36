"""Small networks with a known last convolution, as data for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 3


class Residual(nn.Module):
    """conv - norm - act - conv - norm, plus a shortcut, then an activation."""

    def __init__(self, channels: int, act: Callable[[], nn.Module], *, norm: bool = True) -> None:
        super().__init__()
        make = (lambda: nn.BatchNorm2d(channels)) if norm else nn.Identity
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([make(), make()])
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norms[1](self.second(self.act(self.norms[0](self.first(x)))))
        branch += x  # in place, as torchvision does it
        return self.act(branch)


class GapByMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Case:
    """A network, its last convolution, and what its measure is."""

    name: str
    build: Callable[[], nn.Module]
    layer: str
    kind: str = "hessian"

    def make(self, seed: int = 0) -> nn.Module:
        """Return the network with weights and batch statistics that are not special."""
        torch.manual_seed(seed)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
        return model.eval()


def _net(conv: nn.Conv2d, *tail: nn.Module, pool: nn.Module | None = None) -> nn.Module:
    """A stem with 4 channels, the measured convolution, its tail, pooling, the classifier."""
    gap = [pool] if pool is not None else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), conv, *tail, *gap, nn.Linear(conv.out_channels, CLASSES)
    )


def _residual(act: Callable[[], nn.Module], *, norm: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), Residual(4, act, norm=norm), GapByMean(), nn.Linear(4, CLASSES)
    )


def _conv(out: int = 5, kernel: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(4, out, kernel, **options)  # type: ignore[arg-type]


CASES = [
    Case("plain relu", lambda: _net(_conv(), nn.ReLU()), "2"),
    Case("relu in place", lambda: _net(_conv(), nn.ReLU(inplace=True)), "2"),
    Case("norm relu", lambda: _net(_conv(bias=False), nn.BatchNorm2d(5), nn.ReLU()), "2"),
    Case("no activation", lambda: _net(_conv()), "2"),
    Case("leaky relu", lambda: _net(_conv(), nn.LeakyReLU(0.2)), "2"),
    Case("relu6", lambda: _net(_conv(), nn.ReLU6()), "2"),
    Case("prelu", lambda: _net(_conv(), nn.PReLU()), "2"),
    Case("gelu", lambda: _net(_conv(), nn.GELU()), "2"),
    Case("silu", lambda: _net(_conv(bias=False), nn.SiLU(inplace=True)), "2"),
    Case("hardswish", lambda: _net(_conv(), nn.Hardswish()), "2"),
    Case("norm gelu", lambda: _net(_conv(), nn.BatchNorm2d(5), nn.GELU()), "2"),
    Case("norm silu", lambda: _net(_conv(), nn.BatchNorm2d(5), nn.SiLU()), "2"),
    Case("stride", lambda: _net(_conv(stride=2, padding=1), nn.ReLU()), "2"),
    Case("unequal strides", lambda: _net(_conv(stride=(1, 3)), nn.GELU()), "2"),
    Case("dilation", lambda: _net(_conv(dilation=2, padding=2), nn.ReLU()), "2"),
    Case("stride and dilation", lambda: _net(_conv(stride=2, dilation=2), nn.SiLU()), "2"),
    Case("1x1", lambda: _net(_conv(kernel=1), nn.BatchNorm2d(5), nn.ReLU()), "2"),
    Case("1x1 stride", lambda: _net(_conv(kernel=1, stride=2), nn.GELU()), "2"),
    Case("1x1 padding", lambda: _net(_conv(kernel=1, padding=1), nn.ReLU()), "2"),
    Case("5x5", lambda: _net(_conv(kernel=5, padding=2), nn.ReLU()), "2"),
    Case("5x5 gelu no bias", lambda: _net(_conv(kernel=5, bias=False), nn.GELU()), "2"),
    Case("3x1", lambda: _net(_conv(kernel=(3, 1), padding=(1, 0)), nn.ReLU()), "2"),
    Case("padding same", lambda: _net(_conv(kernel=4, padding="same"), nn.ReLU()), "2"),
    Case("padding valid", lambda: _net(_conv(padding="valid"), nn.ReLU()), "2"),
    Case(
        "padding reflect",
        lambda: _net(_conv(padding=(1, 2), padding_mode="reflect"), nn.ReLU()),
        "2",
    ),
    Case(
        "padding circular",
        lambda: _net(_conv(kernel=(2, 3), padding="same", padding_mode="circular"), nn.GELU()),
        "2",
    ),
    Case("residual relu", lambda: _residual(nn.ReLU, norm=False), "1.second"),
    Case("residual norm relu", lambda: _residual(nn.ReLU, norm=True), "1.second"),
    Case("residual norm gelu", lambda: _residual(nn.GELU, norm=True), "1.second"),
    Case("residual norm silu", lambda: _residual(nn.SiLU, norm=True), "1.second"),
    Case(
        "max pooling in the tail",
        lambda: _net(_conv(), nn.ReLU(), nn.MaxPool2d(2), pool=GapByMean()),
        "2",
    ),
    Case(
        "pooling, then a kink",
        lambda: _net(_conv(), nn.ReLU(), nn.AvgPool2d(2), nn.Hardtanh()),
        "2",
    ),
    # One position is smooth in another: not elementwise, the Gauss-Newton matrix is measured.
    Case(
        "smooth after pooling",
        lambda: _net(_conv(), nn.AvgPool2d(2), nn.SiLU()),
        "2",
        kind="gauss-newton",
    ),
    Case(
        "instance norm",
        lambda: _net(_conv(), nn.InstanceNorm2d(5), nn.ReLU()),
        "2",
        kind="gauss-newton",
    ),
]


def images(n: int = 6, seed: int = 1, size: int = 8) -> tuple[Tensor, Tensor]:
    """Return random (inputs, targets)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, size, size, generator=generator)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)
