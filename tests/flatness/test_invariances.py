"""What must not change the measure, what must, and what is left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import flatsearch
from tests.flatness.nets import CASES, images

PLAIN = CASES[0]  # conv 2-4, tanh, conv 4-5, relu, pooling, linear


def kappa(model: nn.Module, **options: object) -> float:
    data = options.pop("data", images(10))
    return flatsearch.relative_flatness(
        model, data, dtype=torch.float64, **options
    ).relative_flatness


def trace(model: nn.Module) -> float:
    return flatsearch.relative_flatness(model, images(10), dtype=torch.float64).hessian_trace


def test_scaling_filters_with_the_inverse_behind_them() -> None:
    model = PLAIN.make().double()
    scaled = copy.deepcopy(model)
    factors = torch.tensor([0.1, 0.5, 1.0, 2.0, 30.0], dtype=torch.float64)
    with torch.no_grad():
        scaled[2].weight.mul_(factors[:, None, None, None])
        scaled[2].bias.mul_(factors)
        scaled[-1].weight.div_(factors)
    x = images(10)[0].double()
    assert torch.allclose(model(x), scaled(x))
    assert kappa(scaled) == pytest.approx(kappa(model), rel=1e-9)
    # The trace has no such invariance, which is why it is not the measure.
    assert trace(scaled) != pytest.approx(trace(model), rel=0.1)


def test_permuting_filters() -> None:
    model = PLAIN.make()
    permuted = copy.deepcopy(model)
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        permuted[2].weight.copy_(model[2].weight[order])
        permuted[2].bias.copy_(model[2].bias[order])
        permuted[-1].weight.copy_(model[-1].weight[:, order])
    assert kappa(permuted) == pytest.approx(kappa(model), rel=1e-12)


def test_shifting_all_logits() -> None:
    model = PLAIN.make().double()
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted[-1].bias.add_(7.0)
        shifted[-1].weight.add_(torch.randn(1, 5))  # the same vector for every class
    assert kappa(shifted) == pytest.approx(kappa(model), rel=1e-10)


def test_rescaling_the_layer_before_is_not_an_invariance() -> None:
    # Stated in the documentation; a change here means the documentation is wrong.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).double()  # fmt: skip
    other = copy.deepcopy(model)
    factors = torch.tensor([0.1, 1.0, 2.0, 10.0], dtype=torch.float64)
    with torch.no_grad():
        other[0].weight.mul_(factors[:, None, None, None])
        other[0].bias.mul_(factors)
        other[2].weight.div_(factors[None, :, None, None])
    x = images(10)[0].double()
    assert torch.allclose(model(x), other(x))
    assert kappa(other) != pytest.approx(kappa(model), rel=0.1)


def test_larger_logits_make_kappa_vanish() -> None:
    model = PLAIN.make()
    larger = copy.deepcopy(model)
    with torch.no_grad():
        larger[-1].weight.mul_(1e4)
        larger[-1].bias.mul_(1e4)
    assert kappa(larger) < 1e-3 * kappa(model)


def test_constant_predictor_has_none() -> None:
    model = PLAIN.make()
    with torch.no_grad():
        model[-1].weight.zero_()
    assert kappa(model) == 0.0


@pytest.mark.parametrize("name", ["plain relu", "norm gelu", "residual norm silu"])
def test_batches_and_order_do_not_matter(name: str) -> None:
    model = next(case for case in CASES if case.name == name).make()
    x, y = images(10)
    whole = kappa(model)
    order = torch.randperm(10)
    for data in (
        [(x[:3], y[:3]), (x[3:4], y[3:4]), (x[4:], y[4:])],
        iter([(x[:3], y[:3]), (x[3:], y[3:])]),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4),
        (x[order], y[order]),
    ):
        assert kappa(model, data=data) == pytest.approx(whole, rel=1e-12)
    for size in (1, 7, 100):
        assert kappa(model, batch_size=size) == pytest.approx(whole, rel=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model = next(case for case in CASES if case.name == "residual norm relu").make()
    model.train()
    model[1].norms[0].eval()  # a mixed mode, as in fine-tuning
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    first = flatsearch.relative_flatness(model, images())
    assert model.training
    assert model[1].norms[1].training
    assert not model[1].norms[0].training
    assert not model[0].weight.requires_grad
    assert model[1].first.weight.requires_grad
    assert model[1].first.weight.grad is None
    assert torch.equal(model[3].weight.grad, torch.ones_like(model[3].weight))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert flatsearch.relative_flatness(model, images()) == first


def test_callers_contexts_do_not_matter() -> None:
    model, data = PLAIN.make(), images()
    expected = flatsearch.relative_flatness(model, data)
    with torch.no_grad():
        assert flatsearch.relative_flatness(model, data) == expected
    with torch.inference_mode():
        assert flatsearch.relative_flatness(model, data) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert flatsearch.relative_flatness(model, data) == expected


def test_half_precision_models_are_measured_in_float32() -> None:
    model = next(case for case in CASES if case.name == "norm relu").make().bfloat16()
    exact = flatsearch.relative_flatness(copy.deepcopy(model).float(), images())
    assert flatsearch.relative_flatness(model, images()) == exact
    assert next(model.parameters()).dtype == torch.bfloat16


def test_wrapped_models_are_measured_as_they_are_inside() -> None:
    model, data = PLAIN.make(), images()
    expected = flatsearch.relative_flatness(model, data)
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert flatsearch.relative_flatness(wrapped, data) == expected


def test_channels_last() -> None:
    model = next(case for case in CASES if case.name == "residual norm relu").make()
    expected = kappa(model)
    x, y = images(10)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    data = (x.to(memory_format=torch.channels_last), y)
    assert kappa(last, data=data) == pytest.approx(expected, rel=1e-12)


def test_threads_measure_at_the_same_time() -> None:
    """The precision switches are the process's: the last thread to leave sets them back."""
    from concurrent.futures import ThreadPoolExecutor

    def precisions() -> list[str]:
        backends: Any = torch.backends
        if not hasattr(backends.cuda.matmul, "fp32_precision"):
            return [torch.get_float32_matmul_precision(), str(backends.cudnn.allow_tf32)]
        parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        return [part.fp32_precision for part in parts]

    def measure(seed: int) -> float:
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        x = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
        return flatsearch.relative_flatness(net, (x, torch.arange(16) % 3)).relative_flatness

    before = precisions()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(measure, range(40)))
    assert precisions() == before
    assert torch.backends.cudnn.allow_tf32 in {True, False}  # raises where switches disagree
