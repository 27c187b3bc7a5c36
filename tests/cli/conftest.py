"""Folders in which commands run: an empty one, and two in which a search has been."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.fakes import call, draw_nothing

if TYPE_CHECKING:
    from collections.abc import Iterator

SPACES = Path(__file__).parent / "my_space.py"
RUN = ("run", "--device", "cpu", "--pruner", "none", "--probe-size", "32")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty but for a file with two spaces."""
    shutil.copy(SPACES, tmp_path)
    monkeypatch.chdir(tmp_path)
    draw_nothing(monkeypatch)
    return tmp_path


def search(folder: Path, *arguments: str) -> Path:
    """Run a search in a folder."""
    shutil.copy(SPACES, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw_nothing(patch)
        call(*RUN, *arguments)
    return folder


@pytest.fixture(scope="session")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quick = ("--epochs", "1", "--trials", "2", "--min-accuracy", "0")
    folder = tmp_path_factory.mktemp("tiny")
    return search(folder, "--space", "./my_space.py:MySpace", *quick)


@pytest.fixture(scope="session")
def _learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learnt")
    digits = load_digits()
    assert digits.target[5] == 5
    pixels = np.round(digits.images[5] * 255 / 16).astype("uint8")
    Image.fromarray(pixels).save(folder / "five.png")
    quick = ("--epochs", "3", "--trials", "2", "--study", "s")
    return search(folder, "--space", "./my_space.py:Learns", *quick)


def _copied(folder: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = Path(shutil.copytree(folder, to / "copy"))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def tiny(_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which a search of MySpace has run: two trials of one epoch."""
    return _copied(_tiny, tmp_path, monkeypatch)


@pytest.fixture
def learnt(_learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which a search of Learns has run, with an image of a five."""
    return _copied(_learnt, tmp_path, monkeypatch)


@pytest.fixture
def untouched(_learnt: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of that search itself, for commands that leave nothing behind."""
    monkeypatch.chdir(_learnt)
    before = sorted(_learnt.rglob("*"))
    yield _learnt
    assert sorted(_learnt.rglob("*")) == before
