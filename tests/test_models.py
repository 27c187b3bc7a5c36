"""GapCnn, and its size against values worked out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from flatsearch import GapCnn, count_flops, count_parameters


def net() -> GapCnn:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return GapCnn(features, 8, 5).eval()


def test_forward_is_features_pooling_classifier() -> None:
    model, x = net(), torch.randn(4, 3, 6, 7)
    maps = model.forward_features(x)
    assert maps.shape == (4, 8, 6, 7)
    pooled = model.forward_head(maps, pre_logits=True)
    assert torch.allclose(pooled, maps.mean((2, 3)), atol=1e-6)
    logits = pooled @ model.classifier.weight.T + model.classifier.bias
    assert torch.allclose(model.forward_head(maps), logits, atol=1e-6)
    assert torch.allclose(model(x), logits, atol=1e-6)
    assert logits.shape == (4, 5)


def test_parts() -> None:
    model = net()
    assert isinstance(model.classifier, nn.Linear)
    assert (model.classifier.in_features, model.classifier.out_features) == (8, 5)
    assert model.num_features == 8
    assert isinstance(model.pool, nn.AdaptiveAvgPool2d)
    assert {name.split(".")[0] for name in model.state_dict()} == {"features", "classifier"}


def test_any_image_size_of_one_image() -> None:
    for size in (1, 5, 32):
        assert net()(torch.zeros(1, 3, size, size)).shape == (1, 5)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (nn.Conv2d(3, 8, 3), 8 * 3 * 9 + 8),
        (nn.Conv2d(4, 8, 3, groups=2, bias=False), 8 * 2 * 9),
        (nn.BatchNorm2d(8), 16),  # running statistics are not parameters
        (nn.Linear(8, 5), 45),
        (net(), 224 + 16 + 45),
        (nn.ReLU(), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameters(model: nn.Module, parameters: int) -> None:
    assert count_parameters(model) == parameters


def test_frozen_and_shared_parameters() -> None:
    model = net()
    model.features.requires_grad_(False)
    assert count_parameters(model) == 45
    conv = nn.Conv2d(2, 2, 1)
    assert count_parameters(nn.Sequential(conv, conv)) == 6


@pytest.mark.parametrize(
    ("model", "channels", "size", "multiply_adds"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 3, 6, 36 * 8 * 27),
        (nn.Conv2d(3, 8, 3), 3, 6, 16 * 8 * 27),
        (nn.Conv2d(3, 8, 5, stride=2, padding=2), 3, 7, 16 * 8 * 75),
        (nn.Conv2d(4, 8, 3, groups=4, padding=1), 4, 6, 36 * 8 * 9),
        (nn.Conv2d(1, 2, (1, 3)), 1, 5, 15 * 2 * 3),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), 3, 2, 12 * 7),
        (net(), 3, 6, 36 * 8 * 27 + 8 * 5),  # normalisation, activation and pooling are free
        (
            nn.Sequential(nn.Conv2d(1, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)),
            1, 8, 64 * 4 + 16 * 6 * 36,
        ),
    ],
)  # fmt: skip
def test_flops(model: nn.Module, channels: int, size: int, multiply_adds: int) -> None:
    assert count_flops(model, channels, size) == 2 * multiply_adds


def test_flops_do_not_change_the_model() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    assert count_flops(model, 3, 6) == count_flops(model.eval(), 3, 6)
    assert not model.training
    assert count_flops(model.train(), 3, 6) > 0
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_flops_of_other_precisions_are_the_same() -> None:
    assert count_flops(net().double(), 3, 6) == count_flops(net(), 3, 6)


def test_the_mode_is_restored_after_a_failure() -> None:
    model = net().train()
    with pytest.raises(RuntimeError):
        count_flops(model, 4, 6)
    assert model.training
