"""`layers="main"`: which convolution that is, and that it is measured as any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

import flatsearch
from flatsearch.spaces.registry import load_space
from tests.flatness import oracle
from tests.flatness.nets import CASES, CLASSES, GapByMean, images

if TYPE_CHECKING:
    from collections.abc import Callable


class Gated(nn.Module):
    """conv - conv - gate, plus a shortcut that is executed last."""

    def __init__(self, *, gate: nn.Module, shortcut: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, stride, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.gate, self.shortcut = gate, shortcut

    def forward(self, x: Tensor) -> Tensor:
        branch = self.gate(self.second(self.first(x).relu()))
        return (branch + self.shortcut(x)).relu()


class Branches(nn.Module):
    """Inception: the longest branch is executed first."""

    def __init__(self) -> None:
        super().__init__()
        self.long = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.short = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.long(x), self.short(x)], 1).relu()


class DenseGate(nn.Module):
    """Squeeze-and-excitation by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inner(x.mean((2, 3)))[:, :, None, None]


class AlongChannels(nn.Module):
    """The gate of efficient channel attention: the positions of its convolution are channels."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv = nn.Conv1d(1, 1, 3, padding=1) if dimensions == 1 else nn.Conv2d(1, 1, 3, padding=1)
        self.conv, self.shape = conv, [1] * dimensions

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3)).view(len(x), *self.shape, -1)).sigmoid()
        return x * gate.view(len(x), -1, 1, 1).expand_as(x)


def net(block: nn.Module, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), block, GapByMean(), nn.Linear(channels, CLASSES))


def gated(gate: Callable[[], nn.Module], *, shortcut: bool, stride: int = 1) -> nn.Sequential:
    way = nn.Conv2d(4, 4, 1, stride) if shortcut else nn.AvgPool2d(1, stride)
    return net(Gated(gate=gate(), shortcut=way, stride=stride))


NETS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "gate": (
        lambda: gated(lambda: SqueezeExcitation(4, 2), shortcut=False), "1.gate.fc2", "1.second"
    ),
    "dense gate": (lambda: gated(DenseGate, shortcut=False), "1.second", "1.second"),
    "gate along the channels": (
        lambda: gated(lambda: AlongChannels(2), shortcut=False), "1.gate.conv", "1.second"
    ),
    "shortcut": (lambda: gated(nn.Identity, shortcut=True), "1.shortcut", "1.second"),
    "gate and shortcut": (
        lambda: gated(lambda: SqueezeExcitation(4, 2), shortcut=True), "1.shortcut", "1.second"
    ),
    "gate on one position": (  # the map is 1x1 by its stride, not by pooling
        lambda: gated(lambda: SqueezeExcitation(4, 2), shortcut=False, stride=6),
        "1.gate.fc2",
        "1.second",
    ),
    "branches": (lambda: net(Branches(), 8), "1.short", "1.long.2"),
    "pooled before the last one": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(5, CLASSES),
        ),
        "3",
        "0",
    ),
    "pooled on the way": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(6), nn.Conv2d(4, 5, 1), GapByMean(),
            nn.Linear(5, CLASSES),
        ),
        "3",
        "3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_last_of_the_main_path(name: str) -> None:
    make, last, main = NETS[name]
    torch.manual_seed(0)
    model, (x, y) = make().double(), images()
    x = x.double()
    assert list(flatsearch.relative_flatness(model, (x, y)).layers) == [last]
    result = flatsearch.relative_flatness(model, (x, y), layers="main")
    assert list(result.layers) == [main]
    assert result == flatsearch.relative_flatness(model, (x, y), layers=main)
    expected = oracle.by_hessian if result.kind == "hessian" else by_gauss_newton
    assert result.relative_flatness == pytest.approx(expected(model, x, y, main)[1], rel=1e-8)


def by_gauss_newton(model: nn.Module, x: Tensor, _: Tensor, layer: str) -> tuple[float, float]:
    return oracle.by_gauss_newton(model, x, layer)


def test_a_gate_that_is_not_covered_is_left_out() -> None:
    model, data = gated(lambda: AlongChannels(1), shortcut=False), images()
    result = flatsearch.relative_flatness(model, data, layers="all", skip_unsupported=True)
    assert list(result.layers) == ["0", "1.first", "1.second"]
    assert result.skipped == {"1.gate.conv": "Conv1d is not covered, only plain 2d convolutions"}
    with pytest.raises(flatsearch.UnsupportedModelError, match=r"'1\.gate\.conv': Conv1d is not"):
        flatsearch.relative_flatness(model, data)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_the_main_path_goes_through_convolutions_of_other_dimensions(dimensions: int) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3) if dimensions == 1 else nn.Conv3d(4, 4, (1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            if dimensions == 3:
                return self.conv(x[:, :, None])[:, :, 0]
            rows = self.conv(x.transpose(1, 2).flatten(0, 1))
            return rows.unflatten(0, (len(x), -1)).transpose(1, 2)

    model, data = net(Other()), images()
    for layers in ("main", "last"):
        with pytest.raises(flatsearch.UnsupportedModelError, match=f"Conv{dimensions}d is not cov"):
            flatsearch.relative_flatness(model, data, layers=layers)
    with pytest.raises(flatsearch.UnsupportedModelError, match=r"'1\.conv'"):
        flatsearch.relative_flatness(model, data, layers="all")


class Token(nn.Module):
    """A class token beside the positions, and a convolution that sums over copies of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sum, self.head = nn.Conv2d(2, 4, 3), nn.Conv1d(2, 1, 1), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).mT
        x = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
        token = self.attention(x, x, x)[0][:, :1]
        return self.head(self.sum(torch.cat([token, token], 1))[:, 0])


