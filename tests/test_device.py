"""Everything that happens on a device, on one that computes on the CPU and counts the waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from flatsearch import FlatnessMeter, FlatnessObjective, RunSettings, load_space, relative_flatness
from flatsearch.analysis.selection import choose
from flatsearch.analysis.summary import summarise
from flatsearch.device import wait_for_memory
from flatsearch.flatness import state
from flatsearch.record import TrialRecord
from flatsearch.retrain.training import retrain
from flatsearch.signals.table import PROXIES
from flatsearch.spaces.registry import space_names
from flatsearch.spaces.space import build_model
from flatsearch.training.trainer import Trainer
from tests.fake_cuda import FakeCuda, _OnDevice
from tests.fakes import Smallest, Tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flatsearch import ImageData


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        pytest.skip("this version of PyTorch makes no tensors of a device that is not there")
    monkeypatch.setattr(state, "_PLAIN", {*state._PLAIN, _OnDevice})
    device = FakeCuda()
    try:
        yield device
    finally:
        device.stop()


def test_the_device_counts_and_refuses(gpu: FakeCuda) -> None:
    with gpu:
        x = torch.ones(3).to("cuda")
        assert x.device.type == "cuda"
        assert (2 * x).is_cuda
        assert not gpu.waits
        assert float(x.sum()) == 3
        assert x[x > 0].shape == (3,)
        assert sum(gpu.waits.values()) == 2
        with pytest.raises(RuntimeError, match="same device"):
            _ = x + torch.ones(3)
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device="cuda")
        assert x.cpu().tolist() == [1, 1, 1]


@pytest.mark.parametrize("layers", ["last", "all"])
def test_measuring_again_waits_a_few_times(layers: str, gpu: FakeCuda) -> None:
    torch.manual_seed(0)
    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3).eval()
    x, y = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2])
    expected = relative_flatness(net, (x, y), layers)
    with gpu:
        net, images = net.to("cuda"), (x.to("cuda"), y.to("cuda"))
        meter = FlatnessMeter(net, layers)
        meter(images)
        assert sum(gpu.waits.values()) <= 8, gpu.waits
        gpu.waits.clear()
        again = meter(images)
    assert meter.proofs == 1
    assert sum(gpu.waits.values()) == 1, gpu.waits
    assert len(again.layers) == len(expected.layers)
    assert again.relative_flatness == pytest.approx(expected.relative_flatness, rel=1e-4)


def test_images_too_large_for_the_device_stay_with_the_host(
    few_digits: ImageData, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(data: ImageData) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        augment = data.augmentation("crop+flip")
        found = data.train.batches(48, generator=generator, augment=augment)
        return [part for batch in found for part in batch]

    with gpu:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 100))
        moved = few_digits.to("cuda")
        assert moved.train.images.device == torch.device("cpu")
        assert moved.probe.pixels().is_cuda
        there = batches(moved)
        assert all(part.is_cuda for part in there)
        there = [part.cpu() for part in there]
    assert all(map(torch.equal, there, batches(few_digits)))


@pytest.mark.parametrize(
    ("free", "waits", "found"),
    [
        ([10, 10, 30, 60], 2, True),  # others end one after the other
        ([60, 90], 0, False),  # nobody else has any: the network is too large
        ([10] * 9, 3, False),  # others do not end
    ],
)
def test_memory_that_others_have_is_waited_for(
    free: list[int], waits: int, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, checks, reserved = iter(range(100)), list[int](), [35]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free.pop(0), 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: sum(reserved))
    monkeypatch.setattr(torch.cuda, "empty_cache", reserved.clear)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert wait_for_memory(torch.device("cuda"), lambda: checks.append(1), 4) is found
    assert len(checks) == waits
    assert not wait_for_memory(torch.device("cpu"), lambda: checks.append(1))


@pytest.mark.parametrize("graphs", [False, True])
def test_an_epoch_waits_twice_however_many_batches(
    graphs: bool, few_digits: ImageData, gpu: FakeCuda
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    net.append(nn.Linear(144, 10))
    waits = []
    with gpu:
        data = few_digits.to("cuda")
        for batch_size in (16, 64):
            settings = RunSettings(epochs=2, batch_size=batch_size, cuda_graphs=graphs)
            trainer = Trainer(net.to("cuda"), data, settings, seed=0)
            epochs = trainer.results()
            next(epochs)
            gpu.waits.clear()
            next(epochs)
            waits.append(sum(gpu.waits.values()))
    assert waits == [2, 2], gpu.waits
    if graphs:  # which this device has not: all steps were plain ones
        assert trainer.graph is not None
        assert trainer.graph.failure
        assert trainer.graph.replays == 0


def test_every_space_is_measured_as_on_the_cpu(gpu: FakeCuda) -> None:
    images = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    for name in space_names()[::2]:
        space = load_space(name)
        torch.manual_seed(0)
        architecture = space.suggest(optuna.create_study(sampler=Smallest(seed=0)).ask())
        net = build_model(space, architecture, in_channels=3, num_classes=2, image_size=16)
        expected = relative_flatness(net, images).relative_flatness
        with gpu:
            moved = images[0].to("cuda"), images[1].to("cuda")
            found = relative_flatness(net.to("cuda"), moved).relative_flatness
        assert found == pytest.approx(expected, rel=1e-3), name


def test_a_search_and_a_final_training(
    few_digits: ImageData, tmp_path: Path, gpu: FakeCuda
) -> None:
    # Quantiles convert numbers inside of PyTorch, to what it takes for their device: the CPU.
    signals = tuple(name for name in PROXIES if not name.startswith("vkdnw"))
    settings = RunSettings(epochs=1, signals=signals, precision="float32")
    records = []
    for device in ("cpu", "cuda"):
        with gpu:
            space: Any = Tiny()
            objective = FlatnessObjective(space, few_digits, settings=settings, device=device)
            study = optuna.create_study(
                directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0)
            )
            study.optimize(objective, n_trials=1)
            records.append(TrialRecord(study.trials[0]))
    on_cpu, on_device = (dict(record.metrics) for record in records)
    assert on_device.keys() == on_cpu.keys()
    for name, value in on_cpu.items():
        if name != "train_seconds":
            assert on_device[name] == pytest.approx(value, rel=0.01, abs=1e-4), name
    with gpu:
        choice = choose(summarise(study), "0")
        data = few_digits.to("cuda")
        final = retrain(study, choice, data, tmp_path, epochs=1, space="tests.fakes:Tiny")
    assert 0 <= final.accuracy <= 1
