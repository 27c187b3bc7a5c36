"""`flatsearch worker`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import optuna

from flatsearch import record
from flatsearch.cli import COMMANDS
from tests.fakes import call

if TYPE_CHECKING:
    from pathlib import Path

URL = "sqlite:///flatsearch.db"


def test_everything_comes_from_the_study(tiny: Path) -> None:
    study = optuna.load_study(study_name=None, storage=URL)
    stored = record.StudyRecord(study).run
    assert stored is not None
    assert stored["pruner"] == "none"
    assert not {"storage", "device", "timeout", "workers"} & set(stored)
    record.write_study(study, run={**stored, "target": 4})  # as if the run were not at its end
    out, err = call("worker")
    assert out == ""
    assert err.count(" complete: accuracy") == 2
    assert [t.state.name for t in study.get_trials()] == ["COMPLETE"] * 4
    call("worker")  # nothing left to do
    assert len(study.get_trials()) == 4


def test_a_record_of_the_version_before(tiny: Path) -> None:
    """The options that it stored, and settings without those that are newer."""
    study = optuna.load_study(study_name=None, storage=URL)
    options = {
        "space": "./my_space.py:MySpace", "data": "digits", "data_root": "data", "sampler": "tpe",
        "pruner": "none", "prune_on": None, "prune_mode": "auto",
        "artifacts": "flatsearch-artifacts", "max_failures": 3, "target": 3,
    }  # fmt: skip
    record.write_study(study, run=options)
    settings = record.StudyRecord(study).settings
    assert settings is not None
    record.write_study(study, settings={k: v for k, v in settings.items() if k != "max_latency"})
    call("worker")
    assert len(study.get_trials()) == 3


def test_workers_that_cannot_join(tiny: Path) -> None:
    assert "did you mean 'MySpace-digits'" in call("worker", "MySpace-digit", code=2).err
    optuna.create_study(study_name="other", storage=URL)
    assert "has not been run by flatsearch" in call("worker", "other", code=2).err
    rng = np.random.default_rng(0)
    np.savez("photos.npz", x_train=rng.random((60, 8, 8)), y_train=np.arange(60) % 10)
    err = call("worker", "MySpace-digits", "--data", "photos.npz", code=2).err
    assert "data=digits (not photos" in err


def test_the_commands_of_a_runs_workers() -> None:
    words = COMMANDS["worker"].arguments(study="s", storage="sqlite:///a.db", index=1, timeout=None)
    assert words == ["worker", "s", "--storage", "sqlite:///a.db", "--index", "1"]


def test_no_storage_is_made(empty_folder: Path) -> None:
    assert "'sqlite:///flatsearch.db' does not exist; give --storage" in call("worker", code=2).err
    assert not (empty_folder / "flatsearch.db").exists()
