"""Images that are too large for the memory come from a file, with the same numbers."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from flatsearch import DataError, ImageData, load_data
from flatsearch.data import images as reader
from flatsearch.settings import RunSettings
from flatsearch.spaces.space import Architecture
from flatsearch.training.trainer import Trainer
from tests.fakes import Tiny

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
SPLITS = ("train", "validation", "test", "probe")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, pixels in enumerate(PIXELS):
        file = tmp_path / "images" / ("cat", "dog")[index % 2] / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return tmp_path / "images"


def both(source: object, tmp_path: Path) -> tuple[ImageData, ImageData]:
    """Return the data from memory, and from a file."""
    data, streamed = load_data(source), load_data(source, root=tmp_path, memory=1)
    assert data.train.images.device != streamed.train.images.device
    return data, streamed


def require_equal(data: ImageData, streamed: ImageData) -> None:
    for name in SPLITS:
        one, other = getattr(data, name), getattr(streamed, name)
        assert torch.equal(one.pixels(), other.pixels()), name
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.tensors()[0], other.tensors()[0])
    assert data.fingerprint() == streamed.fingerprint()


def test_files_are_the_same(folder: Path, tmp_path: Path) -> None:
    data, streamed = both(folder, tmp_path)
    require_equal(data, streamed)
    require_equal(data.merged(), streamed.merged())
    assert "bytes of pixels are more than 1 of memory" in str(streamed)
    assert streamed.remarks[1:] == data.remarks


@pytest.mark.parametrize("kind", ["uint8", "float32", "splits", "npy"])
def test_arrays_are_the_same(kind: str, tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    source: object = (PIXELS.astype(np.float32) if kind == "float32" else PIXELS, labels)
    if kind == "splits":
        source = {"train": (PIXELS[20:], labels[20:]), "test": (PIXELS[:20], labels[:20])}
    if kind == "npy":
        np.save(tmp_path / "x.npy", PIXELS)
        np.save(tmp_path / "y.npy", labels)
        source = f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}"
    require_equal(*both(source, tmp_path))


@pytest.mark.parametrize("memory", [1, None])
def test_processes_share_one_copy(memory: int | None, folder: Path, tmp_path: Path) -> None:
    data = load_data(folder, root=tmp_path, memory=memory)
    data.save(tmp_path / "shared")
    shared = ImageData.load(tmp_path / "shared")
    require_equal(data, shared)
    assert str(shared) == str(data)
    if sys.platform == "linux":
        assert str(tmp_path / "shared") in Path("/proc/self/maps").read_text()


def test_training_gives_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    results, weights = [], []
    for data in both(folder, tmp_path):
        torch.manual_seed(0)
        model = Tiny().build(Architecture("tiny", {"width": 2}), 3, 2)
        trainer = Trainer(model, data, RunSettings(epochs=2, batch_size=8), seed=3)
        results.append([(r.train_loss, r.loss, r.accuracy) for r in trainer.results()])
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert results[0] == results[1]
    assert torch.equal(*weights)


def test_the_file_is_made_once_until_the_source_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[object] = []
    read = reader.read_image
    monkeypatch.setattr(
        reader, "read_image", lambda item, form: decoded.append(item) or read(item, form)
    )
    for seed in (0, 1):  # of other splits
        load_data(folder, root=tmp_path, memory=1, seed=seed)
    assert len(decoded) == len(PIXELS)
    (file,) = (tmp_path / "stored").iterdir()
    file.write_bytes(file.read_bytes()[:-1])  # damaged
    load_data(folder, root=tmp_path, memory=1)
    assert len(decoded) == 2 * len(PIXELS)
    Image.fromarray(255 - PIXELS[0]).save(folder / "cat" / "00.png")
    os.utime(folder / "cat" / "00.png", ns=(1, 1))
    changed = load_data(folder, root=tmp_path, memory=1)
    require_equal(load_data(folder), changed)
    assert len(list((tmp_path / "stored").iterdir())) == 2


def test_what_is_not_complete_is_no_file(folder: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.mkdir()
    for name, age in (("old.part", 7200), ("new.part", 0)):
        (stored / name).write_bytes(b"")
        os.utime(stored / name, (time.time() - age,) * 2)
    broken = (folder / "cat" / "02.png").read_bytes()
    (folder / "cat" / "02.png").write_bytes(broken[:-60])
    with pytest.raises(DataError, match=r"02\.png"):
        load_data(folder, root=tmp_path, memory=1)
    assert [file.name for file in stored.iterdir()] == ["new.part"]


def test_no_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(DataError, match="100 bytes are free"):
        load_data(folder, root=tmp_path, memory=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be stored"):
        load_data(folder, root=tmp_path / "file", memory=1)
