"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import psutil
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flatsearch import load_data, record, relative_flatness
from flatsearch.cli import main

SPACE_FILE = '''
import torch.nn as nn
from flatsearch import Architecture, GapCnn

class MySpace:
    """Networks of one layer."""

    def suggest(self, trial):
        width = trial.suggest_int("width", 2, 8)
        return Architecture("mine", {"width": width, "slope": trial.suggest_int("slope", 0, 99)})

    def build(self, architecture, in_channels=3, num_classes=10):
        width = architecture["width"]
        conv = nn.Conv2d(in_channels, width, 3, padding=1)
        act = nn.LeakyReLU(architecture["slope"] / 100)
        return GapCnn(nn.Sequential(conv, act), width, num_classes)
'''
# What goes wrong in a user's space, and what is said about it.
BROKEN = {
    "wrong shape": (
        "return GapCnn(nn.Sequential(conv, act), width, num_classes)",
        "return GapCnn(nn.Sequential(conv, act), width, 3)",
        "MySpace.build must return a model with logits of shape (N, 10) but two images gave (2, 3)",
    ),
    "no pooling": (
        "return GapCnn(nn.Sequential(conv, act), width, num_classes)",
        "return nn.Sequential(conv, act, nn.Flatten(), nn.Linear(64 * width, num_classes))",
        "MySpace.build returned a model whose flatness cannot be measured: layer '0'",
    ),
    "a name twice": (
        'trial.suggest_int("slope", 0, 99)',
        'trial.suggest_int("width", 2, 8)',
        "MySpace.suggest: the parameter name 'width' is used twice",
    ),
    "a recipe's name": (
        'trial.suggest_int("slope", 0, 99)',
        'trial.suggest_float("recipe_lr", 0, 1)',
        "MySpace.suggest and the training recipe: the parameter name 'recipe_lr' is used twice",
    ),
    "an exception in build": (
        "nn.Conv2d(in_channels, width, 3, padding=1)",
        "nn.Conv2d(in_channels, widht, 3, padding=1)",
        "MySpace.build failed: NameError: name 'widht' is not defined",
    ),
    "an exception in suggest": (
        'trial.suggest_int("width", 2, 8)',
        'trial.suggest_int("width", 8, 2)',
        "MySpace.suggest failed: ValueError: `low <= high` must hold",
    ),
    "no architecture": (
        'Architecture("mine", {"width": width,',
        'dict(a={"width": width,',
        "MySpace.suggest must return an Architecture but returned {'a'",
    ),
    "fails on these images": (
        "nn.Conv2d(in_channels, width, 3, padding=1)",
        "nn.Conv2d(3, width, 3, padding=1)",
        "MySpace.build returned a model that fails on images of shape (1, 8, 8)",
    ),
}
QUICK = ["--epochs", "1", "--trials", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_space.py").write_text(SPACE_FILE)
    return tmp_path


def call(*arguments: str) -> int:
    return main(list(arguments))


def run(*arguments: str) -> int:
    # One epoch of one layer is hardly better than guessing.
    quick = [*QUICK, "--min-accuracy", "0"]
    return call("run", "--space", "./my_space.py:MySpace", *quick, *arguments)


def image_folder(folder: Path, count: int = 60) -> Path:
    bunch = load_digits(n_class=3)
    for index in range(count):
        place = folder / f"class{bunch.target[index]}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = (bunch.images[index] * 15).astype("uint8")
        suffix = "png" if index % 2 else "jpg"
        Image.fromarray(pixels).save(place / f"{index}.{suffix}")
    return folder


def test_from_nothing_to_a_front_and_on(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--space", "resnet_small", "--epochs", "1", "--device", "cpu"]
    assert call("run", *options, "--trials", "2") == 0
    out, err = capsys.readouterr()
    assert "new study 'resnet_small-digits': trials to go: 2" in err
    assert "best accuracy" in err
    assert "Pareto front" in out
    assert "flatsearch report resnet_small-digits" in out
    assert call("run", *options, "--trials", "1") == 0
    assert "resuming study 'resnet_small-digits' (finished trials: 2)" in capsys.readouterr().err
    study = optuna.load_study(study_name=None, storage="sqlite:///flatsearch.db")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert study.metric_names == ["accuracy", "flatness"]
    assert all(t.user_attrs["flatness"] == t.values[1] for t in study.trials)
    assert call("report") == 0
    assert "3 complete" in capsys.readouterr().out


def test_the_default_budget_is_a_total(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatsearch.cli.run.DEFAULT_TRIALS", 3)
    options = ["run", "--space", "./my_space.py:MySpace", "--epochs", "1"]
    assert call(*options) == 0
    assert call(*options) == 0
    assert "nothing to do; --trials N adds more" in capsys.readouterr().err
    study = optuna.load_study(study_name="MySpace-digits", storage="sqlite:///flatsearch.db")
    assert len(study.trials) == 3


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    ran = json.loads(capsys.readouterr().out)
    assert ran["counts"] == {"COMPLETE": 2}
    assert {"accuracy", "flatness"} == set(ran["trials"][0]["values"])
    assert ran["trials"][0]["epochs"][0]["epoch"] == 1
    assert call("report", "MySpace-digits", "--json") == 0
    assert json.loads(capsys.readouterr().out)["trials"] == ran["trials"]
    model = Path("flatsearch-artifacts") / ran["trials"][0]["model"]
    arguments = ["measure", str(model), "--data", "digits", "--samples", "256", "--json"]
    assert call(*arguments) == 0
    measured = json.loads(capsys.readouterr().out)
    recorded = ran["trials"][0]["values"]["flatness"]
    assert measured["relative_flatness"] == pytest.approx(recorded, rel=1e-3)
    assert measured["kind"] == "hessian"
    assert list(measured["layers"]) == ["features.0"]


def test_the_same_seed_gives_the_same_study(capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for storage, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        assert run("--json", "--seed", seed, "--storage", f"sqlite:///{storage}.db") == 0
        trials = json.loads(capsys.readouterr().out)["trials"]
        for trial in trials:
            del trial["seconds"], trial["model"]
            for epoch in trial["epochs"]:
                del epoch["train_seconds"]
        results.append(trials)
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_an_image_folder(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    image_folder(empty_folder / "photos")
    assert run("--data", "photos") == 0
    out, err = capsys.readouterr()
    assert "new study 'MySpace-photos'" in err
    assert "3 classes" in err
    assert "Pareto front" in out


def test_limits(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--objectives", "accuracy,latency", "--max-params", "0.1k", "--max-latency", "1s"]
    assert run(*limits, "--trials", "3", "--json") == 0
    ran = json.loads(capsys.readouterr().out)
    # a width of w, 2 to 8, has 20 w + 10 parameters (three draws of it repeat no slope)
    assert ran["counts"]["COMPLETE"] == 3
    assert "PRUNED" not in ran["counts"]
    assert ran["counts"]["OVER LIMIT"] >= 1
    assert all(trial["values"]["latency"] > 0 for trial in ran["trials"] if trial["values"])
    study = optuna.load_study(study_name="MySpace-digits", storage="sqlite:///flatsearch.db")
    over = [t for t in study.trials if t.user_attrs["parameters"] > 100]
    assert over  # the seed's draws
    for trial in study.trials:
        assert (trial.state.name == "PRUNED") == (trial in over)
        assert ("flatsearch:step:0" in trial.user_attrs) == (trial not in over)
    assert "over the limit: " in over[0].user_attrs["failure"]
    assert run("--objectives", "accuracy,latency") == 2  # other limits: another study
    assert "max_parameters=100" in capsys.readouterr().err
    assert run("--study", "none", "--max-params", "10") == 1
    assert "200 candidates in a row are over the limits (parameters 10)" in capsys.readouterr().err


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_space_is_one_line_before_any_training(
    what: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    good, bad, message = BROKEN[what]
    assert SPACE_FILE.count(good) == 1
    (empty_folder / "my_space.py").write_text(SPACE_FILE.replace(good, bad))
    recipe = ["--tune-recipe"] if "recipe" in what else []
    assert run(*recipe) != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("flatsearch-artifacts").exists()
    # Nothing of it is in the storage either.
    assert optuna.get_all_study_names("sqlite:///flatsearch.db") == []


def test_a_users_space_is_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    capsys.readouterr()
    assert call("report") == 0
    out = capsys.readouterr().out
    assert "study MySpace-digits: 2 complete" in out
    assert "slope=" in out
    assert "width=" in out


def test_a_recipe_of_every_trial(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--tune-recipe", "--json") == 0
    ran = json.loads(capsys.readouterr().out)
    for trial in ran["trials"]:
        assert trial["recipe"]["lr"] == trial["params"]["recipe_lr"]
        assert trial["recipe"]["batch_size"] in {32, 64, 128, 256}
    assert call("report") == 0
    assert "batch_size=" in capsys.readouterr().out
    assert run() == 2
    assert "tune_recipe=True (not False)" in capsys.readouterr().err


def test_a_space_that_is_used_up(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    few = SPACE_FILE.replace('"slope", 0, 99', '"slope", 0, 0').replace(
        '"width", 2, 8', '"width", 2, 3'
    )
    (empty_folder / "my_space.py").write_text(few)
    assert run("--trials", "3", "--storage", "sqlite:///a.db") == 0
    out, err = capsys.readouterr()
    assert "flatsearch run: all 2 architectures of the space have been tried" in err
    assert err.count("not trained again") <= 4
    assert "Pareto front" in out
    study = optuna.load_study(study_name="MySpace-digits", storage="sqlite:///a.db")
    assert sum("flatsearch:step:0" in t.user_attrs for t in study.trials) == 2
    assert run("--duplicates", "retrain", "--trials", "3", "--study", "again") == 0
    assert "again)" in capsys.readouterr().out


def test_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("spaces") == 0
    assert "resnet_small" in capsys.readouterr().out
    assert call("spaces", "resnet_small") == 0
    out = capsys.readouterr().out
    assert "stem_width" in out
    assert "8 to 32, step 8" in out
    assert "architectures: " in out
    assert "example: activation=" in out
    assert "  conv 3x3" in out
    assert "bytes of activations" in out
    assert call("spaces", "./my_space.py:MySpace", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["parameters"] == {"slope": "0 to 99", "width": "2 to 8"}
    assert card["architectures"] == 700
    assert card["smallest"]["parameters"] == 2 * 28 + 2 * 10 + 10


def test_measure_a_torchvision_model(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "digits", "--samples", "8", "--image-size", "32"]
    assert call("measure", "torchvision:resnet18", *options) == 0
    out = capsys.readouterr().out
    assert "layer4.1.conv2" in out
    assert "hessian, 8 samples" in out
    assert "weights are random" in out
    assert call("measure", "torchvision:vgg11", *options) == 2
    assert "error: layer" in capsys.readouterr().err


def test_measure_every_layer_and_the_head(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "digits", "--samples", "4", "--image-size", "32"]
    assert call("measure", "torchvision:squeezenet1_1", *options, "--layers", "all") == 0
    out = capsys.readouterr().out
    assert "features.3.squeeze" in out
    assert "\u2588" * 24 in out  # the largest layer's bar
    assert "all of them" in out
    assert "noise loss" in out
    assert out.count("±") == 26 + 1 + 26 + 1 + 1  # twice a row, and in the explanation
    options += ["--json"]
    assert call("measure", "torchvision:resnet18", *options, "--layers", "head") == 0
    plain = json.loads(capsys.readouterr().out)
    assert call("measure", "torchvision:resnet18", *options, "--layers=fc", "--normalize") == 0
    normalised = json.loads(capsys.readouterr().out)
    assert list(plain["layers"]) == list(normalised["layers"]) == ["fc"]
    assert (plain["normalize"], normalised["normalize"]) == (None, "input")
    assert plain["relative_flatness"] != normalised["relative_flatness"]
    options[options.index("4")] = "1"
    assert call("measure", "torchvision:resnet18", *options) == 0
    assert json.loads(capsys.readouterr().out)["standard_error"] is None


def test_measure_a_state_dictionary(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    model = torchvision.models.resnet18(num_classes=10)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, "weights.pth")
    options = ["--data", "digits", "--samples", "8", "--image-size", "32", "--json"]
    assert call("measure", "torchvision:resnet18", "--weights", "weights.pth", *options) == 0
    measured = json.loads(capsys.readouterr().out)
    data = load_data("digits", image_size=32, probe_size=8)
    x, y = data.probe.tensors()
    expected = relative_flatness(model, (x.expand(-1, 3, -1, -1), y))
    assert measured["relative_flatness"] == pytest.approx(expected.relative_flatness, rel=1e-4)
    assert call("measure", "torchvision:resnet34", "--weights", "weights.pth", *options) == 2
    assert "holds other weights than those of resnet34" in capsys.readouterr().err
    assert call("measure", "weights.pth", *options) == 2
    assert "torchvision:NAME --weights FILE" in capsys.readouterr().err
    assert call("measure", "weights.pth", "--weights", "DEFAULT", *options) == 2
    assert "--weights is for torchvision:NAME" in capsys.readouterr().err


class Exported(nn.Module):
    """String padding, groups, and a kernel that is also used as a function."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding="same")
        self.twice = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, bias=False)
        self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(F.relu(self.stem(x)))
        x = F.relu(F.conv2d(x, self.twice.weight))
        return self.fc(F.relu(self.norm(self.last(x)), inplace=True).mean((2, 3)))


def export(model: nn.Module, file: str, batch: object = None) -> None:
    x = torch.randn(2, 1, 8, 8)
    dynamic = ({0: torch.export.Dim("n")},) if batch is None else None
    torch.export.save(torch.export.export(model.eval(), (x,), dynamic_shapes=dynamic), file)


def test_measure_an_exported_program(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = Exported()
    export(model, "model.pt2")
    options = ["--data", "digits", "--samples", "8", "--json"]
    assert call("measure", "model.pt2", *options, "--layers", "last") == 0
    last = json.loads(capsys.readouterr().out)
    data = load_data("digits", probe_size=8).probe.tensors()
    expected = relative_flatness(model, data)
    assert list(last["layers"]) == ["last"]
    assert last["kind"] == expected.kind == "hessian"
    assert last["relative_flatness"] == pytest.approx(expected.relative_flatness, rel=1e-4)
    assert call("measure", "model.pt2", *options, "--layers", "stem,fc") == 0
    measured = json.loads(capsys.readouterr().out)
    expected = relative_flatness(model, data, layers=["stem", "fc"])
    assert list(measured["layers"]) == ["stem", "fc"]
    assert measured["relative_flatness"] == pytest.approx(expected.relative_flatness, rel=1e-4)


def test_exported_programs_that_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(file: str, message: str) -> None:
        assert call("measure", file, "--data", "digits", "--samples", "8") == 2
        assert message in capsys.readouterr().err

    fails("nothing.pt2", "does not exist")
    Path("damaged.pt2").write_bytes(b"PK nothing")
    fails("damaged.pt2", "is not a program saved by torch.export.save")
    export(Exported(), "fixed.pt2", batch=2)
    fails("fixed.pt2", "takes batches of exactly 2")
    export(Exported(classes=3), "few.pt2")
    fails("few.pt2", "has 3 classes, but the data have 10")


def test_help_explains_the_default_pruner(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: flatness). flatness ends a trial that will hardly be among the best" in text
    assert "learnt from this study's own finished trials" in text


WRONG = {
    "unknown space": (["run", "--space", "resnet_smal"], "did you mean 'resnet_small'?); known:"),
    "no such file": (["run", "--space", "./none.py:X"], "'./none.py' does not exist"),
    "no such class": (["run", "--space", "./my_space.py:Nope"], "has no attribute 'Nope'"),
    "unknown data": (["run", "--space", "resnet_small", "--data", "cifar"], "'cifar10'?); known"),
    "folder without images": (["run", "--space", "resnet_small", "--data", "."], "per class"),
    "zero trials": (["run", "--space", "resnet_small", "--trials", "0"], "at least 1 but got 0"),
    "zero epochs": (["run", "--space", "resnet_small", "--epochs", "0"], "`epochs` must be at"),
    "word for a number": (["run", "--space", "resnet_small", "--trials", "ten"], "invalid int"),
    "unknown sampler": (["run", "--space", "resnet_small", "--sampler", "x"], "known: gp, nsga2"),
    "unknown pruner": (["run", "--space", "resnet_small", "--pruner", "x"], "known: asha"),
    "unknown objective": (["run", "--space", "resnet_small", "--objectives", "x"], "known: acc"),
    "unknown device": (["run", "--space", "resnet_small", "--device", "tpu9"], "not available"),
    "no space": (["run"], "--space"),
    "unknown command": (["serch"], "invalid choice"),
    "unknown option": (["run", "--space", "resnet_small", "--nonsense"], "--nonsense"),
    "storage out of reach": (
        ["run", "--space", "resnet_small", "--storage", "sqlite:////no/s.db"], "unable to open",
    ),
    "no storage": (["report"], "'sqlite:///flatsearch.db' does not exist"),
    "unknown model": (["measure", "torchvision:resnet19", "--data", "digits"], "'resnet18'"),
    "no model file": (["measure", "nothing.pt", "--data", "digits"], "does not exist"),
    "no workers": (["run", "--space", "resnet_small", "--workers", "0"], "at least 1 but got 0"),
    "unknown prune mode": (["run", "--space", "resnet_small", "--prune-mode", "x"], "known: auto"),
    "unknown prune metric": (
        ["run", "--space", "resnet_small", "--pruner", "median", "--prune-on", "x"], "known: acc",
    ),
    "no count": (["run", "--space", "resnet_small", "--max-params", "many"], "such as 200k"),
    "no time": (["run", "--space", "resnet_small", "--max-latency", "2 days"], "such as 2ms"),
    "measure no batch": (
        ["measure", "torchvision:resnet18", "--data", "digits", "--batch-size", "0"],
        "--batch-size must be at least 1",
    ),
    "measure without data": (["measure", "torchvision:resnet18"], "--data"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_use_is_one_line_and_2(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG[what]
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("flatsearch-artifacts").exists()


def test_other_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    capsys.readouterr()
    assert run("--lr", "0.2") == 2
    err = capsys.readouterr().err
    assert "lr=0.1 (not 0.2)" in err
    assert len(err.strip().splitlines()) == 1


def test_report_of_an_unknown_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    capsys.readouterr()
    assert call("report", "MySpace-digit") == 2
    assert "did you mean 'MySpace-digits'" in capsys.readouterr().err


def test_a_broken_space_is_named_before_any_training(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    (empty_folder / "my_space.py").write_text(
        SPACE_FILE.replace("width, num_classes)", "width, 3)")
    )
    assert run() == 2
    err = capsys.readouterr().err
    assert "MySpace.build must return a model with logits of shape (N, 10)" in err
    assert call("report") == 2  # no study was made


def test_failures_are_one_line_unless_debugging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr("flatsearch.search.loop.run_study", fail)
    assert run() == 1
    assert "error: RuntimeError: the disk is full" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        run("--debug")


def test_ctrl_c_keeps_finished_trials(empty_folder: Path) -> None:
    command = [sys.executable, "-m", "flatsearch", "run", "--space", "./my_space.py:MySpace"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--trials", "5000", "--epochs", "1", "--min-accuracy", "0"],
        cwd=empty_folder, env=environment, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if "trial 2 complete" in line:
                break
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (seen, err)
    assert "interrupted; finished trials are kept" in err
    assert "Traceback" not in err
    assert "Pareto front" in out
    study = optuna.load_study(study_name="MySpace-digits", storage="sqlite:///flatsearch.db")
    counted = [t.state.name for t in study.trials]
    assert counted.count("COMPLETE") >= 3
    assert "RUNNING" not in counted


def test_the_dashboard_shows_the_study(capsys: pytest.CaptureFixture[str]) -> None:
    from optuna_dashboard import wsgi

    assert run() == 0
    application = wsgi(optuna.storages.RDBStorage("sqlite:///flatsearch.db"))

    def get(path: str) -> dict[str, object]:
        answer: list[str] = []
        environ: dict[str, object] = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        body = b"".join(application(environ, lambda status, *_: answer.append(status)))
        assert answer[0].startswith("200"), answer
        fields: dict[str, object] = json.loads(body)
        return fields

    studies = get("/api/studies")["study_summaries"]
    (summary,) = studies  # type: ignore[misc]
    assert summary["study_name"] == "MySpace-digits"
    detail = get(f"/api/studies/{summary['study_id']}")
    assert detail["objective_names"] == ["accuracy", "flatness"]
    assert len(detail["trials"]) == 2  # type: ignore[arg-type]


def test_an_edited_space_file_is_another_space(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert run() == 0
    other = ["run", "--space", str(empty_folder / "my_space.py") + ":MySpace", *QUICK]
    assert call(*other, "--min-accuracy", "0") == 0  # another way to write the same file
    (empty_folder / "my_space.py").write_text(SPACE_FILE.replace("2, 8", "2, 16"))
    capsys.readouterr()
    assert run() == 2
    assert "exists with other settings: space_file=" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["my_space.py", "my_space.py/inside"])
def test_artifacts_that_cannot_be_kept(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--artifacts", place) == 2
    assert "is not a folder that can be written to" in capsys.readouterr().err
    assert not Path("flatsearch.db").exists()


def test_no_artifacts_when_not_wanted() -> None:
    assert run("--artifacts", "none") == 0
    assert not Path("flatsearch-artifacts").exists()


def test_a_run_without_a_complete_trial_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--lr", "1e30") == 1
    assert "no trial completed; the last one: training diverged" in capsys.readouterr().err


def test_a_space_file_without_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--space", "./my_space.py") == 2
    assert "name the class too: ./my_space.py:ClassName" in capsys.readouterr().err


def test_several_workers_one_of_them_killed(empty_folder: Path) -> None:
    command = [
        sys.executable, "-m", "flatsearch", "run", "--space", "./my_space.py:MySpace",
        "--epochs", "40", "--trials", "8", "--workers", "2", "--min-accuracy", "0",
        "--pruner", "none",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=empty_folder, env=environment, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "complete" in line:
                break
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        children[0].kill()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "was killed by signal 9; starting another" in err
    assert "Pareto front" in out
    study = optuna.load_study(study_name=None, storage="sqlite:///flatsearch.db")
    finished = [t for t in study.trials if record.TrialRecord(t).finished]
    assert len(finished) == 8
    # The killed worker's trial was failed at once, not by its heartbeat five minutes later.
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "FAIL"}
    assert len({record.TrialRecord(t).worker for t in finished}) >= 2


def test_a_worker_takes_everything_from_the_study(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert run("--objectives", "accuracy", "--pruner", "median", "--trials", "1") == 0
    study = optuna.load_study(study_name=None, storage="sqlite:///flatsearch.db")
    stored = record.StudyRecord(study).run
    assert stored is not None
    record.write_study(study, run={**stored, "target": 3})  # as if the run were not at its end
    capsys.readouterr()
    assert call("worker") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count(" complete: accuracy") == 2
    study = optuna.load_study(study_name=None, storage="sqlite:///flatsearch.db")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert call("worker") == 0  # nothing left to do
    assert len(study.get_trials()) == 3


def test_workers_that_cannot_join(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("worker", "none") == 2
    assert "does not exist" in capsys.readouterr().err
    optuna.create_study(study_name="other", storage="sqlite:///flatsearch.db")
    assert call("worker", "other") == 2
    assert "has not been run by flatsearch" in capsys.readouterr().err
    assert run("--trials", "1") == 0
    image_folder(Path("photos"))
    capsys.readouterr()
    assert call("worker", "MySpace-digits", "--data", "photos") == 2
    assert "data=digits (not photos)" in capsys.readouterr().err
