"""GapCnn, and its size against values worked out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from flatsearch import GapCnn, count_flops, count_parameters
from flatsearch.networks.duplicate_key import network_key


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
            1,
            8,
            64 * 4 + 16 * 6 * 36,
        ),
    ],
)
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


class Gate(nn.Module):
    """A branch that starts at zero: its activation does not show in the first outputs."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(2, 2, 1), nn.Parameter(torch.zeros(1))
        self.forward_activation = [activation]  # hidden from the description

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.forward_activation[0](self.conv(x))


class FunctionalDropout(nn.Module):
    """Tells neither in its description nor in eval mode how much it drops."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, self.p, self.training)


def frozen(model: nn.Module) -> nn.Module:
    next(model.parameters()).requires_grad_(False)
    return model


def other_start(model: nn.Module) -> nn.Module:
    nn.init.orthogonal_(next(model.parameters()))
    return model


def classifier(*layers: nn.Module) -> nn.Module:
    return GapCnn(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *layers), 2, 4)


DIFFERENT = {
    "plain": lambda: classifier(),
    "relu": lambda: classifier(nn.ReLU()),
    "silu": lambda: classifier(nn.SiLU()),
    "wider": lambda: GapCnn(nn.Conv2d(1, 3, 3, padding=1), 3, 4),
    "kernel": lambda: GapCnn(nn.Conv2d(1, 2, 5, padding=2), 2, 4),
    "stride": lambda: GapCnn(nn.Conv2d(1, 2, 3, 2, padding=1), 2, 4),
    "dilation": lambda: GapCnn(nn.Conv2d(1, 2, 3, padding=2, dilation=2), 2, 4),
    "dropout": lambda: classifier(nn.Dropout(0.5)),
    "less dropout": lambda: classifier(nn.Dropout(0.1)),
    "gated relu": lambda: classifier(Gate(nn.ReLU())),
    "gated tanh": lambda: classifier(Gate(nn.Tanh())),
    "functional dropout": lambda: classifier(FunctionalDropout(0.5)),
    "less functional dropout": lambda: classifier(FunctionalDropout(0.1)),
    "frozen": lambda: frozen(classifier()),
    "another initialisation": lambda: other_start(classifier()),
    "order": lambda: classifier(nn.ReLU(), nn.AvgPool2d(2)),
    "other order": lambda: classifier(nn.AvgPool2d(2), nn.ReLU()),
}


def key(name: str) -> str | None:
    torch.manual_seed(0)
    return network_key(DIFFERENT[name](), 1, 8)


def test_different_candidates_have_different_keys() -> None:
    keys = {name: key(name) for name in DIFFERENT}
    assert None not in keys.values()
    assert len(set(keys.values())) == len(keys), keys


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_same_candidate_has_the_same_key(name: str) -> None:
    assert key(name) == key(name)


def test_a_key_leaves_everything_alone() -> None:
    model = net().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    network_key(model, 3, 6)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_key_without_finite_logits() -> None:
    class Explodes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) / 0

    assert network_key(nn.Sequential(nn.Conv2d(1, 2, 1), Explodes()), 1, 4) is None
