"""How long a search takes, said before and while it runs."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from flatsearch import HalvingPromoter, OneRungPromoter, record
from flatsearch.record.promotion import Promotion
from flatsearch.reports.plan import Plan
from flatsearch.reports.progress import Progress, ProgressConsole
from flatsearch.search.interrupts import Interrupted
from flatsearch.settings import RunOptions, RunSettings


def study_with(finished: int, running: int = 1) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for _ in range(finished):
        study.tell(study.ask(), (0.5, 1.0))
    for _ in range(running):
        study.ask()
    return study


def plan(study: optuna.Study, timeout: float | None = None) -> Plan:
    return Plan(study, 20, RunSettings(), 64, timeout)


def began(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trials have begun so long ago."""
    monkeypatch.setattr(optuna.Trial, "datetime_start", datetime.now() - timedelta(seconds=seconds))


@pytest.mark.parametrize("pruner", [OneRungPromoter(), HalvingPromoter()])
def test_nothing_is_said_where_only_promoted_trials_are_left(
    pruner: optuna.pruners.BasePruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with(20)
    study.pruner = pruner
    began(3.0, monkeypatch)
    trial = study.ask()
    assert plan(study).first_epoch(trial) == ""
    assert pruner.mean_epochs(8, 0) == pruner.mean_epochs(8, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("timeout", "running", "said"),
    [
        (None, 1, "20 trials at most 13 min"),
        (None, 2, "20 trials at most 6.7 min"),
        (3600, 1, "20 trials at most 13 min"),
        (
            404,
            1,
            "20 trials at most 13 min; `timeout` 6.7 min is enough for 10 trials, or for"
            " `epochs` 4, or for `image_size` 45 in place of 64",
        ),
        (40, 1, "`timeout` 40 s is enough for 1 trial, or for `image_size` 14 in place of"),
        (4, 1, "20 trials at most 13 min; `timeout` 4 s is not enough for one"),
    ],
)
def test_the_first_epoch_says_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, timeout: float | None, running: int, said: str
) -> None:
    study = study_with(0, running)
    planned = plan(study, timeout)
    planned._began -= timedelta(seconds=60)
    trial = optuna.Trial(study, 0)
    began(5.0, monkeypatch)
    text = planned.first_epoch(trial)
    assert text.startswith("plan: an epoch takes about 5 s, so a trial of 8 at most 40 s, and ")
    assert said in text
    assert text.endswith(said) or timeout == 40
    assert not planned.first_epoch(trial)  # once


def test_the_plan_knows_what_a_pruner_promotes(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_with(0)
    study.pruner = OneRungPromoter(promote=0.25)
    planned = plan(study, 205)
    planned._began -= timedelta(seconds=60)
    began(5.0, monkeypatch)
    text = planned.first_epoch(optuna.Trial(study, 0))
    # 20 (1 + 7 / 4) epochs of 5 s; of 5 epochs it is 20 (1 + 4 / 4) of them
    assert "a trial of 8 at most 40 s, and 20 trials about 4.6 min; `timeout` 3.4 min" in text
    assert "is enough for 14 trials, or for `epochs` 5, or for `image_size`" in text


def test_what_is_left_is_told_by_what_was_finished() -> None:
    study = study_with(3)
    planned = plan(study)
    assert planned.left() == ""
    planned._began -= timedelta(seconds=300)
    planned._clock -= 300
    assert planned.left() == "about 28 min left"  # 17 trials at 100 s
    planned._timeout = 600
    assert planned.left() == "about 5.0 min left"
    planned._target = 3
    assert planned.left() == ""


def test_what_is_left_counts_the_trials_that_go_on() -> None:
    """With a quarter of 20 trials of 8 epochs to the end, 20 of 55 epochs are little of it."""
    study = study_with(0, 0)
    study.pruner = OneRungPromoter(promote=0.25)
    planned = plan(study)
    planned._began -= timedelta(seconds=300)
    planned._clock -= 300
    for _ in range(20):
        trial = study.ask()
        record.write_step(trial, 0, {"accuracy": 0.5})
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert planned.left() == "about 8.8 min left"  # 35 epochs at 15 s
    for number in range(5):
        trial = study.ask()
        record.write_trial(trial, promotion=Promotion(number, 1, 8))
        for epoch in range(8):
            record.write_step(trial, epoch, {"accuracy": 0.5})
        study.tell(trial, (0.5, 1.0))
    assert planned.left() == ""


def test_times_have_units() -> None:
    known = RunOptions.settings()["timeout"].accepts
    assert [known.parse(text) for text in ("90", "30m", "1.5h", "20s")] == [90, 1800, 5400, 20]
    assert known.parse("soon") == "soon"


def test_a_reader_that_goes_away_ends_the_run_as_a_signal_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr("sys.stderr", file)
        progress = Progress(ProgressConsole(file=file), RunSettings())
        with pytest.raises(Interrupted):
            progress.say("a line")
        progress.say("nobody reads this one")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_log_that_cannot_be_written_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Console(stderr=True, width=200), RunSettings(), log="/dev/full")
    for line in ("one", "two"):
        progress.say(line)
    full = "`log_file` '/dev/full' is not written any more: No space left on device"
    assert capsys.readouterr().err.splitlines() == ["one", full, "two"]


def test_progress_also_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(Console(stderr=True, quiet=True), RunSettings(), log=str(tmp_path / "log"))
    progress.say("trial 0 complete")
    progress.say("trial 1 pruned")
    assert capsys.readouterr().err == ""
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["trial 0 complete", "trial 1 pruned"]
    assert datetime.fromisoformat(lines[0][:19])


def test_the_words_of_the_bar_fit_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = Console(file=StringIO(), width=80, force_terminal=True, color_system=None)
    progress, study = Progress(console, RunSettings()), study_with(3, running=0)
    planned = plan(study)
    monkeypatch.setattr(planned, "left", lambda: "about 3.2 min left")
    progress.plan(planned, str)
    with progress.running(20):
        progress.trial(study, study.trials[2])
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1/20 about 3.2 min left best accuracy 0.500 (trial 2)" in shown
    assert "…" not in shown
