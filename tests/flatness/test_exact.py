"""The measure against the dense Hessian, on many small networks."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatsearch
from flatsearch.flatness import contraction
from tests.flatness import oracle
from tests.flatness.nets import CASES, CLASSES, Apply, Case, images

IDS = [case.name for case in CASES]


@functools.cache
def dense(name: str) -> tuple[float, float]:
    """Return a case's trace and kappa by the dense matrix."""
    case = CASES[IDS.index(name)]
    model, (x, y) = case.make(), images()
    if case.kind == "hessian":
        return oracle.by_hessian(model, x, y, case.layer)
    return oracle.by_gauss_newton(model, x, case.layer)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_equals_the_dense_matrix(case: Case) -> None:
    model = case.make()
    x, y = images()
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    trace, kappa = dense(case.name)
    assert result.kind == case.kind
    assert list(result.layers) == [case.layer]
    assert result.hessian_trace == pytest.approx(trace, rel=1e-10)
    assert result.relative_flatness == pytest.approx(kappa, rel=1e-10)


@pytest.mark.parametrize("which", ["gram", "explicit"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_both_contractions_are_exact(
    case: Case, which: contraction.Contraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contraction, "cheaper", lambda *_: which)
    test_equals_the_dense_matrix(case)


ACTIVATIONS = {
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp to a tensor": lambda x: x.clamp(min=x.new_tensor([-0.2]), max=x.new_tensor([0.3])),
    "clamp from below": lambda x: x.clamp_min(-0.3),
    "clamp from above": lambda x: x.clamp_max(0.3),
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "leaky relu": F.leaky_relu,
    "negative": torch.neg,
    "relu": F.relu,
    "reflected": lambda x: 1 - x,
    "softshrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "where": lambda x: torch.where(x > 0, x, 0.5 * x),
    "maximum": lambda x: torch.maximum(x, -0.2 * x),
    "prelu": lambda x: F.prelu(x, x.new_tensor([0.3])),
    "celu": F.celu,
    "elu": F.elu,
    "erf": torch.erf,
    "exp": lambda x: torch.exp(0.3 * x),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "cube": lambda x: x**3,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "leaky relu in place": lambda x: F.leaky_relu(x, 0.2, inplace=True),
    "threshold in place": lambda x: F.threshold(x, 0.1, 0.0, inplace=True),
    "elu in place": lambda x: F.elu(x, inplace=True),
    "selu in place": lambda x: F.selu(x, inplace=True),
    "celu in place": lambda x: F.celu(x, 0.5, inplace=True),
    "mish in place": lambda x: F.mish(x, inplace=True),
    "hardswish in place": lambda x: F.hardswish(x, inplace=True),
    "exp in place": lambda x: x.mul_(0.3).exp_(),
}


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_known_activation(name: str, *, smooth: bool) -> None:
    """Alone, and between two that are smooth, so that it is differentiated twice."""
    torch.manual_seed(0)
    around = nn.SiLU if smooth else nn.Identity
    act = Apply(ACTIVATIONS[name])
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), around(), act, around(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, CLASSES),
    )  # fmt: skip
    x, y = images()
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    # torch cannot differentiate the derivative of a hardsigmoid
    unknown = name == "hardsigmoid" and smooth
    assert result.kind == ("gauss-newton" if unknown else "hessian")
    if name == "hardsigmoid":  # nor can the oracle's forward mode; without curvature it is the same
        expected = oracle.by_gauss_newton(model, x, "0")
    else:
        expected = oracle.by_hessian(model, x, y, "0")
    assert result.hessian_trace == pytest.approx(expected[0], rel=1e-9)
    assert result.relative_flatness == pytest.approx(expected[1], rel=1e-9)


def test_the_second_order_term_matters() -> None:
    # Otherwise the smooth cases above would pass without it.
    case = next(case for case in CASES if case.name == "gelu")
    model = case.make()
    x, y = images()
    full, partial = (
        oracle.by_hessian(model, x, y, case.layer),
        oracle.by_gauss_newton(model, x, case.layer),
    )
    assert abs(full[1] - partial[1]) > 1e-3 * abs(partial[1])


def test_float32_agrees_with_float64() -> None:
    for case in CASES[::2]:
        model, data = case.make(), images(32)
        single = flatsearch.relative_flatness(model, data)
        double = flatsearch.relative_flatness(model, data, dtype=torch.float64)
        assert single.relative_flatness == pytest.approx(double.relative_flatness, rel=2e-4)
        assert single.kind == double.kind


def test_confident_predictions_keep_their_precision() -> None:
    # p is 1 up to 1e-7 here: an uncentred form loses every digit in float32.
    model = CASES[0].make()
    with torch.no_grad():
        model[-1].weight.mul_(60)
    data = images(16)
    single = flatsearch.relative_flatness(model, data)
    double = flatsearch.relative_flatness(model, data, dtype=torch.float64)
    assert single.loss > 0
    assert single.relative_flatness == pytest.approx(double.relative_flatness, rel=1e-3)


def test_two_classes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    x, y = images()[0], torch.arange(6) % 2
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    trace, kappa = oracle.by_hessian(model, x, y, "0")
    assert result.hessian_trace == pytest.approx(trace, rel=1e-10, abs=1e-14)
    assert result.relative_flatness == pytest.approx(kappa, rel=1e-10, abs=1e-14)


def test_one_sample_has_no_standard_error() -> None:
    model = CASES[0].make()
    x, y = images(1)
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    assert result.relative_flatness == pytest.approx(
        oracle.by_hessian(model, x, y, "2")[1], rel=1e-10
    )
    assert result.standard_error != result.standard_error


def test_standard_error_is_that_of_the_mean() -> None:
    model, (x, y) = CASES[3].make(), images(9)
    single = [
        flatsearch.relative_flatness(model, (x[i : i + 1], y[i : i + 1]), dtype=torch.float64)
        for i in range(9)
    ]
    values = torch.tensor([r.relative_flatness for r in single], dtype=torch.float64)
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    assert result.relative_flatness == pytest.approx(float(values.mean()), rel=1e-12)
    assert result.standard_error == pytest.approx(float(values.std() / 3), rel=1e-10)
    assert result.layers["2"].standard_error == result.standard_error
    assert result.n_samples == 9


def test_loss_and_accuracy() -> None:
    model, (x, y) = CASES[0].make(), images(20)
    result = flatsearch.relative_flatness(model, (x, y))
    logits = model(x)
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-5)
    assert result.accuracy == pytest.approx(float((logits.argmax(1) == y).float().mean()))


@pytest.mark.parametrize("margin", [5.0, 17.0, 30.0])
def test_second_derivatives_of_confident_predictions(margin: float) -> None:
    # kappa times e^margin does not depend on it: p - onehot(y) has to keep its digits
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    )
    x, y = torch.randn(1, 2, 6, 6), torch.tensor([0])

    def scaled(margin: float, dtype: torch.dtype) -> float:
        with torch.no_grad():
            model[4].bias.zero_()
            model[4].bias.copy_(torch.tensor([margin, 0.0, 0.0]) - model(x)[0])
        result = flatsearch.relative_flatness(model, (x, y), dtype=dtype)
        return result.relative_flatness * math.exp(margin)

    assert scaled(margin, torch.float32) == pytest.approx(scaled(12.0, torch.float64), rel=2e-2)
