"""Precision and layout: chosen by the network, the same every time, and right."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from flatsearch import GapCnn, RunSettings
from flatsearch.training import computation, graphs
from flatsearch.training import trainer as trainer_module
from flatsearch.training.computation import Computation, choose_computation
from flatsearch.training.graphs import GraphedStep
from flatsearch.training.trainer import Trainer, train

if TYPE_CHECKING:
    from flatsearch import ImageData


def net(width: int, *, kernel: int = 3, groups: int = 1) -> GapCnn:
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    wide = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups)
    return GapCnn(nn.Sequential(*stem, wide, nn.BatchNorm2d(width), nn.ReLU()), width, 10)


class Rows(nn.Module):
    """Maps of one row, on which torch's batch norm is wrong where channels lie side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(32, 32, (8, 1)), nn.BatchNorm2d(32)
        self.stem, self.classifier = nn.Conv2d(1, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.conv(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (net(8), "channels_last"),
        (net(6), "contiguous"),
        (net(32, groups=32), "channels_last"),
        (net(32, groups=32, kernel=7), "contiguous"),
    ],
)
def test_the_layout_suits_the_network(model: nn.Module, expected: str) -> None:
    assert choose_computation(model, 1, 8).memory_format == expected
    for given in ("contiguous", "channels_last"):
        assert choose_computation(model, 1, 8, memory_format=given).memory_format == given


def strided(channels: int, kernel: int = 1, **options: int) -> GapCnn:
    """A network with a convolution of few channels that leaves out positions."""
    stem = [nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)]
    shortcut = nn.Conv2d(channels, 32, kernel, stride=2, **options)
    return GapCnn(nn.Sequential(*stem, shortcut), 32, 10)


class Named(nn.Module):
    """The same with the weight given by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.classifier = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)
        self.weight = nn.Parameter(torch.rand(8, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = torch.conv2d(input=self.stem(x), weight=self.weight, stride=2)
        return self.classifier(shortcut.mean((2, 3)))


@pytest.mark.parametrize("model", [Rows(), Named(), strided(8), strided(15), strided(32, groups=4)])
def test_gradients_that_would_be_wrong_are_not_computed(model: nn.Module) -> None:
    for given in ("auto", "channels_last"):
        assert choose_computation(model, 1, 8, memory_format=given).memory_format == "contiguous"


@pytest.mark.parametrize("model", [strided(16), strided(8, 3)])
def test_those_that_are_right_are(model: nn.Module) -> None:
    assert choose_computation(model, 1, 8).memory_format == "channels_last"


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_where_it_is_native_and_pays(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computation, "computes_bfloat16", lambda _: native)
    wide = choose_computation(net(32), 1, 8).precision
    assert wide == ("bfloat16" if native else "float32")
    assert choose_computation(net(8), 1, 8).precision == "float32"
    # Depthwise convolutions of small kernels are not faster in bfloat16, whatever else there is.
    assert choose_computation(net(32, groups=32), 1, 64).precision == "float32"
    large = choose_computation(net(32, kernel=7, groups=32), 1, 8).precision
    assert large == ("bfloat16" if native else "float32")
    assert choose_computation(net(8), 1, 8, precision="bfloat16").precision == "bfloat16"


def numbers(data: ImageData, **settings: Any) -> torch.Tensor:
    """Return what the epochs of a training gave."""
    run = RunSettings(epochs=2, **settings)
    found = [dataclasses.astuple(one)[:-1] for one in train(net(32), data, run, seed=0)]
    return torch.tensor(found)


def test_layout_and_precision_hardly_change_what_is_learnt(few_digits: ImageData) -> None:
    plain = numbers(few_digits, memory_format="contiguous", precision="float32")
    last = numbers(few_digits, memory_format="channels_last", precision="float32")
    half = numbers(few_digits, memory_format="channels_last", precision="bfloat16")
    assert torch.allclose(last, plain, atol=1e-3)
    assert torch.allclose(half, plain, atol=0.1)
    assert not torch.equal(half, plain)
    assert torch.equal(numbers(few_digits), numbers(few_digits))


def test_what_is_stored() -> None:
    assert Computation().to_dict() == {"precision": "float32", "memory_format": "contiguous"}


@pytest.mark.parametrize("part", ["step", "update"])
def test_a_recording_that_fails_midway_changes_nothing(
    part: str, few_digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Computation("float16")
    monkeypatch.setattr(trainer_module, "choose_computation", lambda *_, **__: half)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)  # on a CPU targets are looked at
    monkeypatch.setattr(graphs, "_capture", lambda _: contextlib.nullcontext())

    def fail(*_: object) -> None:
        raise RuntimeError("cannot be captured")

    def record() -> None:  # a graph's operations are not executed
        if part == "step":
            fail()

    weights = []
    for fails in (False, True):
        model = net(8)
        trainer = Trainer(model, few_digits, RunSettings(epochs=1), seed=0)
        graphed = GraphedStep(trainer._step, model, trainer._forget_step)
        graphed._warm = 3 if fails else 0
        for x, y in few_digits.train.batches(32):
            with monkeypatch.context() as once:
                if fails and not graphed.failure:
                    once.setattr(trainer._optimizer, "step", record)
                    once.setattr(trainer._scaler, "update", fail)
                    graphed._capture(x, y)
            graphed(x, y)
        assert bool(graphed.failure)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


class Steps:
    """A step that counts."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.taken.append(len(x))


def test_without_graphs_every_step_is_a_plain_one() -> None:
    steps = Steps()
    graphed = GraphedStep(steps, nn.Identity())
    sizes = [4, 4, 4, 4, 4, 2, 4]
    for size in sizes:
        graphed(torch.zeros(size, 1), torch.zeros(size))
    assert steps.taken == sizes
    assert graphed.failure
    assert graphed.replays == 0


class Unlike(nn.Module):
    """Does something else in every pass, which only Python knows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.passes, self.norm = how, 0, nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "counts":
            self.passes += 1
        elif self.how == "python":
            x = x * random.random()
        elif self.how == "numpy":
            x = x * np.random.rand()  # noqa: NPY002
        elif self.how == "torch":
            x = x * float(torch.rand(()))
        return self.norm(x)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nothing", ""),
        ("counts", "a step changes more of the network than its weights and buffers"),
        ("python", "a step draws random numbers on the host"),
        ("numpy", "a step draws random numbers on the host"),
        ("torch", "a step draws random numbers on the host"),
    ],
)
def test_steps_that_are_not_all_alike_are_noticed(how: str, said: str) -> None:
    model = Unlike(how).train()
    before = graphs._OnHost(model)
    model(torch.randn(4, 2, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert before.difference(graphs._OnHost(model)) == said
