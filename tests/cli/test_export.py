"""`flatsearch export` and `flatsearch predict`."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
from PIL import Image

from flatsearch import record
from tests.fakes import call

QUICK = ("--format", "state_dict")  # a program of torch's takes longer than everything else


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
    assert "after its final training" in call("export", "--trial", "1", *QUICK).out


def test_what_was_trained_last_is_exported(learnt: Path) -> None:
    """Whatever the search would choose; and the file is named."""
    call("train", "--trial", "0", "--epochs", "1")
    call("train", "--trial", "1", "--epochs", "1")
    for number in (1, 0):
        if number == 0:
            call("train", "--trial", "0", "--epochs", "2", "--force")
        out = call("export", *QUICK, "--force").out
        assert f"trial {number} (trained last), after its final training" in out
        assert f"written: s-trial-{number}.pth" in out
    assert "trial 1 (as asked for), after" in call("export", "--trial", "1", *QUICK, "--force").out


def test_the_card_and_the_file_of_eight_bits(learnt: Path) -> None:
    """The search's model is scored on validation images, a trained one on the test images."""
    out = call("export", "--trial", "1", "--format", "onnx-int8").out
    assert re.search(
        r"accuracy on 288 validation images: 0\.\d{3} \(95%.*of the float model 0", out
    )
    text = Path("README.md").read_text()
    assert "This file on 288 validation images" in text
    assert "The float model on 288 validation images" in text
    assert "my\\_space.py:Learns on digits, 3 epochs per trial." in text
    call("train", "--trial", "1", "--epochs", "1")
    found = json.loads(call("export", "--out", "t-int8.onnx", "--json").out)
    assert (found["split"], found["images"], found["card"]) == ("test", 360, "t-int8.onnx.md")
    assert f"images: {found['accuracy']:.3f} (95% interval" in Path("t-int8.onnx.md").read_text()
    assert "digits: 1149 training" in Path("t-int8.onnx.md").read_text()
    err = call("export", "--model", "m.pt", "--format", "onnx-int8", code=2).err
    assert "name the study in the place of --model" in err


@pytest.fixture
def model(learnt: Path) -> str:
    call("export", "--trial", "1", "--out", "m.pth")
    (learnt / "new" / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.PNG", "more/._b.png"):
        shutil.copy("five.png", learnt / "new" / name)
    return "m.pth"


def test_folders_patterns_and_what_cannot_be_read(model: str) -> None:
    done = call("predict", model, "new")
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["new/a.png", "new/more/b.PNG"]
    assert "new: left out: 1 hidden or of the system" in done.err
    assert "2 of 2 images read" in done.err
    assert call("predict", model, "new/*.png", "new/a.png").out.count("new/a.png") == 1
    assert "no file is like 'old/*'" in call("predict", model, "old/*", code=2).err
    Path("new/note.png").write_text("no image")
    Path("new/empty.png").touch()
    done = call("predict", model, "new", code=1)
    assert done.out.count("%") == 2
    assert "image 'new/note.png' cannot be read: it is no image" in done.err
    assert "image 'new/empty.png' cannot be read: it is empty" in done.err
    assert "2 of 4 images read" in done.err


def test_a_table_of_predictions(model: str) -> None:
    rows = list(csv.DictReader(call("predict", model, "new", "--csv").out.splitlines()))
    assert [row["image"] for row in rows] == ["new/a.png", "new/more/b.PNG"]
    assert list(rows[0])[3:] == list("0123456789")
    assert float(rows[0]["probability"]) == float(rows[0][rows[0]["class"]])


def test_photos_and_deep_images(model: str) -> None:
    """A photo that is stored sideways is the same one; of 16 bits it is none of these."""
    upright = Image.open("five.png").resize((64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save("phone.png", exif=exif)
    upright.save("upright.png")
    lines = call("predict", model, "upright.png", "phone.png", "--top", "10").out.splitlines()
    assert lines[0].split(": ")[1] == lines[1].split(": ")[1]
    Image.fromarray(np.asarray(upright).astype(np.uint16) * 257).save("deep.png")
    err = call("predict", model, "deep.png", code=2).err
    assert "image 'deep.png' has pixels of uint16, but 1 channel of uint8 are needed" in err


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


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--trial"], ["s", "t"]])
def test_a_wrong_command_line_is_json_too(untouched: Path, arguments: list[str]) -> None:
    done = call("export", "--json", *arguments, code=2)
    told = json.loads(done.out)
    assert told["type"] == "UsageError"
    assert done.err == f"flatsearch export: error: {told['error']}\n"
    assert not call("export", *arguments, code=2).out


def test_errors_are_json_where_results_are(untouched: Path) -> None:
    done = call("export", "--model", "five.png", "--json", code=2)
    assert json.loads(done.out)["type"] == "UsageError"
    assert "'five.png' is not a model saved by flatsearch" in json.loads(done.out)["error"]


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
