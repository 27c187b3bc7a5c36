"""Every proxy against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import optuna
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsearch
from flatsearch.errors import SettingsError
from flatsearch.signals import aznas, fisher
from flatsearch.signals.compute import ProxyInput, measure
from flatsearch.signals.curve import with_tse
from flatsearch.signals.table import PROXIES


def compute(name: str, given: ProxyInput) -> float:
    (value,) = measure([name], given).values()
    return value


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
    given = ProxyInput(units(activation), pixels(1, -1), torch.tensor([0, 1]))
    assert compute("nwot", given) == pytest.approx(math.log(4))


def test_nwot_of_images_with_the_same_code() -> None:
    given = ProxyInput(units(nn.ReLU()), pixels(1, 2), torch.tensor([0, 1]))
    assert compute("nwot", given) == -math.inf
    assert (
        compute("nwot", ProxyInput(units(None), pixels(1, -1), torch.tensor([0, 1]))) == -math.inf
    )


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
    assert compute("nwot", ProxyInput(net, x, torch.zeros(5).long())) == pytest.approx(expected)


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
    given = ProxyInput(net, pixels(5, 6), torch.tensor([0, 1]))
    assert compute("synflow", given) == pytest.approx(math.log(16))
    with torch.no_grad():
        net[0].weight.fill_(0)
    assert compute("synflow", given) == -math.inf


def test_gradients() -> None:
    # p = (s(2), s(-2)) and target 0: dL/dlogits = (-q, q), q = s(-2); dL/dV the same, dL/dw = -2q.
    q = 1 / (1 + math.exp(2))
    given = ProxyInput(two_weights(), pixels(1), torch.tensor([0]))
    assert compute("snip", given) == pytest.approx(2 * q + 2 * q)
    assert compute("untrained_gradient_norm", given) == pytest.approx(2 * q + math.sqrt(2) * q)


def test_zico() -> None:
    # |gradients| of two batches of target 0 and of target 1 are q and p = 1 - q in V, twice that
    # in w: mean 1/2, deviation (p - q) / 2 in V.
    q = 1 / (1 + math.exp(2))
    ratio = 1 / (1 - 2 * q)
    given = ProxyInput(two_weights(), pixels(1, 1, 1, 1), torch.tensor([0, 0, 1, 1]))
    assert compute("zico", given) == pytest.approx(math.log(ratio) + math.log(2 * ratio))
    same = ProxyInput(two_weights(), pixels(1, 1, 1, 1), torch.tensor([0, 0, 0, 0]))
    assert compute("zico", same) == 0
    assert math.isnan(compute("zico", ProxyInput(two_weights(), pixels(1), torch.tensor([0]))))


def test_weight_movement() -> None:
    net = two_weights()
    initial = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        net[0].weight.fill_(3)  # moved by twice its norm; V by nothing
    given = ProxyInput(net, pixels(1), torch.tensor([0]), initial)
    assert compute("weight_movement", given) == 1
    with pytest.raises(SettingsError, match=r"'0\.weight' is not among"):
        compute("weight_movement", replace(given, initial={"0.weight": torch.ones(2, 2)}))


def test_gradient_norm_of_all_weights() -> None:
    # Of both layers together: dL/dV = (-q, q) and dL/dw = -2q, as above.
    q = 1 / (1 + math.exp(2))
    given = ProxyInput(two_weights(), pixels(1), torch.tensor([0]))
    assert compute("gradient_norm", given) == pytest.approx(math.sqrt(2 + 4) * q)


def test_tse_is_the_sum_of_training_losses() -> None:
    steps = {0: {"train_loss": 2.0, "accuracy": 0.1}, 1: {"train_loss": 1.5}, 2: {"loss": 1.0}}
    found = with_tse(steps)
    assert found[0] == {"train_loss": 2.0, "accuracy": 0.1, "tse": 2.0}
    assert found[1]["tse"] == 3.5
    assert math.isnan(found[2]["tse"])  # no longer known


@pytest.mark.parametrize("name", PROXIES)
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
    initial = {k: v.detach() + 1 for k, v in net.named_parameters()}
    first = compute(name, ProxyInput(net, x, y, initial))
    assert math.isfinite(first)
    assert first == compute(name, ProxyInput(net, x, y, initial))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert modes == [m.training for m in net.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_a_proxy_that_cannot_be_computed_is_unknown() -> None:
    class NoGradient(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(1) @ self.weight.T).detach()

    given = ProxyInput(NoGradient(), pixels(1, 2), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="untrained_snip could not be computed"):
        assert math.isnan(compute("snip", given))


def test_a_proxy_looks_at_the_first_images_alone() -> None:
    torch.manual_seed(0)
    net, x, y = units(nn.ReLU()), torch.randn(200, 1, 1, 1), torch.arange(200) % 2
    few = compute("snip", ProxyInput(net, x[:128], y[:128]))
    assert (
        compute("snip", ProxyInput(net, x, y))
        == few
        != compute("snip", ProxyInput(net, x[:64], y[:64]))
    )


class Small(nn.Module):
    """Four layers, with a normalisation, an activation in place and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(True))
        self.branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 3, 1))
        self.head = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head((x + self.branch(x)).mean((2, 3)))


