from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest

from flatsearch import RunSettings, UsageError
from flatsearch.record import FinalTest, StudyRecord, write_study

if TYPE_CHECKING:
    from pathlib import Path


def test_every_fact_is_read_as_it_was_written(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=storage, study_name="s")
    settings = {"space": "toys", **RunSettings(epochs=3).to_dict()}
    tests = (FinalTest(0, 0.5, "a.pt"), FinalTest(1, 0.6, "b.pt"), FinalTest(0, 0.7, "c.pt"))
    write_study(study, settings=settings, run={"target": 3}, noted=[0, 1], tests=tests)
    read = StudyRecord(optuna.load_study(study_name="s", storage=storage))
    assert (read.settings, read.run, read.noted) == (settings, {"target": 3}, [0, 1])
    assert read.tests == tests
    assert (read.trained(0), read.trained(1), read.trained(2)) == ("c.pt", "b.pt", None)
    assert read.run_settings() == RunSettings(epochs=3)
    assert read.space == "toys"
    write_study(study, run={"space": "./toys.py:Toys"})  # as it was given, with its folder
    assert StudyRecord(study).space == "./toys.py:Toys"


def test_a_study_of_somebody_else() -> None:
    read = StudyRecord(optuna.create_study(study_name="theirs"))
    assert (read.settings, read.run, read.noted, read.tests) == (None, None, [], ())
    assert (read.trained(0), read.space) == (None, "")
    with pytest.raises(UsageError, match="study 'theirs' has no settings of flatsearch"):
        read.run_settings()
