"""From a search to a class name, on the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from flatsearch import load
from flatsearch.cli import main
from tests.fakes import heeds_ctrl_c


class Done(NamedTuple):
    stdout: str
    stderr: str


SPACE = """
from torch import nn
from flatsearch import Architecture, GapCnn

class Mine:
    def suggest(self, trial):
        return Architecture("mine", {"width": trial.suggest_int("width", 8, 64)})

    def build(self, architecture, in_channels=3, num_classes=10):
        width = architecture["width"]
        layers = [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        return GapCnn(nn.Sequential(*layers), width, num_classes)
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a search has run, with its files and an image of a five."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "mine.py").write_text(SPACE)
    digits = load_digits()
    assert digits.target[5] == 5
    pixels = np.round(digits.images[5] * 255 / 16).astype("uint8")
    Image.fromarray(pixels).save(folder / "five.png")
    run(
        folder, "run", "--space", "./mine.py:Mine", "--trials", "2", "--epochs", "3", "--study", "s"
    )
    return folder


def run(folder: Path, *arguments: str, code: int = 0) -> Done:
    """Run a command in a folder, in this process, and return what it printed."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = main(arguments)
    finally:
        os.chdir(before)
    assert found == code, err.getvalue() + out.getvalue()
    return Done(out.getvalue(), err.getvalue())


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def test_four_commands_from_a_search_to_a_class_name(searched: Path, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path)  # the first command
    trained = run(folder, "train", "--epochs", "12")
    assert "test accuracy 0." in trained.stdout
    assert "the knee of the front" in trained.stderr
    assert "epoch 12: training loss" in trained.stderr
    exported = run(folder, "export", "--out", "model.onnx")
    assert "after its final training" in exported.stdout
    # Without the study, the space, and what the search and the training have left behind.
    for path in ("flatsearch.db", "mine.py"):
        (folder / path).unlink()
    predicted = run(folder, "predict", "model.onnx", "five.png")
    assert predicted.stdout.startswith("five.png: 5 (")


def test_json(searched: Path, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path)
    final = json.loads(run(folder, "train", "--epochs", "1", "--seeds", "2", "--json").stdout)
    assert len(final["seeds"]) == 2
    assert final["low"] <= final["accuracy"] <= final["high"]
    assert sum(map(sum, final["seeds"][0]["test"]["confusion"])) == 360
    exported = json.loads(run(folder, "export", "--json").stdout)
    assert exported["format"] == "pt2"
    assert exported["model"] == str(folder / final["model"])
    assert exported["max_difference"] <= 1e-4
    found = json.loads(run(folder, "predict", exported["file"], "five.png", "--json").stdout)
    assert found["predictions"][0]["image"] == "five.png"
    assert sum(found["predictions"][0]["probabilities"].values()) == pytest.approx(1)


def test_without_a_final_training_the_searched_model_is_exported(
    searched: Path, tmp_path: Path
) -> None:
    folder = copy_of(searched, tmp_path)
    done = run(folder, "export", "--trial", "1")
    assert "as the search left it; 'flatsearch train' makes a better one" in done.stdout
    assert (folder / "s-trial-1.pt2").exists()
    top = run(folder, "predict", "s-trial-1.pt2", "five.png", "--top", "3")
    assert top.stdout.count("%") == 3
    measured = run(folder, "measure", "s-trial-1.pt2", "--data", "digits", "--json")
    (file,) = (f for f in (folder / "flatsearch-artifacts").iterdir() if is_model_of(f, folder))
    same = run(folder, "measure", str(file), "--data", "digits", "--json")
    values = [json.loads(done.stdout)["relative_flatness"] for done in (measured, same)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def is_model_of(file: Path, folder: Path) -> bool:
    """Return whether an artifact is trial 1's model."""
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/flatsearch.db")
    return study.trials[1].user_attrs["flatsearch:model"] == file.name


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_a_killed_training_goes_on(searched: Path, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path)
    command = [sys.executable, "-m", "flatsearch", "train", "--trial", "0", "--epochs", "12"]
    killed = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert killed.stderr is not None
    for line in killed.stderr:
        if "epoch 3:" in line:
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    done = run(folder, "train", "--trial", "0", "--epochs", "12")
    epochs = [line for line in done.stderr.splitlines() if line.startswith("seed 0 epoch")]
    assert len(epochs) <= 9
    assert epochs[-1].startswith("seed 0 epoch 12:")


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_ctrl_c_says_what_is_kept(searched: Path, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path)
    command = [sys.executable, "-m", "flatsearch", "train", "--epochs", "500"]
    stopped = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=heeds_ctrl_c
    )
    assert stopped.stderr is not None
    for line in stopped.stderr:
        if "epoch 1:" in line:
            time.sleep(0.1)
            stopped.send_signal(signal.SIGINT)
            break
    said = stopped.stderr.read()
    assert stopped.wait() == 130
    assert "interrupted; the last epoch's checkpoint is kept" in said
    assert "Traceback" not in said