def test_fisher_information_is_the_covariance_of_the_score() -> None:
    torch.manual_seed(0)
    net, x = Small().double(), torch.randn(5, 1, 6, 6, dtype=torch.float64)
    net.eval()
    weights = [p for p in net.parameters() if p.dim() > 1]
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for image in x:  # E_c [ grad log p_c (grad log p_c)' ], class by class
        log_p = net(image[None])[0].log_softmax(0)
        for value in log_p:
            gradients = torch.autograd.grad(value, weights, retain_graph=True)
            score = torch.stack([g.flatten()[0] for g in gradients])
            expected += float(value.detach().exp()) * torch.outer(score, score) / len(x)
    found = fisher.fisher_information(net, x)
    assert not found.requires_grad
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)


def test_vkdnw_is_the_entropy_of_deciles(monkeypatch: pytest.MonkeyPatch) -> None:
    # Eleven eigenvalues 0, 1, ..., 10 have the deciles 1, ..., 9.
    information = torch.diag(torch.arange(11.0, dtype=torch.float64))
    monkeypatch.setattr(fisher, "fisher_information", lambda model, x: information)
    net, x = Small(), torch.zeros(2, 1, 6, 6)
    expected = -sum(k / 45 * math.log(k / 45) for k in range(1, 10))
    assert fisher.vkdnw_entropy(net, x) == pytest.approx(expected)
    assert fisher.vkdnw(net, x) == pytest.approx(4 + expected)
    information.zero_()
    assert fisher.vkdnw_entropy(net, x) == 0


def test_vkdnw_of_a_network() -> None:
    torch.manual_seed(0)
    given = ProxyInput(Small(), torch.zeros(2, 1, 6, 6), torch.tensor([0, 1]))
    assert 0 < compute("vkdnw_entropy", given) < math.log(9)
    assert compute("vkdnw", given) == 4 + compute("vkdnw_entropy", given)


def chain(*weights: float) -> nn.Sequential:
    """One channel, scaled by each weight in turn."""
    net = nn.Sequential(*(nn.Conv2d(1, 1, 1, bias=False) for _ in weights))
    with torch.no_grad():
        for layer, weight in zip(net, weights, strict=True):
            layer.weight.fill_(weight)
    return net


def test_entropy_of_channels() -> None:
    same = torch.randn(50, 1, 2, 2).repeat(1, 3, 1, 1)
    assert aznas.entropy(same) == pytest.approx(0, abs=1e-6)
    # Variances 3 and 1: shares 3/4 and 1/4.
    maps = torch.tensor([[3.0, 0], [-3.0, 0], [0, 3.0], [0, -3.0]]) * torch.tensor([3**0.5, 1.0])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert aznas.entropy(maps.view(4, 2, 1, 1)) == pytest.approx(expected)
    assert aznas.entropy(torch.ones(4, 2, 3, 3)) == 0


def test_trainability_is_the_distance_from_an_isometry() -> None:
    # With one channel e e' = 1, so that the norm is the weight itself.
    x = torch.zeros(4, 1, 3, 3)
    assert aznas.trainability(chain(1, 2), x) == pytest.approx(2 - 2 - 0.5, abs=1e-5)
    assert aznas.trainability(chain(1, 0.25, 2), x) == pytest.approx((-2.25 - 0.5) / 2, abs=1e-4)
    assert aznas.trainability(chain(1, -1), x) == pytest.approx(0, abs=1e-5)
    assert aznas.trainability(chain(3, 1), x) == -math.inf  # hands on what it is given


def test_trainability_of_a_smaller_map() -> None:
    pool = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 2, stride=2, bias=False)
    )  # fmt: skip
    with torch.no_grad():
        pool[1].weight.fill_(0.5)
    # Four pixels become four channels with 0.5 e each: a column of norm 1.
    assert aznas.trainability(pool, torch.zeros(3, 1, 4, 4)) == pytest.approx(0, abs=1e-5)


def test_blocks_are_those_of_the_feature_extractor() -> None:
    net = flatsearch.GapCnn(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            nn.Conv2d(4, 8, 3), nn.ReLU(inplace=True),
        ), 8, 10,
    )  # fmt: skip
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    outputs = aznas.block_outputs(net, x)
    assert [tuple(o.shape) for o in outputs] == [(8, 4, 6, 6), (8, 8, 4, 4)]
    assert all(float(o.detach().min()) == 0 for o in outputs)  # behind the activation
    torch.manual_seed(1)
    values = [aznas.entropy(o) for o in aznas.block_outputs(net, torch.randn(x.shape))]
    for name, expected in (
        ("expressivity", sum(values)),
        ("progressivity", values[1] - values[0]),
    ):
        torch.manual_seed(1)
        assert getattr(aznas, name)(net, x) == pytest.approx(expected, rel=1e-6)


class PreActivation(nn.Module):
    """relu(x) and a residual branch that begins with a norm and an activation in place."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 1, bias=False)
        self.first = nn.ReLU()
        self.branch = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(inplace), nn.Conv2d(2, 2, 1))
        self.classifier = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x))
        return self.classifier((x + self.branch(x)).mean((2, 3)))


def test_synflow_of_activations_in_place() -> None:
    values = []
    for inplace in (False, True):
        torch.manual_seed(0)
        given = ProxyInput(PreActivation(inplace=inplace), pixels(1, 2), torch.tensor([0, 1]))
        values.append(compute("synflow", given))
    assert values[0] == values[1]
