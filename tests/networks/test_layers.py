"""Architectures as drawings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from flatsearch import GapCnn
from flatsearch.networks.drawing import draw
from flatsearch.networks.layers import Layer, executed_layers


def layers(*modules: nn.Module, channels: int = 1, size: int = 8) -> list[Layer]:
    return executed_layers(nn.Sequential(*modules), channels, size)


def test_sizes_and_parameters_by_hand() -> None:
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    assert executed_layers(GapCnn(features, 8, 5), 3, 6) == [
        Layer("conv 3x3", 8, 6, 6, 8 * 27 + 8),
        Layer("max pool 2 /2", 8, 3, 3, 0),
        Layer("global pool", 8, 0, 0, 0),
        Layer("linear", 5, 0, 0, 45),
    ]


def test_kinds_of_convolutions() -> None:
    kinds = [
        layer.kind
        for layer in layers(
            nn.Conv2d(1, 4, (1, 3)),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.Conv2d(4, 4, 1, groups=2),
            nn.Conv2d(4, 4, 1, stride=2),
            nn.AvgPool2d(2, 1),
        )
    ]
    assert kinds == [
        "conv 1x3",
        "conv 3x3 depthwise",
        "conv 1x1 in 2 groups",
        "conv 1x1 /2",
        "mean pool 2",
    ]


def test_equal_layers_are_counted() -> None:
    found = layers(nn.Conv2d(1, 2, 1), *(nn.Conv2d(2, 2, 1) for _ in range(3)), nn.ReLU())
    assert [(layer.channels, layer.repeats) for layer in found] == [(2, 1), (2, 3)]


def test_a_gate_is_one_layer() -> None:
    found = layers(nn.Conv2d(1, 4, 1), SqueezeExcitation(4, 2))
    assert [layer.kind for layer in found] == ["conv 1x1", "gate"]
    assert found[1].parameters == 4 * 2 + 2 + 2 * 4 + 4


def test_the_order_is_that_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Conv2d(2, 3, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    assert [layer.channels for layer in layers(Backwards())] == [2, 3]


def test_a_linear_layer_on_maps_has_its_features_last() -> None:
    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.permute(0, 2, 3, 1))

    assert layers(Permuted()) == [Layer("linear", 5, 8, 8, 10)]


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    executed_layers(model, 1, 4)
    assert model.training
    assert torch.equal(model[1].running_mean, torch.zeros(2))
    assert not model[0]._forward_hooks


def test_bars_are_as_long_as_the_maps_are_deep() -> None:
    lines = draw([Layer("conv 3x3", 64, 8, 8, 1000), Layer("linear", 16, 0, 0, 0)], 1, 8)
    assert [line.count("#") for line in lines] == [1, 32, 8]
    assert lines[1].endswith("1,000")
