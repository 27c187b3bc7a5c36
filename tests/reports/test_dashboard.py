"""What is written for optuna-dashboard, and the dashboard itself in a real browser."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from PIL import Image

import flatsearch
from flatsearch import FlatnessObjective, RunSettings, mark_pruned, record
from flatsearch.analysis.summary import summarise
from flatsearch.cli import main
from flatsearch.record.constraints import HAS_NAMED
from flatsearch.reports import dashboard
from flatsearch.reports.dashboard import Publisher, publish
from flatsearch.search import objective as module
from flatsearch.search import pictures
from flatsearch.search.constraints import list_constraints
from flatsearch.search.factories import make_sampler
from flatsearch.search.storage import open_storage
from flatsearch.search.study import load_study
from tests import fakes
from tests.cases import add, small_study, study_of
from tests.fakes import Tiny
from tests.programs import Program, started

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

    from flatsearch.data.splits import ImageData

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SEARCH = ["run", "--space", f"{fakes.__file__}:Tiny", "--study", "mine", "--device", "cpu"]
SEARCH += ["--epochs", "2", "--trials", "4", "--pruner", "none", "--min-accuracy", "0"]
SEARCH += ["--probe-size", "32", "--layers", "last"]


def served(study: optuna.Study) -> dict[str, Any]:
    """Return what the dashboard's server tells the browser of a study."""
    environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{study._study_id}"}
    setup_testing_defaults(environ)
    app = optuna_dashboard.wsgi(study._storage)
    return json.loads(b"".join(app(environ, lambda *_: None)))


def note_of(study: optuna.Study, number: int) -> str:
    return next(t["note"]["body"] for t in served(study)["trials"] if t["number"] == number)


def test_notes_and_figures_are_served() -> None:
    study = small_study()
    record.write_study(study, settings={"space": "toys", "data": "digits", "epochs": 2})
    publish(study, summarise(study))
    found = served(study)
    note = found["note"]["body"]
    assert note.startswith("### flatsearch: made\n")
    assert "Search space toys on digits, 2 epochs per trial." in note
    assert "| 0 | 0.900 | 40 | 3 |" in note
    assert "- Pruning stopped 2 trials and saved 2 of 12 epochs (17%)." in note
    assert "| epochs | 2 |" in note
    graphs = {graph["id"]: graph["graph_object"] for graph in found["plotly_graph_objects"]}
    assert set(graphs) == {
        "flatsearch-front",
        "flatsearch-epochs",
        "flatsearch-budget",
        "flatsearch-gap",
    }
    front = json.loads(graphs["flatsearch-front"])["data"][-1]
    assert (front["x"], front["y"]) == ([1.0, 40.0], [0.6, 0.9])
    assert "### flatsearch: on the Pareto front" in note_of(study, 0)
    assert "`flatsearch train made --trial 0`" in note_of(study, 0)
    assert note_of(study, 2) == ""
    assert "### flatsearch: pruned\n\nBy the pruner" in note_of(study, 3)
    assert "keeps not all constraints" in note_of(study, 5).replace("Keeps", "keeps")


def test_a_shorter_figure_replaces_a_longer_one() -> None:
    study = study_of("accuracy", "flatness")
    for i in range(200):
        add(study, [(i / 200, 1.0 + i)])
    publish(study, summarise(study))
    few = study_of("accuracy", "flatness")
    add(few, [(0.5, 1.0)])
    publish(study, summarise(few))
    graphs = {g["id"]: g["graph_object"] for g in served(study)["plotly_graph_objects"]}
    assert json.loads(graphs["flatsearch-front"])["data"][0]["x"] == [1.0]


def test_a_trial_that_leaves_the_front_is_told_so() -> None:
    study = small_study()
    publish(study, summarise(study))
    add(study, [(0.95, 0.01)])  # better than all
    publish(study, summarise(study))
    assert "### flatsearch: no longer on the Pareto front" in note_of(study, 0)
    assert "### flatsearch: on the Pareto front" in note_of(study, 6)


def test_the_notes_of_trials_say_what_the_front_says() -> None:
    """Also when a better trial has come since they ended."""
    study = study_of("accuracy", "flatness")
    record.write_study(study, least=record.LeastAccuracy(0.1))
    for accuracy in (0.3, 0.5, 0.98):
        add(study, [(accuracy, 1 / accuracy)])
        publish(study, summarise(study))
    limit = "accuracy below 0.892"
    assert "below an accuracy of 0.892" in served(study)["note"]["body"]
    assert all(limit in note_of(study, number) for number in (0, 1))


