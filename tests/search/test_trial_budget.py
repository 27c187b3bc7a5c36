"""An exact number of trials among workers."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from flatsearch import FlatnessObjective, FlatsearchError, record
from flatsearch.search.loop import run_study
from flatsearch.search.storage import open_storage
from flatsearch.search.study import open_study
from flatsearch.search.trial_budget import Budget, finished_count
from tests.fakes import DEAD, Tiny

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.data.splits import ImageData


def study_of(*states: str) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for state in states:
        trial = study.ask()
        if state == "COMPLETE":
            study.tell(trial, (0.5, 0.5))
        elif state != "RUNNING":
            study.tell(trial, state=TrialState[state])
    return study


def test_before_asking_all_running_trials_count() -> None:
    study = study_of("COMPLETE", "PRUNED", "FAIL", "RUNNING")
    assert finished_count(study) == 2
    states = [Budget(target).state(study) for target in (1, 2, 3, 4)]
    assert states == ["done", "done", "wait", "run"]


def test_after_asking_only_older_running_trials_count() -> None:
    study = study_of("RUNNING", "RUNNING", "RUNNING")
    budget = Budget(2)
    assert [budget.state(study, number) for number in range(3)] == ["run", "run", "wait"]
    study.tell(0, state=TrialState.FAIL)  # gives its place back
    assert [budget.state(study, number) for number in (1, 2)] == ["run", "run"]
    study.tell(1, (0.5, 0.5))
    study.tell(2, (0.5, 0.5))
    assert budget.state(study, 3) == "done"


def test_trials_of_dead_processes_do_not_count() -> None:
    study = study_of()
    trial = study.ask()
    assert Budget(1).state(study) == "wait"
    record.write_trial(trial, worker=DEAD)
    assert Budget(1).state(study) == "run"


def test_what_cost_no_training_does_not_count() -> None:
    study = study_of()
    for write in (
        lambda t: record.write_trial(t, duplicate_of=0),
        lambda t: record.write_constraints(t, {"flatsearch:max_parameters": 0.5}),
    ):
        trial = study.ask()
        write(trial)
        study.tell(trial, state=TrialState.PRUNED)
    assert finished_count(study) == 0
    assert Budget(1).state(study) == "run"


def quick(data: ImageData, **options: object) -> FlatnessObjective:
    return FlatnessObjective(Tiny(), data, epochs=1, device="cpu", **options)  # type: ignore[arg-type]


def test_no_trial_of_the_dead_is_left_when_the_budget_is_used_up(digits: ImageData) -> None:
    objective = quick(digits)
    study = open_study("s", optuna.storages.InMemoryStorage(), objective)
    study.pruner = optuna.pruners.NopPruner()
    # One worker is killed just before others finish what is left: none of them has to wait.
    record.write_trial(study.ask(), worker=DEAD, network="another")
    run_study(study, objective, target=1)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("kind", ["memory", "sqlite", "journal"])
def test_threads_share_a_budget(digits: ImageData, kind: str, tmp_path: Path) -> None:
    storages = {
        "memory": optuna.storages.InMemoryStorage,
        "sqlite": lambda: open_storage(f"sqlite:///{tmp_path}/s.db"),
        "journal": lambda: optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(f"{tmp_path}/journal.log")
        ),
    }
    storage = storages[kind]()
    open_study("s", storage, quick(digits))
    errors = []

    def work(worker: int) -> None:
        try:
            objective = quick(digits)
            study = open_study("s", storage, objective, worker=worker)
            run_study(study, objective, target=7)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = optuna.load_study(study_name="s", storage=storage)
    assert not errors
    assert finished_count(study) == 7
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}


def test_a_surplus_trial_is_given_back(digits: ImageData) -> None:
    """Two workers ask at once for the last place: the younger trial ends without training."""
    objective = quick(digits)
    study = open_study("s", optuna.storages.InMemoryStorage(), objective)
    older: list[optuna.Trial] = []
    real = study.ask

    def ask(*args: object, **kwargs: object) -> optuna.Trial:
        if not older:
            older.append(real())  # another worker's, between our look and our question
            threading.Timer(0.5, lambda: study.tell(older[0], (0.5, 0.5))).start()
        return real()

    study.ask = ask  # type: ignore[method-assign, assignment]
    run_study(study, objective, target=1)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL"]
    assert "have used up the budget" in (record.TrialRecord(study.trials[1]).failure or "")
    assert not record.TrialRecord(study.trials[1]).steps


def test_the_time_ends_a_trial_at_its_next_epoch(digits: ImageData) -> None:
    objective = FlatnessObjective(
        Tiny(), digits, epochs=1000, device="cpu", on_epoch=lambda *_: time.sleep(0.05)
    )
    study = open_study("s", optuna.storages.InMemoryStorage(), objective)
    started = time.monotonic()
    run_study(study, objective, n_trials=5, timeout=1.0)
    assert time.monotonic() - started < 30
    (trial,) = study.trials
    assert trial.state == TrialState.FAIL
    assert "the time was up after epoch" in (record.TrialRecord(trial).failure or "")
    assert finished_count(study) == 0


def test_a_trial_that_is_just_done_is_kept(digits: ImageData) -> None:
    objective = quick(digits, on_epoch=lambda *_: time.sleep(0.3))
    study = open_study("s", optuna.storages.InMemoryStorage(), objective)
    run_study(study, objective, n_trials=5, timeout=0.1)
    assert [t.state.name for t in study.trials] == ["COMPLETE"]


def test_failures_in_a_row_can_be_allowed(digits: ImageData) -> None:
    class Broken(Tiny):
        def build(self, architecture, in_channels, num_classes):  # type: ignore[no-untyped-def]
            raise RuntimeError("never works")

    objective = FlatnessObjective(Broken(), digits, epochs=1)
    study = open_study("s", optuna.storages.InMemoryStorage(), objective)
    with pytest.raises(FlatsearchError, match="5 trials failed in a row"):
        run_study(study, objective, n_trials=9, max_failures=5)
    assert len(study.trials) == 5
    trace = study.trials[0].user_attrs["flatsearch:traceback"]
    assert "never works" in trace
    assert "in build" in trace
