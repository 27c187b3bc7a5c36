"""Storages that go away and come back."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import optuna
import psycopg
import pymysql
import pytest
import redis
import sqlalchemy
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from flatsearch import FlatnessObjective, RunSettings, StorageError, record
from flatsearch.search import leases, loop, patience
from flatsearch.search.faults import FinishedTrialError, passes
from flatsearch.search.interrupts import Interrupted
from flatsearch.search.leases import WorkerStorage
from flatsearch.search.liveness import fail_dead_trials
from flatsearch.search.loop import run_study
from flatsearch.search.parking import Parking
from flatsearch.search.patience import PatientStorage
from flatsearch.search.storage import artifact_store
from flatsearch.search.study import open_study
from tests.fakes import Tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flatsearch.data.splits import ImageData


class Breaking:
    """A storage whose connection breaks before a call, or before its answer has come."""

    def __init__(self) -> None:
        self.backend: optuna.storages.BaseStorage = InMemoryStorage()
        self.breaks: list[str] = []
        self.gone = False

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            when = self.breaks.pop(0) if self.breaks else ""
            if when == "before" or self.gone:
                raise ConnectionError("connection reset")
            result = getattr(self.backend, name)(*args, **kwargs)
            if when == "after":
                raise ConnectionError("connection reset")
            return result

        return call


class CallError(Exception):
    """What a call of gRPC's ends with."""

    def __init__(self, status: str, said: str) -> None:
        super().__init__(said)
        self.code = lambda: SimpleNamespace(name=status)
        self.details = lambda: said


@pytest.fixture
def broken() -> Breaking:
    return Breaking()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SHARED_SECONDS", 0.0)  # everything is asked of the storage


def patient(backend: Any, **options: Any) -> WorkerStorage:
    said: list[str] = []
    storage = WorkerStorage(backend, "db", say=said.append, **options)
    storage.said = said  # type: ignore[attr-defined]
    return storage


@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize("breaks", [["before"], ["after"], ["after", "before", "after"]])
def test_everything_is_written_once_however_often_the_connection_breaks(
    broken: Breaking, breaks: list[str], proxied: bool
) -> None:
    if proxied:  # by a process that is patient with the storage itself
        broken.backend = PatientStorage(broken.backend, "behind")
    storage = patient(broken)
    minimise = [StudyDirection.MINIMIZE]
    distribution = optuna.distributions.FloatDistribution(0, 1)

    def asked(name: str, *args: Any) -> Any:
        broken.breaks = list(breaks)
        return getattr(storage, name)(*args)

    study = asked("create_new_study", minimise, "s")
    trial = asked("create_new_trial", study)
    asked("set_trial_param", trial, "x", 0.5, distribution)
    asked("set_trial_user_attr", trial, "a", 1)
    assert asked("set_trial_state_values", trial, TrialState.COMPLETE, [0.25])
    (found,) = asked("get_all_trials", study)
    assert (found.number, found.state, found.value) == (0, TrialState.COMPLETE, 0.25)
    assert (found.params, found.user_attrs["a"]) == ({"x": 0.5}, 1)
    with pytest.raises(FinishedTrialError):
        asked("set_trial_state_values", trial, TrialState.FAIL)
    with pytest.raises(optuna.exceptions.DuplicatedStudyError):
        storage.create_new_study(minimise, "s")


def test_a_storage_is_waited_for_with_a_line_at_the_start_and_at_the_end(broken: Breaking) -> None:
    storage = patient(broken)
    study = optuna.create_study(storage=storage, study_name="s")
    broken.gone = True
    threading.Timer(0.5, lambda: setattr(broken, "gone", False)).start()
    assert study.trials == []
    gone, back = storage.said  # type: ignore[attr-defined]
    expected = "storage 'db' cannot be used: connection reset; trying again for 10 minutes"
    assert gone == expected
    assert back.startswith("storage 'db' is back after ")


def test_patience_ends(broken: Breaking) -> None:
    storage = patient(broken, patience=0.3)
    study = optuna.create_study(storage=storage)
    broken.gone = True
    start = time.monotonic()
    with pytest.raises(StorageError, match="'db' cannot be used after 0 s: connection reset; what"):
        study.get_trials()
    assert time.monotonic() - start >= 0.3
    broken.breaks = ["before"]
    broken.gone = False
    with pytest.raises(StorageError):  # nobody waits a second time
        study.get_trials()
    assert study.get_trials() == []
    broken.gone, storage.stopped = True, lambda: True
    with pytest.raises(StorageError):
        study.get_trials()