def test_what_users_write_is_kept() -> None:
    study = small_study()
    optuna_dashboard.save_note(study, "my own words")
    publish(study, summarise(study))
    assert served(study)["note"]["body"].startswith("my own words\n\n### flatsearch: made\n")
    text = served(study)["note"]["body"].replace("my own", "my new")
    optuna_dashboard.save_note(study, text)
    add(study, [(0.95, 0.01)])
    publish(study, summarise(study))
    now = served(study)["note"]["body"]
    assert now.startswith("my new words\n\n### flatsearch: made\n")
    assert now.count("### flatsearch") == 1
    assert "| 6 | 0.950 | 0.01 | 3 |" in now


def test_names_cannot_break_the_tables() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0)], words="a|b\n<img src=x>")
    publish(study, summarise(study))
    assert r"| 0 | 0.500 | 1 | a\|b \<img src=x\> |" in served(study)["note"]["body"]


def test_a_search_is_published_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = [100.0], []
    monkeypatch.setattr("flatsearch.reports.dashboard.time.monotonic", lambda: clock[0])

    def slow(*_: object) -> None:
        times.append(clock[0])
        clock[0] += 4.0

    monkeypatch.setattr(dashboard, "publish", slow)
    said: list[str] = []
    publisher = Publisher(said.append)
    study = small_study()
    for _ in range(20):
        publisher.trial(study)
        clock[0] += 10.0
    # First after 30 seconds; then not again before 20 times what it took.
    assert times == [130.0, 214.0, 298.0]
    publisher.now(study)
    assert len(times) == 4
    assert said == []


def test_what_goes_wrong_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(*_: object) -> None:
        calls.append(1)
        raise OSError("database\nis locked")

    monkeypatch.setattr(dashboard, "publish", broken)
    said: list[str] = []
    publisher = Publisher(said.append, seconds=0)
    for _ in range(3):
        publisher.now(small_study())
    assert len(calls) == 3  # a hiccup is none the next time
    assert said == ["could not write notes and figures for the dashboard: database is locked"]


def test_without_the_package_a_search_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "is_available", lambda: False)
    said: list[str] = []
    study = small_study()
    Publisher(said.append).now(study)
    assert said == []
    assert served(study)["note"]["body"] == ""


@pytest.fixture(scope="session")
def digits(few_digits: ImageData) -> ImageData:
    return few_digits


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study, as a user's."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(SEARCH) == 0
    return folder


def test_a_search_publishes_at_its_end(searched: Path) -> None:
    study = load_study("mine", open_storage(f"sqlite:///{searched}/flatsearch.db"))
    found = served(study)
    assert found["objective_names"] == ["accuracy", "flatness"]
    assert "4 complete" in found["note"]["body"]
    assert len(found["plotly_graph_objects"]) == 3
    best = summarise(study).front[0]
    names = [a["filename"] for t in found["trials"] if t["number"] == best for a in t["artifacts"]]
    assert sorted(names) == ["architecture.json", "curves.png", "network.png", f"trial-{best}.pt"]


@pytest.fixture(scope="module")
def server(searched: Path) -> tuple[Program, str]:
    """`flatsearch dashboard` as a process, and the address; the last test with it ends it."""
    storage = f"sqlite:///{searched}/flatsearch.db"
    files = str(searched / "flatsearch-artifacts")
    options = ("--port", "0", "--storage", storage, "--artifacts", files)
    program = started("dashboard", "mine", *options)
    return program, program.out.readline().strip()


def test_from_the_list_to_an_artifact(
    browser: Browser, server: tuple[Program, str], searched: Path
) -> None:
    _, address = server
    study = load_study("mine", open_storage(f"sqlite:///{searched}/flatsearch.db"))
    summary = summarise(study)
    best = summary.trial(summary.front[0])
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(address.split("/studies")[0])
    page.get_by_text("mine", exact=False).first.click()
    # The front with the names of its objectives, and our figures.
    page.get_by_text("Pareto Front").first.wait_for()
    page.get_by_text("Objective X").first.wait_for()
    for name in ("accuracy", "flatness"):
        page.locator(".MuiSelect-select", has_text=name).first.wait_for()
    for name in ("front", "epochs", "gap"):
        figure = page.locator(f"[id='user-defined-plot:flatsearch-{name}']")
        figure.locator(".main-svg .trace").first.wait_for(state="attached")
    drawn = page.locator("[id='user-defined-plot:flatsearch-front'] .scatterlayer .point")
    drawn.nth(3).wait_for(state="attached")
    assert drawn.count() == 4
    # The study's note.
    page.locator("a[href$='/note']").click()
    page.get_by_role("heading", name="flatsearch: mine").wait_for()
    page.get_by_text("fakes.py:Tiny on digits, 2 epochs").wait_for()
    # A trial of the front: its note, its pictures, its architecture.
    page.locator("a[href$='/trials']").click()
    page.get_by_text(f"Trial {best.number}", exact=True).first.click()
    page.get_by_role("heading", name="flatsearch: on the Pareto front").wait_for()
    page.get_by_text("flatsearch:step:0", exact=False).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 1400
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.querySelector('main').getBoundingClientRect().right") <= 390
    images = page.locator("img[src*='/artifacts/']")
    images.nth(1).wait_for()
    loaded = "i => i.complete && i.naturalWidth > 500"
    page.wait_for_function(
        f"[...document.querySelectorAll('img[src*=\"/artifacts/\"]')].every({loaded})"
    )
    assert images.count() == 2
    card = page.locator(".MuiCard-root", has_text="architecture.json").last
    with page.expect_download() as download:
        card.locator("a[download], [aria-label*='ownload']").first.click()
    content = json.loads(download.value.path().read_text())
    assert best.architecture is not None
    assert content == json.loads(best.architecture.to_json())
    page.close()


