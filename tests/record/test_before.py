"""What the version before this one has made opens, and means the same.

The folder ``before`` holds, as commit ffd734f made them on digits with `plain_cnn`, a database of
three studies ("old", "soft" whose trials are pruned softly, "again" whose duplicates are trained
again), what ``flatsearch report --json`` said of them, the model that the search saved of trial 5
of "old", and its exports. File names in tracebacks are shortened.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from flatsearch import load, load_model
from flatsearch.cli import main
from flatsearch.record import StudyRecord, TrialRecord
from flatsearch.search.storage import open_storage
from tests.fakes import draw_nothing

BEFORE = Path(__file__).parent / "before"
STORAGE = "sqlite:///study.db"
# What has another name now.
RENAMED = {"same_as": "duplicate_of", "repeats": "retrain_of"}
# The version before counted the trial that diverged as pruned.
COUNTS = {
    "old": {
        "COMPLETE": 3, "DUPLICATE": 1, "OVER LIMIT": 1, "PRUNED": 1, "DIVERGED": 1, "FAIL": 1,
    },
    "soft": {"COMPLETE": 3, "DUPLICATE": 1},
    "again": {"COMPLETE": 2},
}  # fmt: skip


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    draw_nothing(monkeypatch)
    return tmp_path


def records(name: str) -> list[TrialRecord]:
    study = optuna.load_study(study_name=name, storage=open_storage(STORAGE))
    return [TrialRecord(trial) for trial in study.trials]


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_facts_of_its_trials(before: Path) -> None:
    old, soft, again = records("old"), records("soft"), records("again")
    assert [t.number for t in old if t.finished] == [0, 3, 4, 5, 7]
    assert [t.number for t in old if t.complete] == [0, 1, 3, 5]
    assert [t.number for t in old if t.pruned] == [4]
    assert [t.number for t in old if t.diverged] == [7]
    assert [t.number for t in old if t.over_limit] == [2]
    assert [t.duplicate_of for t in old] == [None, 0, *[None] * 6]
    assert [t.weight for t in old] == [1, 1, 1, 1, 1, 4, 1, 1]
    assert [t.audited for t in old].index(True) == 5
    assert old[1].metrics == old[0].metrics
    assert (old[6].failure, old[6].stopped) == ("RuntimeError: the machine broke", None)
    assert old[6].traceback.endswith("RuntimeError: the machine broke\n")
    assert list(old[5].layers) == ["features.0.0"]
    assert [(t.pruned, t.failure, t.stopped) for t in soft[:2]] == [
        (False, None, None),
        (True, None, "pruned after epoch 1"),
    ]
    assert [t.duplicate_of for t in soft] == [None, None, 1, None]
    assert [(t.own, t.retrain_of) for t in again] == [(True, None), (True, 0)]
    study = optuna.load_study(study_name="old", storage=open_storage(STORAGE))
    assert StudyRecord(study).trained(5) == "models/seed-0.pt"
    assert StudyRecord(study).run_settings().max_parameters == 20_000


@pytest.mark.parametrize("name", ["old", "soft", "again"])
def test_its_reports_say_what_they_said(
    name: str, before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = json_of(capsys, "report", name, "--storage", STORAGE)
    then = json.loads((before / f"{name}.json").read_text())
    for trial in then["trials"]:
        for old, new in RENAMED.items():
            trial[new] = trial.pop(old)
        if trial["failure"] == "pruned after epoch 1":
            trial["failure"], trial["stopped"] = None, trial["failure"]
    for trial, was in zip(now["trials"], then["trials"], strict=True):
        assert {key: trial[key] for key in was} == was
    assert now["counts"] == COUNTS[name]
    for key in ("objectives", "pareto_front"):
        assert now[key] == then[key]
    for key in ("pruning", "settings"):
        assert {name: now[key][name] for name in then[key] or ()} == (then[key] or {})


def test_it_is_resumed_and_trained_to_the_end(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = [
        "run", "--space", "plain_cnn", "--data", "digits", "--epochs", "2", "--batch-size", "16",
        "--probe-size", "64", "--max-params", "20000", "--device", "cpu",
    ]  # fmt: skip
    done = json_of(
        capsys, *search, "--study", "old", "--storage", STORAGE, "--trials", "1",
        "--artifacts", "artifacts",
    )  # fmt: skip
    assert [t["number"] for t in done["trials"] if t["state"] == "COMPLETE"][:4] == [0, 1, 3, 5]
    assert sum(t.finished for t in records("old")) == 6
    trained = json_of(
        capsys, "train", "old", "--storage", STORAGE, "--trial", "5", "--epochs", "1",
        "--device", "cpu",
    )  # fmt: skip
    assert trained["earlier"] == [[5, 0.5]]


def test_its_models_open_and_compute_the_same(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = next((before / "artifacts").iterdir())
    model, card = load_model(artifact)
    assert (card.space, card.data) == ("plain_cnn", "digits")
    assert sum(p.numel() for p in model.parameters()) == 306
    exported = json_of(
        capsys, "export", "old", "--storage", STORAGE, "--trial", "5", "--out", "new.onnx"
    )
    assert exported["max_difference"] < 1e-4
    # A program of torch.export opens with the version that saved it, and with later ones.
    files = [str(artifact), "model.onnx", "new.onnx"]
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14):
        files.append("model.pt2")
    for file in files:
        (prediction,) = load(file).predict(["digit.png"])
        assert prediction.class_name == "1"
        assert prediction.probability == pytest.approx(0.14273293, abs=1e-5)