def test_what_a_trial_records_waits_for_the_storage_and_not_the_trial(broken: Breaking) -> None:
    storage = patient(broken)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    broken.gone = True
    for step in range(3):
        trial.report(step, step)
        trial.set_user_attr("last", step)
    storage.record_heartbeat(trial._trial_id)  # is silent about it
    broken.gone = False
    study.tell(trial, 1.0)
    (found,) = broken.backend.get_all_trials(study._study_id)
    assert found.user_attrs["last"] == 2
    assert found.intermediate_values == {0: 0, 1: 1, 2: 2}
    assert len(storage.said) == 2  # type: ignore[attr-defined]


def test_what_is_read_several_times_at_once_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = InMemoryStorage()
    one, other = patient(backend), patient(backend)
    study = one.create_new_study([StudyDirection.MINIMIZE], "s")
    reads = mock.Mock(wraps=backend.get_all_trials)
    monkeypatch.setattr(backend, "get_all_trials", reads)
    other.create_new_trial(study)
    assert (len(one.get_all_trials(study)), reads.call_count) == (1, 1)
    other.create_new_trial(study)  # nothing is shared but by a worker
    assert (len(one.get_all_trials(study)), reads.call_count) == (2, 2)
    reads.reset_mock()
    one.shared_seconds = 60.0
    trial = one.create_new_trial(study)
    running = (TrialState.RUNNING,)
    for states, count in (((TrialState.COMPLETE,), 0), (running, 3), (None, 3)):
        assert len(one.get_all_trials(study, states=states)) == count
    assert reads.call_count == 1
    other.create_new_trial(study)
    assert len(one.get_all_trials(study)) == 3
    # Whoever has written sees what is there by now, its own and others'.
    writes: list[Callable[[], Any]] = [
        lambda: one.set_trial_user_attr(trial, "a", 1),
        lambda: one.set_trial_intermediate_value(trial, 0, 1.0),
        lambda: one.set_trial_param(trial, "x", 0.5, optuna.distributions.FloatDistribution(0, 1)),
        lambda: one.set_trial_state_values(trial, TrialState.PRUNED),
        lambda: one.create_new_trial(study),
    ]
    for write in writes:
        before = len(one.get_all_trials(study))
        other.create_new_trial(study)
        assert len(one.get_all_trials(study)) == before
        write()
        assert len(one.get_all_trials(study)) > before
    one.shared_seconds = 0.0
    other.set_trial_user_attr(trial + 1, "a", 1)
    assert one.get_all_trials(study)[trial + 1].user_attrs["a"] == 1


def test_what_is_no_fault_of_the_connection_is_not_waited_for(broken: Breaking) -> None:
    storage = patient(broken)
    with pytest.raises(KeyError):
        storage.get_trial(7)

    def fails() -> None:
        try:
            raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("is full"))
        except sqlalchemy.exc.OperationalError as full:
            raise optuna.exceptions.StorageInternalError("invalid data") from full

    with pytest.raises(StorageError, match="'db' cannot be used: is full; what it has is") as once:
        storage.ask(fails)
    try:
        raise once.value
    except StorageError:  # while it is dealt with, something else is tried
        with pytest.raises(StorageError) as again:
            storage.ask(fails)
    assert str(again.value) == str(once.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("server closed the connection"), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.DeadlockDetected(), True),
        (psycopg.errors.DiskFull(), False),
        (psycopg.errors.UndefinedTable(), False),
        (pymysql.err.OperationalError(2013, "lost"), True),
        (pymysql.err.OperationalError(1205, "lock wait timeout"), True),
        (pymysql.err.DataError(1406, "too long"), False),
        (redis.exceptions.BusyLoadingError(), True),
        (redis.exceptions.ResponseError("out of memory"), False),
        (sqlite3.OperationalError("database is locked"), True),
        (sqlite3.OperationalError("attempt to write a readonly database"), False),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("Error: did not possess lock"), True),
        (CallError("UNAVAILABLE", "connection refused"), True),
        (CallError("UNKNOWN", "Stream removed"), True),
        (CallError("UNKNOWN", "Exception calling application: disk is full"), False),
        (ValueError("CategoricalDistribution does not support dynamic value space."), False),
    ],
)  # fmt: skip
def test_which_errors_pass(error: Exception, expected: bool) -> None:
    assert passes(error) == expected
    if not isinstance(error, (OSError, RuntimeError, ValueError, CallError)):
        wrapped = sqlalchemy.exc.DBAPIError("SELECT", {}, error)
        assert passes(wrapped) == expected


