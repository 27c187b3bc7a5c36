"""`flatsearch train`."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from flatsearch import load
from tests.fakes import call
from tests.programs import started

if TYPE_CHECKING:
    from pathlib import Path


def test_json(learnt: Path) -> None:
    final = json.loads(call("train", "--epochs", "1", "--seeds", "2", "--json").out)
    assert len(final["seeds"]) == 2
    assert final["low"] <= final["accuracy"] <= final["high"]
    assert sum(map(sum, final["seeds"][0]["test"]["confusion"])) == 360
    exported = json.loads(call("export", "--json").out)
    assert exported["format"] == "pt2"
    assert exported["model"] == str(learnt / final["model"])
    assert exported["max_difference"] <= 1e-4
    found = json.loads(call("predict", exported["file"], "five.png", "--json").out)
    assert found["predictions"][0]["image"] == "five.png"
    assert sum(found["predictions"][0]["probabilities"].values()) == pytest.approx(1)


def test_several_trials(learnt: Path) -> None:
    done = call("train", "--trials", "0,1", "--epochs", "1")
    assert "trial 0: as asked for" in done.err
    assert "seed 0 of trial 1 epoch 1: training loss" in done.err
    assert "The model is seed 0 of trial " in done.out
    assert "by the lowest validation loss of 2" in done.out
    assert "validation loss" in done.out
    assert "noise loss" in done.out
    assert not call("train", "--trials", "0,1", "--epochs", "1", "--force", "--quiet").err
    compare = done.out.strip().splitlines()[-1].split()
    assert compare[:2] == ["flatsearch", "compare"]
    assert "--seed" not in compare  # the default
    assert "Differences" in call(*compare[1:], "--samples", "32").out


@pytest.mark.skipif(os.name == "nt", reason="signals differ")
def test_a_killed_training_goes_on(learnt: Path) -> None:
    command = ("train", "--trial", "0", "--epochs", "12")
    killed = started(*command)
    killed.until("epoch 3:")
    killed.end(signal.SIGKILL)
    err = call(*command).err
    epochs = [line for line in err.splitlines() if line.startswith("seed 0 epoch")]
    assert len(epochs) <= 9
    assert epochs[-1].startswith("seed 0 epoch 12:")


def test_ctrl_c_says_what_is_kept(learnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flatsearch.retrain.training.retrain", stop)
    err = call("train", code=130).err
    assert err.endswith("flatsearch: interrupted; the last epoch's checkpoint is kept\n")


def test_a_space_that_has_moved(learnt: Path) -> None:
    (learnt / "my_space.py").rename("moved.py")
    done = call("train", "--epochs", "1", "--space", "moved.py:Learns", "--trial", "0")
    assert "test accuracy" in done.out
    assert "after its final" in call("export", "--trial", "0", "--format", "state_dict").out
    assert load("s-trial-0.pth").card.space == "moved.py:Learns"


def test_a_space_that_is_gone(learnt: Path) -> None:
    (learnt / "my_space.py").unlink()
    err = call("train", "--epochs", "1", code=2).err
    assert err.strip().splitlines()[-1].startswith("flatsearch train: error: ")
    assert "'./my_space.py' does not exist" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "9"], "there is no trial '9' in study 's'; it has 0 to 1"),
        (["--prefer", "size"], "unknown objective to prefer 'size'"),
        (["--prefer", "accuracy", "--trial", "0"], "--prefer is for the best trial"),
        (["--epochs", "0"], "--epochs must be at least 1 but got 0"),
        (["--trials", "0,9"], "there is no trial '9' in study 's'; it has 0 to 1"),
        (["--trials", "0,0"], "trial 0 is given twice"),
        (["--trials", "0,1", "--trial", "0"], "--trials names all trials to train: leave --trial"),
        (["--trials", "0,1", "--no-hold-out"], "without --hold-out nothing ranks several trials"),
        (["--seeds", "0"], "--seeds must be at least 1 but got 0"),
        (["--data", "digit"], "unknown data 'digit' (did you mean 'digits'?)"),
        (["--data", "digits", "no"], "unknown study 'no'; known: s"),
    ],
)
def test_wrong_use(untouched: Path, arguments: list[str], message: str) -> None:
    assert message in call("train", *arguments, code=2).err.strip().splitlines()[-1]
