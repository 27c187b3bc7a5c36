"""The folder of a run, and those that killed runs have left."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from flatsearch.search.shared_images import folder_of_run

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def hold(ours: Connection, folder: str, *, die: bool) -> None:
    """Be a run, until told, or killed."""
    tempfile.tempdir = folder
    with folder_of_run() as mine:
        (mine / "images").write_bytes(b"x")
        ours.send(mine.name)
        if die:
            os.kill(os.getpid(), 9)
        ours.recv()


def test_what_a_killed_run_has_left_is_removed_and_what_lives_is_not(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    runs = []
    for die in (True, False):
        theirs, ours = context.Pipe()
        run = context.Process(target=hold, args=(ours, str(tmp_path)), kwargs={"die": die})
        run.start()
        runs.append((theirs.recv(), theirs, run))
    (dead, _, killed), (alive, pipe, living) = runs
    killed.join()
    (tmp_path / "flatsearch-mine").mkdir()  # somebody else's, without a lock
    with folder_of_run() as own:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {alive, own.name, "flatsearch-mine"}
        assert (tmp_path / alive / "images").exists()
    assert dead not in names
    assert not own.exists()
    pipe.send(None)
    living.join()
    assert not (tmp_path / alive).exists()
