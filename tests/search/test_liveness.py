"""Trials of processes that are gone."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import optuna
import psutil

from flatsearch import record
from flatsearch.search.liveness import fail_dead_trials, is_dead, this_process
from tests.fakes import DEAD

if TYPE_CHECKING:
    from pathlib import Path

CHILD = (
    "from flatsearch.search.liveness import this_process;"
    " print(this_process(), flush=True); input()"
)


def test_a_process_lives_until_it_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        worker = child.stdout.readline().strip()
        assert worker != this_process()
        assert not is_dead(worker)
        child.kill()
        psutil.Process(child.pid).wait(30)
    assert is_dead(worker)


def test_a_number_that_was_given_again_is_another_process() -> None:
    machine, number, started = this_process().split(":")
    assert not is_dead(this_process())
    # A clock that was set in between does not kill it.
    assert not is_dead(f"{machine}:{number}:{float(started) + 2:.2f}")
    assert is_dead(f"{machine}:{number}:1.00")


def test_nothing_is_known_of_other_machines() -> None:
    _, number, started = this_process().split(":")
    assert not is_dead(f"elsewhere:{number}:{started}")
    assert not is_dead("elsewhere:99999999:1.00")
    assert not is_dead("nonsense")


def test_only_the_dead_are_failed(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["minimize"] * 2, storage=f"sqlite:///{tmp_path}/s.db")
    workers = [this_process(), DEAD, "elsewhere:1:1.00", None]
    for worker in workers:
        trial = study.ask()
        if worker is not None:
            record.write_trial(trial, worker=worker)
    assert [trial.number for trial in fail_dead_trials(study)] == [1]
    assert [t.state.name for t in study.trials] == ["RUNNING", "FAIL", "RUNNING", "RUNNING"]
    assert fail_dead_trials(study) == []


def test_the_dead_of_other_machines_are_failed_by_their_heartbeats(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/s.db"
    storage = optuna.storages.RDBStorage(address, heartbeat_interval=1, grace_period=1)
    study = optuna.create_study(directions=["minimize"] * 2, storage=storage)
    trial = study.ask()
    record.write_trial(trial, worker="elsewhere:1:1.00")
    storage.record_heartbeat(trial._trial_id)
    fail_dead_trials(study)
    assert study.trials[0].state.name == "RUNNING"
    time.sleep(3)
    fail_dead_trials(study)
    assert study.trials[0].state.name == "FAIL"
