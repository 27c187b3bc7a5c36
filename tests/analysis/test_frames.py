"""A study as data: frames of pandas, and files of comma-separated values."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import optuna
import pandas
import pytest

import flatsearch
from flatsearch import UsageError, record
from flatsearch.analysis.frames import TRIAL_KEYS
from tests.cases import add, small_study, study_of
from tests.fakes import call

if TYPE_CHECKING:
    from pathlib import Path


def test_a_row_for_every_trial() -> None:
    frame = flatsearch.study_frame(small_study())
    assert [frame.index.name, *frame.columns[: len(TRIAL_KEYS) - 1]] == list(TRIAL_KEYS)
    assert list(frame.index) == list(range(6))
    assert list(frame[frame.front].index) == [0, 1]
    assert frame.state[3] == "PRUNED"
    assert list(frame.epochs) == [2, 2, 2, 1, 1, 2]
    assert list(frame.feasible) == [True, True, True, None, False, False]
    assert (frame.accuracy[0], frame.flatness[0]) == (0.9, 40.0)
    assert set(frame["architecture.kernel"]) == {"3"}


def test_a_row_for_every_epoch() -> None:
    frame = flatsearch.epochs_frame(small_study())
    assert frame.index.names == ["trial", "epoch"]
    assert len(frame) == 10
    assert frame.loc[(0, 2), "flatness"] == 40.0
    assert list(frame.loc[3].accuracy) == [0.2]


def test_studies_of_others_and_empty_ones() -> None:
    study = optuna.create_study()
    assert flatsearch.study_frame(study).empty
    assert flatsearch.epochs_frame(study).empty
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    frame = flatsearch.study_frame(study)
    assert list(frame["value 0"]) == list(frame["params.x"])


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pip install 'flatsearch\[pandas\]'"):
        flatsearch.study_frame(small_study())


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(storage="sqlite:///flatsearch.db", directions=["maximize"] * 2)
    study.set_metric_names(["accuracy", "flatness"])
    for trial in small_study().trials:
        study.add_trial(trial)
    call("report", "--csv", "t.csv", "--epochs-csv", "e.csv")
    trials, epochs = pandas.read_csv("t.csv", index_col=0), pandas.read_csv("e.csv")
    assert list(trials.columns) == list(flatsearch.study_frame(study).columns)
    assert list(trials.accuracy) == list(flatsearch.study_frame(study).accuracy)
    assert len(epochs) == 10
    assert "'t.csv' exists" in call("report", "--csv", "t.csv", code=2).err
    call("report", "--csv", "t.csv", "--force")


def test_what_a_duplicate_took_over() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0)])
    trial = study.ask()
    record.write_trial(trial, duplicate_of=0)
    study.tell(trial, [0.5, 1.0])
    frame = flatsearch.study_frame(study)
    assert list(frame.outcome) == ["COMPLETE", "DUPLICATE"]
    assert frame.duplicate_of[1] == 0
    assert not frame.front[1]