def test_a_lease_that_is_not_renewed_is_a_dead_workers(
    broken: Breaking, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = patient(broken), patient(broken)
    study = optuna.create_study(storage=there)
    other = optuna.load_study(study_name=study.study_name, storage=here)
    trial, silent = study.ask(), study.ask()
    for asked in (trial, silent):
        record.write_trial(asked, worker="elsewhere:1:1.00")
    monkeypatch.setattr(leases, "_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(leases, "_INTERVAL_SECONDS", 0.0)
    fail_dead_trials(other)
    time.sleep(0.3)
    there.record_heartbeat(trial._trial_id)
    fail_dead_trials(other)
    assert [t.state.name for t in other.trials] == ["RUNNING", "FAIL"]
    # One that nobody has renewed for hours needs no watching.
    monkeypatch.setattr(leases, "_LONG_AGO_SECONDS", -1.0)
    fail_dead_trials(optuna.load_study(study_name=study.study_name, storage=patient(broken)))
    assert [t.state.name for t in other.trials] == ["FAIL", "FAIL"]


def test_a_worker_whose_trial_was_taken_for_dead_goes_on(
    broken: Breaking, digits: ImageData, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(trial: optuna.Trial, *_: object) -> None:
        if trial.number == 0:
            broken.backend.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    settings = RunSettings(epochs=1, min_accuracy=0.0)
    objective = FlatnessObjective(Tiny(), digits, settings=settings, device="cpu", on_epoch=fail)
    study = open_study("s", patient(broken), objective, pruner="none")
    run_study(study, objective, target=1)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    assert "trial 0 was taken for dead by another worker; going on" in caplog.text


def test_a_worker_whose_trial_was_failed_at_its_very_end_goes_on(
    broken: Breaking, caplog: pytest.LogCaptureFixture
) -> None:
    def run(trial: optuna.Trial, _: object) -> float:
        if trial.number == 0:
            broken.backend.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        return 0.5

    objective: Any = SimpleNamespace(
        space=None, settings=RunSettings(), parking=Parking(None), run=run
    )
    study = optuna.create_study(storage=patient(broken))
    run_study(study, objective, target=1)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    assert "trial 0 was taken for dead by another worker; going on" in caplog.text


def test_a_study_that_is_deleted_ends_its_run(broken: Breaking) -> None:
    def run(trial: optuna.Trial, _: object) -> float:
        broken.backend.delete_study(trial.study._study_id)
        return 0.5

    objective: Any = SimpleNamespace(
        space=None, settings=RunSettings(), parking=Parking(None), run=run
    )
    study = optuna.create_study(storage=patient(broken))
    with pytest.raises(StorageError, match="has no such study; was it deleted"):
        run_study(study, objective, target=1)


@pytest.mark.parametrize("what", ["vanished", "a file", "full"])
def test_an_artifact_folder_that_cannot_be_written_to_ends_a_run(
    what: str, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "artifacts"

    def breaks(trial: optuna.Trial, *_: object) -> None:
        if trial.number == 1 and what == "full":
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            monkeypatch.setattr(shutil, "copyfileobj", mock.Mock(side_effect=full))
        elif trial.number == 1:
            folder.rename(tmp_path / "away")
            if what == "a file":
                folder.touch()

    def objective(on_epoch: Any = None) -> FlatnessObjective:
        settings = RunSettings(epochs=1, min_accuracy=0.0)
        store = artifact_store(str(folder))
        return FlatnessObjective(
            Tiny(), digits, settings=settings, artifact_store=store, on_epoch=on_epoch
        )

    folder.mkdir()
    breaking = objective(breaks)
    study = open_study("s", InMemoryStorage(), breaking, pruner="none")
    with pytest.raises(StorageError, match=r"`artifacts` '.*' cannot be written to: .*; finished"):
        run_study(study, breaking, target=3)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL"]
    if what != "full":
        folder.unlink(missing_ok=True)
        (tmp_path / "away").rename(folder)
    monkeypatch.undo()
    assert len(list(folder.iterdir())) <= 4  # of the first trial, none in part
    study = open_study("s", study._storage, objective(), pruner="none")
    run_study(study, objective(), target=3)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


@pytest.fixture
def heeded() -> Iterator[None]:
    """Let SIGHUP be heeded, which it is not where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("signalled", [False, True])
def test_a_storage_that_stays_away_ends_a_run(
    broken: Breaking, digits: ImageData, signalled: bool
) -> None:
    def leave(*_: object) -> None:
        broken.gone = True
        if signalled:
            signal.raise_signal(signal.SIGHUP)

    settings = RunSettings(epochs=1, min_accuracy=0.0)
    objective = FlatnessObjective(Tiny(), digits, settings=settings, device="cpu", on_epoch=leave)
    storage = patient(broken, patience=600.0 if signalled else 0.2)
    study = open_study("s", storage, objective, pruner="none")
    with pytest.raises(Interrupted if signalled else StorageError):
        run_study(study, objective, target=2)
    broken.gone = False
    assert [t.state.name for t in study.trials] == ["RUNNING"]  # found by the next run