def test_a_convolution_of_tokens_has_no_positions() -> None:
    with pytest.raises(flatsearch.UnsupportedModelError, match=r"'conv', the last convolution, is"):
        flatsearch.relative_flatness(Token(), images(), layers="all", skip_unsupported=True)


def test_flattened_behind_a_gate_on_one_position_is_refused() -> None:
    block = Gated(gate=SqueezeExcitation(4, 2), shortcut=nn.Identity())
    model = nn.Sequential(nn.Conv2d(2, 4, 3), block, nn.Flatten(), nn.Linear(144, CLASSES))
    with pytest.raises(flatsearch.UnsupportedModelError, match="positions are flattened"):
        flatsearch.relative_flatness(model, images())


def test_the_same_where_there_is_one_path() -> None:
    for case in CASES[::4]:
        model, data = case.make(), images()
        main = flatsearch.relative_flatness(model, data, layers="main")
        assert main == flatsearch.relative_flatness(model, data)


@pytest.mark.parametrize(
    ("name", "last", "main"),
    [
        ("resnet18", "layer4.1.conv2", "layer4.1.conv2"),
        ("mobilenet_v3_small", "features.12.0", "features.12.0"),
        ("googlenet", "inception5b.branch4.1.conv", "inception5b.branch3.1.conv"),
    ],
)
def test_of_torchvision(name: str, last: str, main: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=4, **EXTRA.get(name, {}))
    data = torch.randn(2, 3, 64, 64), torch.arange(2)
    for layers, expected in (("last", last), ("main", main)):
        assert list(flatsearch.relative_flatness(model, data, layers=layers).layers) == [expected]


EXTRA = {"googlenet": {"init_weights": False, "aux_logits": False}}


@pytest.mark.parametrize(
    "space", ["resnet_small", "mobilenet_small", "regnet_small", "densenet_small", "plain_cnn"]
)
def test_of_the_spaces(space: str) -> None:
    """Their last convolution is the last of the main path, whatever the candidate."""
    import optuna

    known, study = load_space(space), optuna.create_study(sampler=optuna.samplers.RandomSampler(3))
    for _ in range(2):
        architecture = known.suggest(study.ask())
        model = known.build(architecture, in_channels=1, num_classes=3)
        data = torch.randn(2, 1, 8, 8), torch.arange(2)
        main, last = (
            flatsearch.relative_flatness(model, data, layers=layers) for layers in ("main", "last")
        )
        assert list(main.layers) == list(last.layers)
