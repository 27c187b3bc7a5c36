"""`flatsearch run`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from flatsearch import ImageData, load_data, record
from flatsearch.cli import main
from flatsearch.cli.run import _share as share
from tests.fakes import Done, call
from tests.programs import Program

SPACE = ("--space", "./my_space.py:MySpace")
# One epoch of one layer is hardly better than guessing.
QUICK = ("--epochs", "1", "--trials", "2", "--device", "cpu", "--min-accuracy", "0")
QUICK += ("--probe-size", "32")
URL = "sqlite:///flatsearch.db"


def run(*arguments: str, code: int = 0) -> Done:
    return call("run", *SPACE, *QUICK, *arguments, code=code)


def ran(*arguments: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(run(*arguments, "--json").out)
    return fields


def stored(name: str | None = None, storage: str = URL) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=storage)


def change(old: str, new: str) -> None:
    """Change the search space."""
    file = Path("my_space.py")
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_from_nothing_to_a_front_and_on() -> None:
    options = ["run", "--space", "resnet_small", "--epochs", "1", "--device", "cpu"]
    options += ["--probe-size", "32"]
    out, err = call(*options, "--trials", "2")
    assert "new study 'resnet_small-digits': trials to go: 2" in err
    assert "best accuracy" in err
    assert "Pareto front" in out
    assert "flatsearch report resnet_small-digits" in out
    err = call(*options, "--trials", "1").err
    assert "resuming study 'resnet_small-digits' (finished trials: 2)" in err
    study = stored()
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert study.metric_names == ["accuracy", "flatness"]
    assert all(t.user_attrs["flatness"] == t.values[1] for t in study.trials)
    assert "3 complete" in call("report").out


def test_the_default_budget_is_a_total(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatsearch.search.session.DEFAULT_TRIALS", 3)
    options = ["run", *SPACE, "--epochs", "1", "--min-accuracy", "0", "--probe-size", "32"]
    assert "trials to go: 1" in call(*options).err
    assert "nothing to do; --trials N adds more" in call(*options).err
    assert len(stored("MySpace-digits").trials) == 3


def test_json_is_one_object_and_nothing_else() -> None:
    fields = ran()
    assert fields["counts"] == {"COMPLETE": 2}
    assert {"accuracy", "flatness"} == set(fields["trials"][0]["values"])
    assert fields["trials"][0]["epochs"][0]["epoch"] == 1
    assert json.loads(call("report", "MySpace-digits", "--json").out)["trials"] == fields["trials"]
    model = Path("flatsearch-artifacts") / fields["trials"][0]["model"]
    done = call("measure", str(model), "--data", "digits", "--samples", "32", "--json")
    measured = json.loads(done.out)
    recorded = fields["trials"][0]["values"]["flatness"]
    assert measured["relative_flatness"] == pytest.approx(recorded, rel=1e-3)
    assert measured["kind"] == "hessian"
    assert list(measured["layers"]) == ["features.0"]


def test_the_same_seed_gives_the_same_study() -> None:
    results = []
    for storage, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        trials = ran("--seed", seed, "--storage", f"sqlite:///{storage}.db")["trials"]
        for trial in trials:
            del trial["seconds"], trial["model"]
            for epoch in trial["epochs"]:
                del epoch["train_seconds"]
        results.append(trials)
    assert results[0] == results[1]
    assert results[0] != results[2]


def image_folder(folder: Path, count: int = 60) -> Path:
    bunch = load_digits(n_class=3)
    for index in range(count):
        place = folder / f"class{bunch.target[index]}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = (bunch.images[index] * 15).astype("uint8")
        suffix = "png" if index % 2 else "jpg"
        Image.fromarray(pixels).save(place / f"{index}.{suffix}")
    return folder


def test_an_image_folder() -> None:
    image_folder(Path("photos"))
    out, err = run("--data", "photos")
    assert "new study 'MySpace-photos'" in err
    assert "3 classes" in err
    assert "Pareto front" in out


LIMITS = ("--objectives", "accuracy,latency", "--max-params", "0.1k", "--max-latency", "1s")


def test_candidates_over_a_limit_are_not_trained_and_do_not_count() -> None:
    fields = ran(*LIMITS, "--trials", "3")
    # a width of w, 2 to 8, has 20 w + 10 parameters (three draws of it repeat no slope)
    assert fields["counts"]["COMPLETE"] == 3
    assert "PRUNED" not in fields["counts"]
    assert fields["counts"]["OVER LIMIT"] >= 1
    assert all(trial["values"]["latency"] > 0 for trial in fields["trials"] if trial["values"])
    trials = stored("MySpace-digits").trials
    over = [t for t in trials if t.user_attrs["parameters"] > 100]
    assert over  # the seed's draws
    for trial in trials:
        assert (trial.state.name == "PRUNED") == (trial in over)
        assert ("flatsearch:step:0" in trial.user_attrs) == (trial not in over)
    assert "over the limit: " in record.TrialRecord(over[0]).failure
    # Other limits: another study.
    assert "max_parameters=100" in run("--objectives", "accuracy,latency", code=2).err


def test_a_space_without_a_candidate_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatsearch.search.tally._MOST_IDLE", 8)
    err = run("--max-params", "10", code=1).err
    assert "8 candidates in a row are over the limits (parameters 10)" in err


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
        "conv = nn.Conv2d(in_channels, width, 3, padding=1)",
        "conv = nn.Conv2d(in_channels, widht, 3, padding=1)",
        "MySpace.build failed: NameError: name 'widht' is not defined",
    ),
    "an exception in suggest": (
        'trial.suggest_int("width", 2, 8)',
        'trial.suggest_int("width", 2, int("eight"))',
        "MySpace.suggest failed: ValueError: invalid literal for int() with base 10: 'eight'",
    ),
    "no architecture": (
        'Architecture("mine", {"width": width,',
        'dict(a={"width": width,',
        "MySpace.suggest must return an Architecture but returned {'a'",
    ),
    "fails on these images": (
        "conv = nn.Conv2d(in_channels, width, 3, padding=1)",
        "conv = nn.Conv2d(3, width, 3, padding=1)",
        "MySpace.build returned a model that fails on images of shape (1, 8, 8)",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_space_is_one_line_before_any_training(what: str) -> None:
    good, bad, message = BROKEN[what]
    change(good, bad)
    recipe = ["--tune-recipe"] if "recipe" in what else []
    out, err = run(*recipe, code=2)
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("flatsearch-artifacts").exists()
    # Nothing of it is in the storage either.
    assert optuna.get_all_study_names(URL) == []


def test_a_recipe_of_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")  # no line is broken
    for trial in ran("--tune-recipe")["trials"]:
        assert trial["recipe"]["lr"] == trial["params"]["recipe_lr"]
        assert trial["recipe"]["batch_size"] in {32, 64, 128, 256}
    assert "weight decay" in call("report").out
    assert "tune_recipe=True (not False)" in run(code=2).err


def test_a_space_that_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatsearch.search.tally._DUPLICATES_BEFORE_COUNTING", 5)
    change('"slope", 0, 99', '"slope", 0, 0')
    change('"width", 2, 8', '"width", 2, 3')
    out, err = run("--trials", "3", "--storage", "sqlite:///a.db")
    assert "flatsearch run: all 2 architectures of the space have been tried" in err
    assert err.count("not trained again") <= 4
    assert "Pareto front" in out
    study = stored("MySpace-digits", "sqlite:///a.db")
    assert sum("flatsearch:step:0" in t.user_attrs for t in study.trials) == 2
    assert "again)" in run("--duplicates", "retrain", "--trials", "3", "--study", "again").out


def test_parked_trials_go_on() -> None:
    options = ["run", *SPACE, "--epochs", "2", "--device", "cpu", "--pruner", "promote"]
    options += ["--objectives", "accuracy", "--layers", "last", "--probe-size", "32"]
    err = call(*options, "--trials", "3").err
    assert "trial 0 parked after epoch 1" in err
    assert "trial 3, which goes on with trial" in err
    assert "resuming" not in err
    fields = json.loads(call("report", "--json").out)
    assert fields["counts"] == {"COMPLETE": 1, "PARKED": 2, "PROMOTED": 1}
    first = fields["trials"][3]["goes_on_with"]
    assert f"goes on as trial {3}" in call("report").out
    assert [len(trial["epochs"]) for trial in fields["trials"]] == [1, 1, 1, 2]
    assert fields["trials"][first]["parked"] == 1
    assert "begun as" in call("report").out
    assert fields["pareto_front"] == [3]
    again = call(*options, "--trials", "1").err
    assert "resuming study 'MySpace-digits' (finished trials: 3)" in again


def test_a_run_that_was_cut_off_before_its_promotions_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flatsearch.search.session.DEFAULT_TRIALS", 6)
    options = ["run", *SPACE, "--epochs", "2", "--device", "cpu", "--pruner", "promote"]
    options += ["--objectives", "accuracy", "--layers", "last", "--probe-size", "32"]
    with monkeypatch.context() as cut:
        cut.setattr("flatsearch.search.parking.Parking.promote", lambda *_, **__: 0)
        assert "no trial completed" in call(*options, code=1).err

    def promoted() -> int:
        return sum(record.TrialRecord(t).promotion is not None for t in stored().trials)

    assert promoted() == 0
    assert "nothing to do" not in call(*options).err
    assert promoted() > 0
    assert "nothing to do" in call(*options).err


def test_a_study_goes_on_with_the_pruner_that_it_has() -> None:
    options = ["run", *SPACE, "--epochs", "1", "--device", "cpu", "--trials", "1"]

    def pruner(*given: str) -> tuple[str, str]:
        call(*options, *given)
        run = record.StudyRecord(stored()).run
        assert run is not None
        return run["pruner"], run["prune_on"]

    assert pruner("--pruner", "median", "--prune-on", "loss") == ("median", "loss")
    assert pruner() == ("median", "loss")
    assert pruner("--pruner", "none") == ("none", None)


def test_other_settings_are_refused(tiny: Path) -> None:
    err = run("--pruner", "none", "--lr", "0.2", code=2).err
    assert "lr=0.1 (not 0.2)" in err
    assert "or choose another --study" in err
    assert len(err.strip().splitlines()) == 1


def test_failures_are_one_line_unless_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr("flatsearch.search.session.run_study", fail)
    assert "error: RuntimeError: the disk is full" in run(code=1).err
    with pytest.raises(RuntimeError):
        run("--debug")


def test_an_edited_space_file_is_another_space(tiny: Path) -> None:
    elsewhere = f"{tiny / 'my_space.py'}:MySpace"  # another way to write the same file
    call("run", "--space", elsewhere, *QUICK, "--trials", "1")
    change("2, 8", "2, 16")
    said = "exists with other settings: the search space's file has been changed since; give"
    assert said in run(code=2).err


def test_a_start_that_fails_leaves_nothing_behind(empty_folder: Path) -> None:
    before = sorted(empty_folder.rglob("*"))
    done = call("run", "--space", "resnet_small", "--data", "./photos", "--json", code=2)
    assert "error: data './photos' does not exist" in done.err
    assert json.loads(done.out)["error"] == "data './photos' does not exist"
    err = call("run", "--space", "resnet_small", "--log-file", "no/folder.log", code=2).err
    assert "--log-file 'no/folder.log' is no file that can be written to" in err
    err = call("run", "--space", "resnet_small", "--study=-x", code=2).err
    assert "--study must not begin with '-'" in err
    assert sorted(empty_folder.rglob("*")) == before


@pytest.mark.parametrize("place", ["my_space.py", "my_space.py/inside", "/proc/x"])
def test_artifacts_that_cannot_be_kept(place: str) -> None:
    err = run("--artifacts", place, code=2).err
    assert f"--artifacts {place!r} is not a folder that can be written to" in err
    assert not Path("flatsearch.db").exists()


def test_no_artifacts_when_not_wanted() -> None:
    run("--artifacts", "none", "--trials", "1")
    assert not Path("flatsearch-artifacts").exists()


def test_without_a_complete_trial_it_says_why() -> None:
    err = run("--lr", "1e30", code=1).err
    assert "no trial completed; the last one: training diverged" in err


def test_the_dashboard_shows_the_study(tiny: Path) -> None:
    from optuna_dashboard import wsgi

    application = wsgi(optuna.storages.RDBStorage(URL))

    def get(path: str) -> dict[str, Any]:
        answer: list[str] = []
        environ: dict[str, object] = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        body = b"".join(application(environ, lambda status, *_: answer.append(status)))
        assert answer[0].startswith("200"), answer
        fields: dict[str, Any] = json.loads(body)
        return fields

    (summary,) = get("/api/studies")["study_summaries"]
    assert summary["study_name"] == "MySpace-digits"
    detail = get(f"/api/studies/{summary['study_id']}")
    assert detail["objective_names"] == ["accuracy", "flatness"]
    assert len(detail["trials"]) == 2


def search(*arguments: str) -> int:
    """Run a search whose pictures would take most of the time."""
    sys.modules["plotly"] = None  # type: ignore[assignment]
    options = ("--epochs", "1", "--min-accuracy", "0", "--probe-size", "32", "--artifacts", "none")
    return main(["run", *options, *arguments])


def test_ctrl_c_keeps_finished_trials() -> None:
    program = Program(search, "--space", "./my_space.py:MySpace", "--trials", "5000")
    program.until("trial 2 complete")
    time.sleep(0.05)
    code, out, err = program.end(signal.SIGINT)
    assert code == 130, err
    assert "interrupted; finished trials are kept" in err
    assert "Traceback" not in err
    assert "Pareto front" in out
    counted = [t.state.name for t in stored("MySpace-digits").trials]
    assert counted.count("COMPLETE") >= 3
    assert "RUNNING" not in counted


def test_several_workers_one_of_them_killed() -> None:
    # The space waits for the worker that takes the place of the killed one.
    options = ("--trials", "6", "--workers", "2", "--pruner", "none")
    program = Program(search, "--space", "./my_space.py:Waits", *options)
    program.until("complete")
    # Workers have sessions of their own; the others import for them and clean up after them.
    children = [
        child.pid
        for child in psutil.Process(program.pid).children(recursive=True)
        if os.getsid(child.pid) == child.pid
    ]
    assert len(children) == 2
    Path("unfinished").write_text(f"{program.pid} {children[0]} {children[1]}")
    Path("unfinished").rename("before")
    os.kill(children[0], signal.SIGKILL)
    code, out, err = program.end()
    assert code == 0, err
    assert "was killed by signal 9; starting another" in err
    assert "Pareto front" in out
    study = stored()
    finished = [t for t in study.trials if record.TrialRecord(t).finished]
    assert len(finished) == 6
    # The killed worker's trial was failed at once, not by its heartbeat five minutes later.
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "FAIL"}
    workers = {str(record.TrialRecord(t).worker).split(":")[1] for t in finished}
    assert len(workers) >= 2
    assert workers - set(Path("before").read_text().split())  # the one that took its place


def test_images_that_cannot_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(_: ImageData, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed\nwriting file")

    monkeypatch.setattr(ImageData, "save", save)
    said: list[str] = []
    progress: Any = SimpleNamespace(say=said.append)
    assert share(load_data("digits"), tmp_path, progress) is None
    assert said == [
        "every worker reads the images itself, as they cannot be shared: PytorchStreamWriter"
        " failed writing file"
    ]
    assert not (tmp_path / "images").exists()