def test_a_missing_artifact_and_a_deleted_space(searched: Path, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path)
    (folder / "mine.py").unlink()
    for command in (["train", "--epochs", "1"], ["export", "--trial", "0"]):
        done = run(folder, *command, code=2)
        assert done.stderr.strip().splitlines()[-1].startswith(f"flatsearch {command[0]}: error: ")
        assert "'./mine.py' does not exist" in done.stderr.replace('"', "'")
        assert "Traceback" not in done.stderr
    for file in (folder / "flatsearch-artifacts").iterdir():
        file.unlink()
    done = run(folder, "export", "--trial", "0", code=2)
    assert "the saved model of trial 0" in done.stderr
    assert "is missing; give --artifacts, or train it with" in done.stderr


def test_another_trials_model_is_not_exported_under_a_wrong_name(
    searched: Path, tmp_path: Path
) -> None:
    folder = copy_of(searched, tmp_path)
    run(folder, "train", "--trial", "0", "--epochs", "1", "--out", "here")
    run(folder, "train", "--trial", "1", "--epochs", "1", "--out", "here", "--force")
    done = run(folder, "export", "--trial", "0", code=2)
    assert "has another architecture than the trial" in done.stderr
    assert "after its final training" in run(folder, "export", "--trial", "1").stdout


def test_a_space_that_has_moved(searched: Path, tmp_path: Path) -> None:
    folder = copy_of(searched, tmp_path)
    (folder / "mine.py").rename(folder / "moved.py")
    done = run(folder, "train", "--epochs", "1", "--space", "moved.py:Mine", "--trial", "0")
    assert "test accuracy" in done.stdout
    exported = run(folder, "export", "--trial", "0")
    assert "after its final training" in exported.stdout
    assert load(folder / "s-trial-0.pt2").card.space == "moved.py:Mine"


def test_a_record_of_an_older_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(study_name="old", storage="sqlite:///flatsearch.db")
    trial = study.ask()
    trial.set_user_attr("architecture", '{"space":"plain_cnn"}')  # without its values
    study.tell(trial, 0.5)
    for command in (["report"], ["train"], ["export"]):
        assert main(command) == 2
        said = capsys.readouterr().err.strip()
        what = "the record of trial 0 is damaged, or of another version of flatsearch"
        assert said.startswith(f"flatsearch {command[0]}: error: {what}")
        assert "\n" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--trial", "9"], "there is no trial '9' in study 's'; it has 0 to 1"),
        (["train", "--prefer", "size"], "unknown objective to prefer 'size'"),
        (["train", "--epochs", "0"], "--epochs must be at least 1 but got 0"),
        (["train", "--data", "digit"], "unknown data 'digit' (did you mean 'digits'?)"),
        (["export", "--out", "m.xyz"], "--out 'm.xyz' has no known ending (.pt2, .onnx, .pth)"),
        (["export", "--format", "onxx"], "unknown format 'onxx' (did you mean 'onnx'?)"),
        (
            ["export", "--format", "onnx", "--out", "m.pt2"],
            "a onnx file ends in .onnx, but --out is 'm.pt2'",
        ),
        (["predict", "five.png", "five.png"], "'five.png' is not a model saved by flatsearch"),
        (["predict", "no.pt2", "five.png"], "model file 'no.pt2' does not exist"),
        (["export", "--storage", "sqlite:///no.db"], "'sqlite:///no.db' does not exist"),
    ],
)
def test_wrong_use(
    searched: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(searched)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
    assert not (searched / "flatsearch-models").exists()
