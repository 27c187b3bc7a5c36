"""Every signal against values worked out by hand."""

from __future__ import annotations

import math

import optuna
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsearch
from flatsearch.errors import SettingsError
from flatsearch.proxies import PROXIES, Evidence, compute
from flatsearch.training import EpochResult

ZERO_COST = [name for name, proxy in PROXIES.items() if proxy.needs != "training"]


def two_weights() -> nn.Sequential:
    """Logits (x, -x) of an image of one pixel x: w = 1, V = (1, -1)."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return net


def pixels(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def units(activation: nn.Module | None) -> nn.Sequential:
    """Two units: on for positive, and on for negative pixels."""
    layers = [nn.Conv2d(1, 2, 1, bias=False), activation or nn.Identity(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    return net


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.LeakyReLU()],
)
def test_nwot_of_opposite_images(activation: nn.Module) -> None:
    # They disagree in both units: K = 2 I.
    evidence = Evidence(units(activation), pixels(1, -1), torch.tensor([0, 1]))
    assert compute("nwot", evidence) == pytest.approx(math.log(4))


def test_nwot_of_images_with_the_same_code() -> None:
    evidence = Evidence(units(nn.ReLU()), pixels(1, 2), torch.tensor([0, 1]))
    assert compute("nwot", evidence) == -math.inf
    assert compute("nwot", Evidence(units(None), pixels(1, -1), torch.tensor([0, 1]))) == -math.inf


def test_nwot_is_hamming_distance() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    x = torch.randn(5, 1, 6, 6)
    first = net[0](x)
    second = net[2](first.relu())
    codes = torch.cat([first.flatten(1), second.flatten(1)], 1) > 0
    kernel = [[int((a == b).sum()) for b in codes] for a in codes]
    expected = math.log(abs(float(torch.tensor(kernel).double().det())))
    assert compute("nwot", Evidence(net, x, torch.zeros(5).long())) == pytest.approx(expected)


def test_synflow() -> None:
    # Flow 2 * (3 + 1) = 8; each layer's sum of |w dR/dw| is the flow.
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1, 2, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight.fill_(-2)
        net[1].weight.fill_(7)
        net[4].weight.copy_(torch.tensor([[3.0], [-1.0]]))
    evidence = Evidence(net, pixels(5, 6), torch.tensor([0, 1]))
    assert compute("synflow", evidence) == pytest.approx(math.log(16))
    with torch.no_grad():
        net[0].weight.fill_(0)
    assert compute("synflow", evidence) == -math.inf


def test_gradients() -> None:
    # p = (s(2), s(-2)) and target 0: dL/dlogits = (-q, q), q = s(-2); dL/dV the same, dL/dw = -2q.
    q = 1 / (1 + math.exp(2))
    evidence = Evidence(two_weights(), pixels(1), torch.tensor([0]))
    assert compute("snip", evidence) == pytest.approx(2 * q + 2 * q)
    assert compute("gradient_norm", evidence) == pytest.approx(2 * q + math.sqrt(2) * q)


def test_zico() -> None:
    # |gradients| of two batches of target 0 and of target 1 are q and p = 1 - q in V, twice that
    # in w: mean 1/2, deviation (p - q) / 2 in V.
    q = 1 / (1 + math.exp(2))
    ratio = 1 / (1 - 2 * q)
    evidence = Evidence(two_weights(), pixels(1, 1, 1, 1), torch.tensor([0, 0, 1, 1]))
    assert compute("zico", evidence) == pytest.approx(math.log(ratio) + math.log(2 * ratio))
    same = Evidence(two_weights(), pixels(1, 1, 1, 1), torch.tensor([0, 0, 0, 0]))
    assert compute("zico", same) == 0
    assert math.isnan(compute("zico", Evidence(two_weights(), pixels(1), torch.tensor([0]))))


def test_in_training() -> None:
    net = two_weights()
    initial = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        net[0].weight.fill_(3)  # moved by twice its norm; V by nothing
    history = [EpochResult(1, 2.0, 0.1, 2.1, 0.2, 1.0), EpochResult(2, 1.5, 0.3, 1.6, 0.4, 1.0)]
    evidence = Evidence(net, pixels(1), torch.tensor([0]), initial, history)
    values = {name: compute(name, evidence) for name in PROXIES if name not in ZERO_COST}
    assert values == {
        "tse": 3.5, "validation_accuracy": 0.4, "train_loss": 1.5, "weight_movement": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ZERO_COST)
def test_leaves_the_model_alone(name: str) -> None:
    torch.manual_seed(0)
    space = flatsearch.load_space("resnet_small")
    params = {
        "stem_width": 8, "stages": 1, "blocks_1": 1, "block": "basic", "kernel": 3,
        "activation": "relu", "pre_activation": False, "squeeze_excitation": True,
    }  # fmt: skip
    net = space.build(space.suggest(optuna.trial.FixedTrial(params)), in_channels=1)
    net.features[0].eval()
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 10
    F.cross_entropy(net(x), y).backward()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    state = torch.get_rng_state()
    first = compute(name, Evidence(net, x, y))
    assert math.isfinite(first)
    assert first == compute(name, Evidence(net, x, y))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert modes == [m.training for m in net.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_errors() -> None:
    evidence = Evidence(two_weights(), pixels(1), torch.tensor([0]))
    with pytest.raises(SettingsError, match=r"unknown proxy 'nwott'.*nwot"):
        compute("nwott", evidence)
    with pytest.raises(SettingsError, match="'tse' needs a network in training"):
        compute("tse", evidence)
    with pytest.raises(SettingsError, match="no epoch"):
        compute("train_loss", Evidence(two_weights(), pixels(1), torch.tensor([0]), {"a": 1}))
    other = {"0.weight": torch.ones(2, 2)}
    with pytest.raises(SettingsError, match=r"'0\.weight' is not among"):
        compute("weight_movement", Evidence(two_weights(), pixels(1), torch.tensor([0]), other))
