"""The variants: normalised inputs, the linear head, batch sizes, extreme numbers of classes."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsearch
from flatsearch import UnsupportedModelError
from flatsearch.flatness import accumulator as accumulate
from flatsearch.flatness import batches, meter
from flatsearch.flatness.softmax import SampledRoot, SoftmaxRoot
from tests.flatness import oracle
from tests.flatness.nets import CASES, GapByMean, images

if TYPE_CHECKING:
    from collections.abc import Iterator


def network(classes: int = 3, groups: int = 1) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=groups), nn.ReLU(),
        nn.Conv2d(6, 5, 1), nn.LeakyReLU(0.1), GapByMean(), nn.Linear(5, classes),
    ).double()  # fmt: skip


def measured(model: nn.Module, data: object, **options: object) -> dict[str, float]:
    result = flatsearch.relative_flatness(model, data, **options)  # type: ignore[arg-type]
    return {name: layer.relative_flatness for name, layer in result.layers.items()}


def inputs_of(model: nn.Sequential, x: Tensor, layer: str) -> Tensor:
    return model[: int(layer)](x)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layer", ["0", "2", "4", "7"])
def test_normalised_kernel_is_that_of_the_rescaled_network(layer: str, groups: int) -> None:
    """Build the network with the scaling taken out, and measure that by brute force."""
    model, (x, y) = network(groups=groups), images(8)
    x = x.double() * torch.tensor([3.0, 0.1]).view(1, 2, 1, 1)
    z = inputs_of(model, x, layer).detach()
    sigma = z.std([d for d in range(z.ndim) if d != 1], correction=0)
    assert bool((sigma > 0).all())

    class Divide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / sigma.view(1, -1, *[1] * (x.ndim - 2))

    rescaled = copy.deepcopy(model)
    W = rescaled[int(layer)].weight
    with torch.no_grad():
        if W.ndim == 2:
            W.mul_(sigma)
        else:
            parts = sigma.chunk(rescaled[int(layer)].groups)
            for filters, s in zip(W.chunk(len(parts)), parts, strict=True):
                filters.mul_(s.view(1, -1, 1, 1))
    rescaled = nn.Sequential(*rescaled[: int(layer)], Divide(), *rescaled[int(layer) :])
    assert torch.allclose(rescaled(x), model(x))
    trace, kappa = oracle.by_hessian(rescaled, x, y, str(int(layer) + 1))
    for size in (None, 3):
        result = flatsearch.relative_flatness(
            model, (x, y), layers=layer, normalize="input", batch_size=size
        )
        assert result.normalize == "input"
        assert result.relative_flatness == pytest.approx(kappa, rel=1e-9)
        assert result.hessian_trace == pytest.approx(trace, rel=1e-9)


def test_normalised_second_derivatives() -> None:
    case = next(case for case in CASES if case.name == "norm gelu")
    model, (x, y) = case.make().double(), images(8)
    sigma = model[:2](x.double()).detach().std((0, 2, 3), correction=0)
    rescaled = copy.deepcopy(model)
    with torch.no_grad():
        rescaled[2].weight.mul_(sigma.view(1, -1, 1, 1))

    class Divide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / sigma.view(1, -1, 1, 1)

    rescaled = nn.Sequential(*rescaled[:2], Divide(), *rescaled[2:])
    result = flatsearch.relative_flatness(model, (x, y), normalize="input")
    assert result.kind == "hessian"
    expected = oracle.by_hessian(rescaled, x, y, "3")[1]
    assert result.relative_flatness == pytest.approx(expected, rel=1e-9)


def test_normalised_measure_does_not_see_a_rescaling_of_the_layer_before() -> None:
    model, (x, y) = network(), images(8)
    other = copy.deepcopy(model)
    factors = torch.tensor([0.1, 1.0, 2.0, 10.0], dtype=torch.float64)
    with torch.no_grad():
        other[0].weight.mul_(factors[:, None, None, None])
        other[0].bias.mul_(factors)
        other[2].weight.div_(factors[None, :, None, None])
    data = (x.double(), y)
    plain = [measured(net, data, layers="2")["2"] for net in (model, other)]
    normalised = [measured(net, data, layers="2", normalize="input")["2"] for net in (model, other)]
    assert plain[1] != pytest.approx(plain[0], rel=0.1)
    assert normalised[1] == pytest.approx(normalised[0], rel=1e-9)


def test_constant_and_dead_channels() -> None:
    # Channel 0 is 0 everywhere, channel 1 is 3 everywhere: neither has a standard deviation.
    model, (x, y) = network(), images(8)
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = torch.tensor([-1.0, 3.0])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].bias[1] *= 100
        other[2].weight[:, 1] /= 100
        other[2].weight[:, 0] *= 100
    values = [
        measured(net, (x.double(), y), layers="2", normalize="input")["2"] for net in (model, other)
    ]
    assert values[0] > 0
    assert math.isfinite(values[0])
    assert values[1] == pytest.approx(values[0], rel=1e-9)


def test_normalising_reads_the_data_twice_even_from_an_iterator() -> None:
    model, (x, y) = network(), images(8)
    data = [(x[:5].double(), y[:5]), (x[5:].double(), y[5:])]

    def once() -> Iterator[tuple[Tensor, Tensor]]:
        yield from data

    expected = measured(model, (x.double(), y), layers="all", normalize="input")
    assert measured(model, once(), layers="all", normalize="input") == pytest.approx(expected)
    assert measured(model, data, layers="all", normalize="input") == pytest.approx(expected)


def test_head_of_its_own() -> None:
    model, (x, y) = network(), images(8)
    result = flatsearch.relative_flatness(model, (x.double(), y), layers="head")
    trace, kappa = oracle.by_hessian(model, x, y, "7")
    assert (result.kind, list(result.layers)) == ("hessian", ["7"])
    assert result.hessian_trace == pytest.approx(trace, rel=1e-10)
    assert result.relative_flatness == pytest.approx(kappa, rel=1e-10)
    both = measured(model, (x.double(), y), layers=["7", "4"])
    assert list(both) == ["4", "7"]
    assert both["7"] == pytest.approx(kappa, rel=1e-10)
    assert both["4"] == pytest.approx(oracle.by_hessian(model, x, y, "4")[1], rel=1e-10)


def test_head_behind_layers_that_are_curved() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GELU(), GapByMean(), nn.LayerNorm(4), nn.Linear(4, 3)
    )
    x, y = images()
    result = flatsearch.relative_flatness(model, (x, y), layers="head", dtype=torch.float64)
    assert result.kind == "hessian"
    expected = oracle.by_hessian(model, x, y, "4")[1]
    assert result.relative_flatness == pytest.approx(expected, rel=1e-10)


def test_no_head() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), GapByMean())
    with pytest.raises(UnsupportedModelError, match="not the output of one linear layer"):
        flatsearch.relative_flatness(model, images(), layers="head")

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.linear(self.conv(x).mean((2, 3)), self.fc.weight))

    with pytest.raises(UnsupportedModelError, match="'fc': its kernel is used elsewhere"):
        flatsearch.relative_flatness(Tied(), (images()[0], torch.zeros(6).long()), layers="head")


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("samples", [1, 5])
def test_any_number_of_classes_and_samples(classes: int, samples: int) -> None:
    model, (x, _) = network(classes), images(samples)
    y = torch.arange(samples) % classes
    result = flatsearch.relative_flatness(model, (x.double(), y), layers=["0", "2", "4", "7"])
    for name, layer in result.layers.items():
        trace, kappa = oracle.by_hessian(model, x, y, name)
        assert layer.hessian_trace == pytest.approx(trace, rel=1e-9, abs=1e-14)
        assert layer.relative_flatness == pytest.approx(kappa, rel=1e-9, abs=1e-14)
        assert math.isnan(layer.standard_error) == (samples == 1)


def test_batches_do_not_matter_for_any_layer() -> None:
    model, (x, y) = network(groups=2), images(10)
    whole = measured(model, (x.double(), y), layers="all")
    for size in (1, 3, 100):
        assert measured(model, (x.double(), y), layers="all", batch_size=size) == pytest.approx(
            whole, rel=1e-12
        )


def test_classes_and_samples_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Memory for one sample and one class at a time.
    model, (x, y) = network(7), images(10)
    whole = measured(model, (x.double(), y), layers="all")
    seen = []
    forward = accumulate.forward

    def watched(network: object, x: Tensor, *rest: object) -> object:
        seen.append(len(x))
        return forward(network, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(accumulate, "forward", watched)
    monkeypatch.setattr(meter, "memory_budget", lambda device: 1)
    assert measured(model, (x.double(), y), layers="all") == pytest.approx(whole, rel=1e-12)
    assert set(seen) == {1}
    monkeypatch.setattr(accumulate, "_CHUNK_ENTRIES", {"cpu": 1, "other": 1})
    assert measured(model, (x.double(), y), layers="all") == pytest.approx(whole, rel=1e-12)


def test_memory_budget_is_a_part_of_what_is_free() -> None:
    assert 0 < batches.memory_budget(torch.device("cpu")) <= 2**30


def test_float32_agrees_with_float64_for_every_layer() -> None:
    model, data = network().float(), images(32)
    single = measured(model, data, layers=["0", "2", "4", "7"])
    double = measured(model, data, layers=["0", "2", "4", "7"], dtype=torch.float64)
    assert single == pytest.approx(double, rel=1e-4)


def test_confident_predictions_keep_their_precision_in_every_layer() -> None:
    model, data = network().float(), images(16)
    with torch.no_grad():
        model[-1].weight.mul_(1000)
    single = flatsearch.relative_flatness(model, data, layers="all")
    double = flatsearch.relative_flatness(model, data, layers="all", dtype=torch.float64)
    for name, layer in single.layers.items():
        expected = double.layers[name].relative_flatness
        assert layer.relative_flatness == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 300.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_softmax_root(scale: float, classes: int) -> None:
    logits = scale * torch.randn(5, classes, generator=torch.Generator().manual_seed(1)).double()
    root = SoftmaxRoot(logits)
    L = torch.stack([root.column(k) for k in range(root.columns)], 2)
    p = logits.softmax(1)
    # diag(p) - p p^T, with 1 - p as a sum, which does not cancel
    others = p @ (1 - torch.eye(classes, dtype=p.dtype))
    expected = -p[:, :, None] * p[:, None, :]
    expected.diagonal(dim1=1, dim2=2).copy_(p * others)
    largest = expected.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    assert bool(((L @ L.mT - expected).abs() <= 1e-14 * largest).all())
    V = torch.randn(classes, 4, generator=torch.Generator().manual_seed(2)).double()
    assert torch.allclose(root.times(V), L.mT @ V, rtol=1e-12, atol=1e-15)
    assert torch.allclose(root.times(None), L.mT, rtol=1e-12, atol=1e-16)
    assert torch.allclose(root.diagonal(), L.square().sum(2), rtol=1e-12)


def test_all_layers_of_channels_last_and_half_precision_models() -> None:
    model, (x, y) = network().float(), images(6)
    half = copy.deepcopy(model).bfloat16()
    rounded = copy.deepcopy(half).float()
    assert measured(half, (x, y), layers="all") == measured(rounded, (x, y), layers="all")
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    data = (x.to(memory_format=torch.channels_last), y)
    expected = measured(model, (x, y), layers="all", dtype=torch.float64)
    assert measured(last, data, layers="all", dtype=torch.float64) == pytest.approx(expected)


@pytest.mark.parametrize("layers", ["all", "head"])
def test_everything_is_left_as_it_was(layers: str) -> None:
    model, data = network().float().train(), images(6)
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    flatsearch.relative_flatness(model, data, layers=layers, normalize="input")
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_normalising_with_a_loader_that_has_one_iterator() -> None:
    model, (x, y) = network(), images(8)

    class Loader:
        """As a DataLoader with persistent workers: every `iter` starts the same iterator anew."""

        position = 0

        def __iter__(self) -> Loader:
            self.position = 0
            return self

        def __next__(self) -> tuple[Tensor, Tensor]:
            if self.position >= 8:
                raise StopIteration
            part = slice(self.position, self.position + 2)
            self.position += 2
            return x[part].double(), y[part]

    expected = flatsearch.relative_flatness(model, (x.double(), y), normalize="input")
    result = flatsearch.relative_flatness(model, Loader(), normalize="input")  # type: ignore[arg-type]
    assert result.n_samples == 8
    assert result.relative_flatness == pytest.approx(expected.relative_flatness, rel=1e-12)


def test_classes_that_are_drawn_are_right_on_average() -> None:
    logits = 2 * torch.randn(1, 9, generator=torch.Generator().manual_seed(1)).double()
    root, generator = SoftmaxRoot(logits.expand(20_000, -1)), torch.Generator().manual_seed(2)
    whole = torch.stack([root.column(k)[0] for k in range(root.columns)], 1)
    expected = whole @ whole.T
    for columns in (1, 4, 7):
        sampled = SampledRoot(root, columns, generator)
        L = torch.stack([sampled.column(k) for k in range(columns)], 2)
        forms = L @ L.mT
        error = forms.std(0) / len(forms) ** 0.5
        assert bool(((forms.mean(0) - expected).abs() <= 5 * error + 1e-12).all())
        assert bool((error <= 0.05 * expected.diagonal().max()).all())


def test_estimated_from_some_classes() -> None:
    model, (x, _) = network(40), images(60)
    x, y = x.double(), torch.arange(60) % 40
    exact = flatsearch.relative_flatness(model, (x, y), layers=["0", "2", "4", "7"])
    some = flatsearch.relative_flatness(model, (x, y), layers=["0", "2", "4", "7"], classes=8)
    assert (exact.classes, some.classes) == (None, 8)
    for name in ("0", "2"):
        estimate, value = some.layers[name], exact.layers[name]
        # the standard error is that of the samples and of the classes together
        assert estimate.standard_error > value.standard_error
        noise = (estimate.standard_error**2 - value.standard_error**2) ** 0.5
        assert 0 < abs(estimate.relative_flatness - value.relative_flatness) < 4 * noise
        assert estimate.nu == pytest.approx(value.nu, abs=4 * estimate.nu_standard_error)
    for name in ("4", "7"):  # closed forms are exact anyway
        assert some.layers[name] == exact.layers[name]
    for size in (1, 7):
        parts = flatsearch.relative_flatness(
            model, (x, y), layers=["0", "2", "4", "7"], classes=8, batch_size=size
        )
        assert parts.relative_flatness == pytest.approx(some.relative_flatness, rel=1e-12)
    enough = flatsearch.relative_flatness(model, (x, y), layers="all", classes=39)
    assert enough == flatsearch.relative_flatness(model, (x, y), layers="all")
    with pytest.raises(ValueError, match="`classes` must be at least 1 but got 0"):
        flatsearch.relative_flatness(model, (x, y), classes=0)


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_padding_in_front_of_a_convolution_is_part_of_it(mode: str) -> None:
    torch.manual_seed(0)
    pad = nn.ZeroPad2d(1) if mode == "zeros" else nn.ReplicationPad2d(1)
    conv, apart = nn.Conv2d(4, 5, 3, padding=1, padding_mode=mode), nn.Conv2d(4, 5, 3)
    apart.load_state_dict(conv.state_dict())
    stem, head, (x, y) = nn.Conv2d(2, 4, 3), nn.Linear(5, 3), images(8)
    together = nn.Sequential(stem, nn.Tanh(), conv, nn.GELU(), GapByMean(), head)
    split = nn.Sequential(stem, nn.Tanh(), nn.Sequential(pad, apart), nn.GELU(), GapByMean(), head)
    for normalize in (None, "input"):
        results = [
            flatsearch.relative_flatness(net, (x, y), normalize=normalize, dtype=torch.float64)
            for net in (together, split)
        ]
        assert [list(result.layers) for result in results] == [["2"], ["2.1"]]
        kappas = [result.relative_flatness for result in results]
        assert kappas[1] == pytest.approx(kappas[0], rel=1e-10)