def test_ctrl_c_ends_the_server_in_a_line(server: tuple[Program, str]) -> None:
    program, address = server
    assert address.endswith("/dashboard/studies/1")
    code, _, errors = program.end(signal.SIGINT)
    assert code == 130
    assert errors == "flatsearch: interrupted; the dashboard has stopped\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line that a command ends with."""
    assert main(["dashboard", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flatsearch dashboard: error: ")
    assert error.count("\n") == 1
    return error


def test_what_is_refused(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(searched)
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = refused(capsys, "--port", port)
    assert f"cannot listen on localhost:{port}: Address already in use" in message
    assert "--port must be at least 0 and below 65536 but got 70000" in refused(
        capsys, "--port", "70000"
    )
    assert "'nowhere' is not a folder" in refused(capsys, "--artifacts", "nowhere")
    assert "does not exist" in refused(capsys, "--storage", "sqlite:///nothing.db")
    assert "unknown study 'yours'" in refused(capsys, "yours")
    monkeypatch.setattr(dashboard, "is_available", lambda: False)
    assert "pip install 'flatsearch[dashboard]'" in refused(capsys)


def artifacts(study: optuna.Study, number: int) -> dict[str, str]:
    """Return a trial's files by name."""
    trial = study.trials[number]
    found = optuna.artifacts.get_all_artifact_meta(trial, storage=study._storage)
    return {meta.filename: meta.artifact_id for meta in found}


ALL = {"architecture.json", "network.png", "curves.png"}


def search(
    digits: ImageData, folder: Path, n_trials: int, objectives: list[str], **options: Any
) -> optuna.Study:
    store = optuna.artifacts.FileSystemArtifactStore(folder)
    objective = FlatnessObjective(
        Tiny(),
        digits,
        objectives=objectives,
        epochs=1,
        settings=RunSettings(min_accuracy=0.0),
        artifact_store=store,
        device="cpu",
        **options,
    )
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(objective, n_trials=n_trials)
    return study


def test_a_trial_that_is_the_best_so_far_has_pictures(digits: ImageData, tmp_path: Path) -> None:
    study = search(digits, tmp_path, 6, ["flatness"])
    best, notable = math.inf, []
    for trial in study.trials:
        files = set(artifacts(study, trial.number))
        if record.TrialRecord(trial).duplicate:
            assert not files
            continue
        better = trial.values[0] <= best
        best = min(best, trial.values[0])
        notable.append(better)
        assert files == {f"trial-{trial.number}.pt"} | (ALL if better else set())
    assert True in notable
    assert False in notable
    first = artifacts(study, 0)
    for name in ("network.png", "curves.png"):
        with Image.open(tmp_path / first[name]) as picture:
            assert picture.width > 500
            assert len(picture.convert("L").getcolors() or []) > 5  # something is drawn
    text = (tmp_path / first["architecture.json"]).read_text()
    assert (
        flatsearch.Architecture.from_json(text) == record.TrialRecord(study.trials[0]).architecture
    )


def test_an_infeasible_trial_has_no_pictures(digits: ImageData, tmp_path: Path) -> None:
    objective = FlatnessObjective(
        Tiny(),
        digits,
        epochs=1,
        settings=RunSettings(min_accuracy=0.99),
        device="cpu",
        artifact_store=optuna.artifacts.FileSystemArtifactStore(tmp_path),
    )
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(objective, n_trials=1)
    assert set(artifacts(study, 0)) == {"trial-0.pt"}


@pytest.mark.parametrize("missing", [True, False])
def test_pictures_that_cannot_be_made_cost_no_trial(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("no such dimension")

    if missing:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert not pictures.is_available()
        study = search(digits, tmp_path, 1, ["accuracy"])
    else:
        monkeypatch.setattr(pictures, "draw_network", broken)
        with pytest.warns(UserWarning, match="could not be drawn: IndexError"):
            study = search(digits, tmp_path, 1, ["accuracy"])
    assert study.trials[0].state.name == "COMPLETE"
    assert set(artifacts(study, 0)) == {"trial-0.pt", "architecture.json"}


def constraints(study: optuna.Study) -> list[list[float]]:
    return [trial["constraints"] for trial in served(study)["trials"]]


def test_the_dashboard_is_told_the_constraints(digits: ImageData) -> None:
    objective = FlatnessObjective(
        Tiny(), digits, epochs=1, settings=RunSettings(min_accuracy=0.99, max_parameters=60)
    )
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(objective, n_trials=8)
    inside = next(t for t in map(record.TrialRecord, study.trials) if not t.over_limit)
    study.enqueue_trial(dict(inside.params))
    study.optimize(objective, n_trials=1)
    assert any(record.TrialRecord(trial).over_limit for trial in study.trials)
    assert any(record.TrialRecord(trial).duplicate for trial in study.trials)
    for trial, told in zip(study.trials, constraints(study), strict=True):
        if trial.state.name == "FAIL":
            continue
        both = record.read_constraints(trial)
        own = {k: v for k, v in both.items() if k.startswith("flatsearch:")}
        assert told == [own[name] for name in sorted(own)]
        assert told
        assert max(told) > 0
        # Once: the list of the list would be twice as long.
        assert len(both) == 2 * len(told)


TWICE = pytest.mark.skipif(not HAS_NAMED, reason="Optuna 4 reads the list alone")


@TWICE
@pytest.mark.parametrize("first", ["random", "gp", "random, by an earlier version"])
def test_a_study_keeps_the_number_of_its_constraints(digits: ImageData, first: str) -> None:
    """GP refuses a study whose trials have different numbers of them."""
    objective = FlatnessObjective(Tiny(), digits, epochs=1)
    gp = optuna.samplers.GPSampler(n_startup_trials=2, seed=0)
    study = optuna.create_study(
        directions=objective.directions,
        sampler=gp if first == "gp" else optuna.samplers.RandomSampler(seed=0),
    )
    with pytest.MonkeyPatch.context() as patch:
        if "earlier" in first:
            patch.setattr(module, "list_constraints", lambda trial: None)
        study.optimize(objective, n_trials=2)
    study.sampler = gp
    study.optimize(objective, n_trials=3)
    assert [len(told) for told in constraints(study)] == [int(first == "random")] * 5


@TWICE
@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_propose_the_same_with_the_constraints_told_twice(sampler: str) -> None:
    def proposals(mirrored: bool) -> list[dict[str, float]]:
        study = optuna.create_study(
            directions=["minimize", "minimize"], sampler=make_sampler(sampler, 0)
        )

        def objective(trial: optuna.Trial) -> tuple[float, float]:
            x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
            mark_pruned(trial, pruned=x > 0.7)
            record.write_constraints(trial, {"flatsearch:min_accuracy": 0.3 - y})
            if mirrored:
                list_constraints(trial)
            return x - y, y

        study.optimize(objective, n_trials=50)
        assert any(constraints(study)) == mirrored
        return [trial.params for trial in study.trials]

    assert proposals(mirrored=True) == proposals(mirrored=False)


@pytest.mark.skipif(os.name == "nt", reason="a folder's permissions are others there")
def test_a_search_outlives_a_dashboard_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(dashboard, "publish", broken)
    assert main([*SEARCH, "--trials", "1", "--epochs", "1"]) == 0
    out, err = capsys.readouterr()
    line = "could not write notes and figures for the dashboard: no room"
    assert err.count(line) == 1
    assert "flatsearch dashboard mine" in out


@pytest.mark.parametrize(("index", "expected"), [("0", True), ("1", False), (None, False)])
def test_of_several_workers_one_publishes(
    searched: Path, monkeypatch: pytest.MonkeyPatch, index: str | None, expected: bool
) -> None:
    monkeypatch.chdir(searched)
    study = load_study("mine", open_storage("sqlite:///flatsearch.db"))
    run = record.StudyRecord(study).run or {}
    record.write_study(study, run={**run, "target": len(study.trials) + 1})
    asked: list[int] = []
    monkeypatch.setattr(Publisher, "trial", lambda self, study: asked.append(1))
    options = [] if index is None else ["--index", index]
    assert main(["worker", "mine", "--device", "cpu", *options]) == 0
    assert bool(asked) == expected
