"""Digits that are lost to cancellation or underflow: found again in float64, or said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import flatsearch
from flatsearch.flatness import accumulator, contraction
from tests.flatness.nets import CASES, GapByMean, images

if TYPE_CHECKING:
    from flatsearch import FlatnessResult

CLASSES = 3


def cancelling(left: float = 8.4e-4) -> nn.Sequential:
    """Return a network of which almost no change of the last convolution's input is seen.

    kappa is the square of sum_c w_c m_c^T, which is nearly 0 here; 3e-7 of the trace.
    """
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 16, 1), GapByMean(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip
    with torch.no_grad():
        basis = torch.linalg.qr(model[2].weight.flatten(1)).Q
        V = model[4].weight
        V.copy_(V - (1 - left) * (V @ basis) @ basis.T)
    return model


class Centred(nn.Module):
    """Maps whose mean is far smaller than their deviation."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((2, 3), keepdim=True) + 1e-4


def centred() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 64, 3), nn.Tanh(), Centred(), nn.Conv2d(64, 64, 1), GapByMean(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip


def tiny() -> nn.Sequential:
    """A network whose kappa is about 1e-50, which float32 does not know."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), GapByMean(), nn.Linear(4, CLASSES))
    with torch.no_grad():
        model[3].weight.mul_(1e-25)
    return model


def furthest(single: FlatnessResult, double: FlatnessResult) -> float:
    """Return the largest relative difference between two measurements' numbers."""
    return max(
        abs(getattr(single, name) / getattr(double, name) - 1)
        for name in ("relative_flatness", "hessian_trace", "nu")
    )


@pytest.mark.parametrize(("make", "wrong"), [(cancelling, 0.005), (centred, 1e-3), (tiny, 0.5)])
def test_what_loses_its_digits_is_measured_in_float64(
    make: type[nn.Sequential], wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = make(), images(16)
    double = flatsearch.relative_flatness(model, data, dtype=torch.float64)
    again = flatsearch.relative_flatness(model, data)
    assert furthest(again, double) < 1e-9
    assert again.rounding < 1e-6
    once = flatsearch.relative_flatness(model, iter([data]))
    assert wrong < furthest(once, double) <= once.rounding
    assert once.rounding == pytest.approx(max(r.rounding for r in once.layers.values()))
    monkeypatch.setattr(accumulator, "_MOST_ROUNDING", float("inf"))
    assert flatsearch.relative_flatness(model, data) == once


def test_only_what_has_lost_digits_is_measured_again() -> None:
    model, data = cancelling(), images(16)
    both = flatsearch.relative_flatness(model, data, layers="all")
    once = flatsearch.relative_flatness(model, iter([data]), layers="all")
    assert both.layers["0"] == once.layers["0"]
    assert both.layers["2"].rounding < 1e-6 < 0.1 < once.layers["2"].rounding
    assert list(both.layers) == ["0", "2"]


def test_a_layer_without_any_effect_has_no_rounding() -> None:
    model, data = tiny(), images(16)
    with torch.no_grad():
        model[3].weight.zero_()
    result = flatsearch.relative_flatness(model, data)
    assert (result.relative_flatness, result.rounding) == (0.0, 0.0)


def test_ordinary_networks_lose_nothing(
    monkeypatch: pytest.MonkeyPatch, through_the_meter: list[int]
) -> None:
    made = []
    make = accumulator.Accumulator.__init__

    def counted(self: accumulator.Accumulator, *arguments: object) -> None:
        made.append(self)
        make(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(accumulator.Accumulator, "__init__", counted)
    for case in CASES[::5]:
        for which in ("gram", "explicit"):
            monkeypatch.setattr(contraction, "cheaper", lambda *_, which=which: which)
            result = flatsearch.relative_flatness(case.make(), images(32))
            assert 1e-8 < result.rounding < 1e-4
    assert len(through_the_meter) == 2 * len(CASES[::5])
    assert len(made) == 2 * len(through_the_meter)  # every one of them was called twice


def test_models_that_only_know_one_precision() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.eye(x.shape[-1], dtype=torch.float32)

    model, data = nn.Sequential(Single(), *cancelling()), images(16)
    result = flatsearch.relative_flatness(model, data)
    assert result.rounding > 0.1


def test_what_all_classes_have_in_common_costs_no_digits() -> None:
    torch.manual_seed(0)
    model, data = CASES[0].make(), images()
    with torch.no_grad():  # the softmax does not see it
        model[-1].weight.mul_(0.01).add_(100 * torch.randn(model[-1].in_features))
    result = flatsearch.relative_flatness(model, data)
    exact = flatsearch.relative_flatness(model, data, dtype=torch.float64)
    assert result.relative_flatness == pytest.approx(exact.relative_flatness, rel=2e-4)
    assert result.hessian_trace == pytest.approx(exact.hessian_trace, rel=2e-4)
