"""`flatsearch export` and `flatsearch predict`."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from flatsearch import record
from tests.fakes import call


def test_without_a_final_training_the_searched_model_is_exported(learnt: Path) -> None:
    done = call("export", "--trial", "1")
    assert "as the search left it; 'flatsearch train' makes a better one" in done.out
    assert Path("s-trial-1.pt2").exists()
    assert call("predict", "s-trial-1.pt2", "five.png", "--top", "3").out.count("%") == 3
    trial = optuna.load_study(study_name="s", storage="sqlite:///flatsearch.db").trials[1]
    artifact = record.TrialRecord(trial).artifact
    assert artifact is not None
    values = [
        json.loads(call("measure", file, "--data", "digits", "--json").out)["relative_flatness"]
        for file in ("s-trial-1.pt2", f"flatsearch-artifacts/{artifact}")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_a_space_that_is_gone_and_a_missing_artifact(learnt: Path) -> None:
    (learnt / "my_space.py").unlink()
    err = call("export", "--trial", "0", code=2).err
    assert err.startswith("flatsearch export: error: ")
    assert "'./my_space.py' does not exist" in err
    for file in (learnt / "flatsearch-artifacts").iterdir():
        file.unlink()
    err = call("export", "--trial", "0", code=2).err
    assert "the saved model of trial 0" in err
    assert "is missing; give --artifacts, or train it with 'flatsearch train'" in err


def test_another_trials_model_is_not_exported_under_a_wrong_name(learnt: Path) -> None:
    call("train", "--trial", "0", "--epochs", "1", "--out", "here")
    call("train", "--trial", "1", "--epochs", "1", "--out", "here", "--force")
    err = call("export", "--trial", "0", code=2).err
    assert "has another architecture than the trial" in err
    assert "train the trial with another --out, or name the file with --model" in err
    assert "after its final training" in call("export", "--trial", "1").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--out", "m.xyz"],
            "--out 'm.xyz' has no known ending (.pt2, .onnx, .pth); give --format",
        ),
        (["--format", "onxx"], "unknown format 'onxx' (did you mean 'onnx'?)"),
        (
            ["--format", "onnx", "--out", "m.pt2"],
            "a onnx file ends in .onnx, but --out is 'm.pt2'",
        ),
        (["--storage", "sqlite:///no.db"], "'sqlite:///no.db' does not exist"),
        (["--model", "five.png"], "'five.png' is not a model saved by flatsearch"),
    ],
)
def test_wrong_use(untouched: Path, arguments: list[str], message: str) -> None:
    assert message in call("export", *arguments, code=2).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["five.png", "five.png"], "'five.png' is not a model saved by flatsearch"),
        (["no.pt2", "five.png"], "model file 'no.pt2' does not exist"),
        (["no.pt2", "five.png", "--top", "0"], "--top must be at least 1 but got 0"),
        (["no.pt2"], "the following arguments are required: IMAGE"),
    ],
)
def test_wrong_use_of_predict(untouched: Path, arguments: list[str], message: str) -> None:
    assert message in call("predict", *arguments, code=2).err
