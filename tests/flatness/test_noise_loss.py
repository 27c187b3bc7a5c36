"""nu and the rise of the loss under noise: against dense matrices, and against the noise itself."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

import flatsearch
from flatsearch.flatness import contraction
from tests.flatness import oracle
from tests.flatness.nets import CASES, CLASSES, Case, GapByMean, images


def network(act: type[nn.Module] = nn.ReLU, groups: int = 1) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), act(), nn.Conv2d(4, 6, 3, groups=groups), act(),
        nn.Conv2d(6, 5, 1), act(), GapByMean(), nn.Linear(5, CLASSES),
    ).double()  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_nu_is_that_of_the_dense_matrix(case: Case) -> None:
    model, (x, y) = case.make(), images()
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    if result.kind == "hessian":
        expected = oracle.nu_by_hessian(model, x, y, case.layer)
    else:
        expected = oracle.nu_by_gauss_newton(model, x, case.layer)
    assert result.nu == pytest.approx(expected, rel=1e-10)
    assert result.noise_loss(0.2) == pytest.approx(0.02 * expected, rel=1e-10)


@pytest.mark.parametrize("which", ["gram", "explicit"])
@pytest.mark.parametrize("name", ["norm relu", "norm gelu", "stride and dilation", "5x5"])
def test_both_contractions(
    name: str, which: contraction.Contraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contraction, "cheaper", lambda *_: which)
    test_nu_is_that_of_the_dense_matrix(next(case for case in CASES if case.name == name))


@pytest.mark.parametrize("groups", [1, 2])
def test_every_layer_and_their_sum(groups: int) -> None:
    model, (x, y) = network(groups=groups), images()
    for size in (None, 4):
        result = flatsearch.relative_flatness(
            model, (x.double(), y), layers=["0", "2", "4", "7"], batch_size=size
        )
        for name, layer in result.layers.items():
            assert layer.nu == pytest.approx(oracle.nu_by_hessian(model, x, y, name), rel=1e-10)
        assert result.nu == pytest.approx(sum(r.nu for r in result.layers.values()), rel=1e-12)
        fan_ins = {name: layer.fan_in for name, layer in result.layers.items()}
        assert fan_ins == {"0": 18, "2": 36 // groups, "4": 6, "7": 5}


def test_depthwise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.SiLU(), GapByMean(),
        nn.Linear(8, CLASSES),
    )  # fmt: skip
    x, y = images()
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    assert result.kind == "hessian"
    assert result.layers["2"].fan_in == 9
    assert result.nu == pytest.approx(oracle.nu_by_hessian(model, x, y, "2"), rel=1e-10)


def test_gauss_newton_of_curved_layers() -> None:
    model, (x, y) = network(nn.SiLU), images()
    result = flatsearch.relative_flatness(model, (x.double(), y), layers="all")
    assert result.kind == "gauss-newton"
    for name, layer in result.layers.items():
        assert layer.nu == pytest.approx(oracle.nu_by_gauss_newton(model, x, name), rel=1e-10)


@pytest.mark.parametrize("layer", ["2", "7"])
def test_normalised_inputs(layer: str) -> None:
    """The noise is then relative to the filters of the network with the scaling taken out."""
    model, (x, y) = network(), images(8)
    x = x.double()
    position = int(layer)
    z = model[:position](x).detach()
    sigma = z.std([d for d in range(z.ndim) if d != 1], correction=0)

    class Divide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / sigma.view(1, -1, *[1] * (x.ndim - 2))

    rescaled = copy.deepcopy(model)
    with torch.no_grad():
        weight = rescaled[position].weight
        weight.mul_(sigma.view(1, -1, *[1] * (weight.ndim - 2)))
    rescaled = nn.Sequential(*rescaled[:position], Divide(), *rescaled[position:])
    result = flatsearch.relative_flatness(model, (x, y), layers=layer, normalize="input")
    expected = oracle.nu_by_hessian(rescaled, x, y, str(position + 1))
    assert result.nu == pytest.approx(expected, rel=1e-9)


def simulate(
    model: nn.Module, x: Tensor, y: Tensor, layers: list[str], sigma: float, pairs: int
) -> tuple[float, float]:
    """Return the mean rise of the loss under pairs of noise e and -e, and its standard error."""
    generator = torch.Generator().manual_seed(3)
    names = [f"{layer}.weight" for layer in layers]
    weights = {name: model.get_parameter(name).detach() for name in names}
    noise = {}
    for name, W in weights.items():
        size = W.flatten(1).norm(dim=1).view(-1, *[1] * (W.ndim - 1)) / math.sqrt(W[0].numel())
        draws = torch.randn(pairs, *W.shape, generator=generator, dtype=W.dtype)
        noise[name] = sigma * size * draws

    def loss(changed: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, changed, (x,)), y)

    base = loss(weights)
    up = vmap(loss)({name: W + noise[name] for name, W in weights.items()})
    down = vmap(loss)({name: W - noise[name] for name, W in weights.items()})
    rises = ((up + down) / 2 - base).detach()
    return float(rises.mean()), float(rises.std() / math.sqrt(pairs))


@pytest.mark.parametrize(
    ("act", "layers", "sigma"),
    [(nn.SiLU, ["4"], 0.03), (nn.ReLU, ["4"], 1e-5), (nn.ReLU, ["0", "2", "4"], 1e-5)],
)
def test_the_loss_rises_by_that_much_under_noise(
    act: type[nn.Module], layers: list[str], sigma: float
) -> None:
    # A kink of ReLU that the noise crosses is seen by no derivative: hence the small noise.
    model, (x, y) = network(act), images(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    result = flatsearch.relative_flatness(model, (x.double(), y), layers=layers)
    assert result.kind == "hessian"
    rise, error = simulate(model, x.double(), y, layers, sigma, pairs=4000)
    assert error < 0.05 * abs(rise)
    assert result.noise_loss(sigma) == pytest.approx(rise, abs=3 * error)


def test_scaling_filters_with_the_inverse_behind_them() -> None:
    model, (x, y) = network(), images(10)
    scaled = copy.deepcopy(model)
    factors = torch.tensor([0.1, 0.5, 1.0, 2.0, 30.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        scaled[2].weight.mul_(factors[:, None, None, None])
        scaled[2].bias.mul_(factors)
        scaled[4].weight.div_(factors[None, :, None, None])
    before, after = (
        flatsearch.relative_flatness(net, (x.double(), y), layers="2") for net in (model, scaled)
    )
    assert after.nu == pytest.approx(before.nu, rel=1e-9)
    assert after.hessian_trace != pytest.approx(before.hessian_trace, rel=0.1)


def test_standard_error_is_that_of_the_mean() -> None:
    model, (x, y) = network(), images(9)
    x = x.double()
    single = [
        flatsearch.relative_flatness(model, (x[i : i + 1], y[i : i + 1]), layers="all").nu
        for i in range(9)
    ]
    result = flatsearch.relative_flatness(model, (x, y), layers="all")
    error = float(torch.tensor(single).double().std() / 3)
    assert result.nu_standard_error == pytest.approx(error, rel=1e-6)
    assert result.noise_loss_error(0.2) == pytest.approx(0.02 * error, rel=1e-6)
    one = flatsearch.relative_flatness(model, (x[:1], y[:1]))
    assert math.isnan(one.noise_loss_error())
