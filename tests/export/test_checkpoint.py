"""A trained model is saved, loaded and refused by name."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flatsearch import (
    Architecture,
    ModelCard,
    RunSettings,
    SpaceError,
    UsageError,
    load_model,
    load_space,
    save_model,
)
from flatsearch.spaces.space import build_model
from flatsearch.training.trainer import train

if TYPE_CHECKING:
    from torch import nn

    from flatsearch.data.splits import ImageData

SPACE = """
import torch.nn as nn
from flatsearch import Architecture, GapCnn

class Mine:
    def suggest(self, trial):
        return Architecture("mine", {"width": 4})

    def build(self, architecture, in_channels=3, num_classes=10):
        width = architecture["width"]
        conv = nn.Conv2d(in_channels, width, 3, padding=1)
        return GapCnn(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()), width, num_classes)
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SPACE)
    return path


def card(space: Path | None = None, **changes: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "space": f"{space}:Mine",
        "architecture": Architecture("mine", {"width": 4}).to_json(),
        "in_channels": 1,
        "num_classes": 10,
        "image_size": 8,
        "data": "digits",
        "class_names": tuple("0123456789"),
        "mean": (78.0,),
        "std": (96.0,),
    }
    return ModelCard(**{**fields, **changes})


def build(card: ModelCard) -> nn.Module:
    return build_model(
        load_space(card.space),
        Architecture.from_json(card.architecture),
        in_channels=card.in_channels,
        num_classes=card.num_classes,
        image_size=card.image_size,
    )


@pytest.fixture
def saved(space: Path, tmp_path: Path) -> Path:
    save_model(build(card(space)), card(space), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def refused(path: Path | str) -> str:
    with pytest.raises(UsageError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(path: Path, **changes: Any) -> Path:
    """The saved file with some of its fields replaced."""
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    return path


def test_round_trip_of_a_trained_model(space: Path, tmp_path: Path, digits: ImageData) -> None:
    written = card(
        space,
        mean=tuple(digits.train.mean.flatten().tolist()),
        std=tuple(digits.train.std.flatten().tolist()),
    )
    model = build(written)
    list(train(model, digits, RunSettings(epochs=1), seed=0))
    save_model(model, written, str(tmp_path / "model.pt"))
    loaded, read = load_model(str(tmp_path / "model.pt"))
    assert read == written
    assert loaded is not model
    assert not any(module.training for module in loaded.modules())
    inputs, _ = digits.validation.tensors()
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model(inputs))
        assert torch.equal(loaded(read.normalise(digits.validation.images)), model(inputs))


def test_round_trip_of_an_installed_space(tmp_path: Path) -> None:
    values = {
        "widths": [8, 12],
        "blocks": [1, 1],
        "block": "basic",
        "kernel": 3,
        "activation": "silu",
        "pre_activation": False,
        "squeeze_excitation": False,
    }
    written = dataclasses.replace(
        card(),
        space="resnet_small",
        architecture=Architecture("resnet_small", values).to_json(),
    )
    model = build(written).eval()
    save_model(model, written, tmp_path / "model.pt")
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model.pt")[0](x), model(x))


def test_saving_does_not_change_the_model(space: Path, tmp_path: Path) -> None:
    model = build(card(space))
    save_model(model, card(space), tmp_path / "model.pt")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_the_file_holds_no_code(saved: Path) -> None:
    fields = torch.load(saved, weights_only=True)
    assert set(fields) == {"format", "version", "card", "state_dict"}
    with zipfile.ZipFile(saved) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    assert b"flatsearch." not in pickled  # no class of ours is needed to read it


def test_normalise_is_that_of_the_training_data() -> None:
    written = card(in_channels=2, mean=(10.0, 20.0), std=(2.0, 4.0))
    images = torch.full((3, 2, 4, 4), 30, dtype=torch.uint8)
    out = written.normalise(images)
    assert out.dtype == torch.float32
    assert torch.equal(out[:, 0], torch.full((3, 4, 4), 10.0))
    assert torch.equal(out[:, 1], torch.full((3, 4, 4), 2.5))


def test_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nope.pt")


@pytest.mark.parametrize("keep", [4, 300, 2000, -30])
def test_a_cut_off_file(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    assert "is not a model saved by flatsearch" in refused(saved)


def test_a_folder(tmp_path: Path) -> None:
    assert "is not a model saved by flatsearch" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.ones(3),
        {"weight": torch.ones(3)},
        {"format": "something else", "version": 1},
        torch.nn.Linear(2, 3),
        np.arange(3),
    ],
    ids=lambda content: type(content).__name__,
)
def test_files_of_others(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pt")
    assert "is not a model saved by flatsearch" in refused(tmp_path / "other.pt")


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_file_is_not_run(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    assert "is not a model saved by flatsearch" in refused(edited(saved, extra=Payload(target)))
    assert not target.exists()
    torch.load(saved, weights_only=False)
    assert target.exists()  # the payload works: it was not run before


def test_a_model_starts_no_program_as_its_space(saved: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    card = torch.load(saved, weights_only=True)["card"]
    card["space"] = f"subprocess:Popen,args={program}"
    assert "Popen has no method 'suggest'" in refused(edited(saved, card=card))
    assert not (tmp_path / "ran").exists()


def test_another_zip_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    assert "is not a model saved by flatsearch" in refused(tmp_path / "arrays.npz")


def test_a_newer_version_is_named(saved: Path) -> None:
    assert "was saved by a newer flatsearch (format 2)" in refused(edited(saved, version=2))
    torch.save({"format": "flatsearch-model", "version": 3, "other": "fields"}, saved)
    assert "format 3" in refused(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("conv, nn.BatchNorm2d(width),", "conv,"),
        ("nn.Conv2d(in_channels, width, 3, padding=1)", "nn.Conv2d(in_channels, width, 5)"),
        ("nn.BatchNorm2d(width)", "nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)"),
    ],
)
def test_a_space_that_builds_another_model_now(
    saved: Path, space: Path, old: str, new: str
) -> None:
    space.write_text(SPACE.replace(old, new))
    assert f"search space '{space}:Mine' now builds another model" in refused(saved)


def test_a_space_that_fails_now(saved: Path, space: Path) -> None:
    space.write_text(SPACE.replace('architecture["width"]', 'architecture["depth"]'))
    with pytest.raises(SpaceError, match=r"Mine\.build failed: KeyError: 'depth'"):
        load_model(saved)
    space.unlink()
    with pytest.raises(SpaceError, match=r"mine\.py' does not exist"):
        load_model(saved)


def test_a_space_that_is_not_installed(saved: Path, space: Path) -> None:
    fields = {**dataclasses.asdict(card(space)), "space": "resnet_tiny"}
    with pytest.raises(SpaceError, match="unknown search space 'resnet_tiny'"):
        load_model(edited(saved, card=fields))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x02}q\x00.", bytes(range(256))], ids=range(4)
)
def test_damaged_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert "is not a model saved by flatsearch" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize("missing", ["version", "card", "state_dict"])
def test_files_without_a_field(saved: Path, missing: str) -> None:
    fields = torch.load(saved, weights_only=True)
    del fields[missing]
    torch.save(fields, saved)
    if missing == "version":
        load_model(saved)
    else:
        assert f"KeyError: '{missing}'" in refused(saved)
