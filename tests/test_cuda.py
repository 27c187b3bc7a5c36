"""What only a real CUDA device shows; skipped where there is none."""

from __future__ import annotations

import copy
import gc
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from flatsearch import FlatnessMeter, FlatnessObjective, RunSettings, relative_flatness
from flatsearch.analysis.selection import choose
from flatsearch.analysis.summary import summarise
from flatsearch.record import TrialRecord
from flatsearch.retrain.training import retrain
from flatsearch.training.graphs import GraphedStep
from flatsearch.training.trainer import Trainer
from tests.fakes import Tiny

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch import ImageData

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ).to("cuda")


def _trainer(data: ImageData, **settings: Any) -> Trainer:
    chosen = RunSettings(epochs=3, batch_size=32, precision="float32", **settings)
    return Trainer(_net(), data, chosen, seed=0)


def test_replayed_steps_are_the_plain_steps(few_digits: ImageData) -> None:
    data = few_digits.to("cuda")
    plain, replayed = (_trainer(data, cuda_graphs=graphs) for graphs in (False, True))
    for trainer in (plain, replayed):
        trainer._model[3].p = 0.0  # type: ignore[index]
    steps = 3 * (len(data.train) // 32)
    for _ in range(3):
        expected = plain.epoch()
        assert replayed.epoch() == pytest.approx(expected, rel=1e-3)
    assert replayed.graph is not None
    assert not replayed.graph.failure
    assert replayed.graph.replays == steps - 3


def test_dropout_draws_anew_in_every_replay(
    few_digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(few_digits.to("cuda"), cuda_graphs=True)
    trainer._model[3].p = 0.9  # type: ignore[index]
    for group in trainer._optimizer.param_groups:
        group["weight_decay"] = 0.0
    monkeypatch.setattr(trainer._schedule, "step", lambda: None)
    for group in trainer._optimizer.param_groups:
        group["lr"].zero_()
    losses = [trainer.epoch()[0] for _ in range(3)]
    assert trainer.graph is not None
    assert trainer.graph.replays > 0
    assert len(set(losses)) == 3


class _Counts(nn.Module):
    """Does something else in every pass, which only Python knows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.passes = how, 0
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "counts":
            self.passes += 1
        scale = {
            "counts": lambda: 1 / (1 + self.passes),
            "python": lambda: float(random.random() < 0.5),
            "numpy": lambda: float(np.random.rand() < 0.5),  # noqa: NPY002
            "torch": lambda: float(torch.rand(()) < 0.5),
            "waits": lambda: float(x.mean()),
        }[self.how]()
        return self.linear(x.flatten(1)) * scale


@pytest.mark.parametrize("how", ["counts", "python", "numpy", "torch", "waits"])
def test_what_is_another_step_every_time_is_not_replayed(how: str, few_digits: ImageData) -> None:
    settings = RunSettings(epochs=2, batch_size=32, precision="float32")
    torch.manual_seed(0)
    trainer = Trainer(_Counts(how).to("cuda"), few_digits.to("cuda"), settings, seed=0)
    losses = [trainer.epoch()[0] for _ in range(2)]
    assert trainer.graph is not None
    assert trainer.graph.replays == 0
    assert trainer.facts()["plain_steps"] == trainer.graph.failure != ""
    assert all(loss == loss for loss in losses)


def test_a_graph_is_freed_with_its_trainer(few_digits: ImageData) -> None:
    data = few_digits.to("cuda")

    def train() -> int:
        trainer = _trainer(data, cuda_graphs=True)
        trainer.epoch()
        assert trainer.graph is not None
        assert trainer.graph.replays
        del trainer
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    gc.disable()
    try:
        reserved = [train() for _ in range(6)]
    finally:
        gc.enable()
    assert reserved[-1] == reserved[2]


def test_after_a_capture_that_fails_everything_is_as_before(few_digits: ImageData) -> None:
    data = few_digits.to("cuda")
    trainer = _trainer(data, cuda_graphs=True)
    assert trainer.graph is not None
    stream, state = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    x, y = next(iter(data.train.batches(32)))

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        assert float(images.mean()) == float(targets.double().mean())  # a wait: cannot be captured

    failing = GraphedStep(step, nn.Identity())
    failing._capture(x, y)
    assert failing.failure
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.rand(3, device="cuda")
    trainer.epoch()  # with dropout, in plain steps and in a graph
    assert trainer.graph.replays


def test_threads_take_turns(few_digits: ImageData) -> None:
    class Drops(Tiny):
        def build(self, architecture: Any, in_channels: int, num_classes: int) -> nn.Module:
            net = super().build(architecture, in_channels, num_classes)
            return nn.Sequential(nn.Dropout(0.1), net)

    space: Any = Drops()
    settings = RunSettings(epochs=2, batch_size=16)
    objective = FlatnessObjective(space, few_digits, settings=settings, device="cuda")
    study = optuna.create_study(directions=objective.directions, pruner=optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=8, n_jobs=4)
    records = [TrialRecord(trial) for trial in study.trials]
    assert [record.failure for record in records] == [None] * 8
    assert not any("plain_steps" in record.computation for record in records)


def test_a_training_that_goes_on_replays_again(few_digits: ImageData) -> None:
    data = few_digits.to("cuda")
    whole = _trainer(data, cuda_graphs=True)
    first, second = (_trainer(data, cuda_graphs=True) for _ in range(2))
    for trainer in (whole, first, second):
        trainer._model[3].p = 0.0  # type: ignore[index]
    losses = [whole.epoch()[0] for _ in range(3)]
    assert first.epoch()[0] == pytest.approx(losses[0], rel=1e-4)
    second._model.load_state_dict(first._model.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [second.epoch()[0] for _ in range(2)] == pytest.approx(losses[1:], rel=1e-3)


@pytest.mark.parametrize("allowed", [False, True])
def test_the_measure_is_that_of_the_cpu_whatever_is_allowed(
    allowed: bool,
) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    torch.manual_seed(0)
    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3).eval()
    x, y = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2])
    exact = relative_flatness(copy.deepcopy(net).double(), (x, y), "all", dtype=torch.float64)
    meter = FlatnessMeter(net.to("cuda"), "all")
    images = x.to("cuda"), y.to("cuda")
    first, again = meter(images), meter(images)
    assert meter.proofs == 1
    assert first.kind == exact.kind
    assert first.relative_flatness == pytest.approx(exact.relative_flatness, rel=1e-5)
    assert again.relative_flatness == pytest.approx(first.relative_flatness, rel=1e-6)
    assert torch.backends.cudnn.allow_tf32 is allowed
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_a_search_and_a_final_training(few_digits: ImageData, tmp_path: Path) -> None:
    space: Any = Tiny()
    settings = RunSettings(epochs=2, cuda_graphs=True)
    objective = FlatnessObjective(space, few_digits, settings=settings, device="cuda")
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(objective, n_trials=2)
    assert all("flatness" in dict(TrialRecord(trial).metrics) for trial in study.trials)
    data = few_digits.to("cuda")
    final = retrain(
        study, choose(summarise(study), "0"), data, tmp_path, epochs=1, space="tests.fakes:Tiny"
    )
    assert 0 <= final.accuracy <= 1


def test_memory_that_is_used_up_and_comes_back(few_digits: ImageData) -> None:
    class Large(Tiny):
        def build(self, architecture: Any, in_channels: int, num_classes: int) -> nn.Module:
            layers: list[nn.Module] = [nn.Conv2d(in_channels, 512, 3), nn.ReLU()]
            layers += [nn.Conv2d(512, 512, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            return nn.Sequential(*layers, nn.Linear(512, num_classes))

    def objective(space: Any) -> FlatnessObjective:
        return FlatnessObjective(space, few_digits, settings=RunSettings(epochs=1), device="cuda")

    directions = objective(Tiny()).directions
    studies = [optuna.create_study(directions=directions) for _ in range(2)]
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2e7) / total)
    try:
        studies[0].optimize(objective(Large()), n_trials=1, catch=RuntimeError)
        studies[1].optimize(objective(Tiny()), n_trials=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [study.trials[0].state.name for study in studies] == ["FAIL", "COMPLETE"]
    assert "out of memory" in str(TrialRecord(studies[0].trials[0]).retried)
