"""Trials whose process is gone: found at once on the same machine, not by missing heartbeats."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import psutil
from optuna.trial import TrialState

from flatsearch.record import StudyRecord, TrialRecord, write_trial
from flatsearch.search.faults import FinishedTrialError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from flatsearch.record.facts import Place

__all__ = ["fail_dead_trials", "is_dead", "is_orphan", "note_worker", "this_process"]

# Clocks are corrected: two readings of when a process or the machine started may differ.
_TOLERANCE_SECONDS = 5.0
# A trial of flatsearch says which process runs it as soon as its parameters are drawn.
_MOST_SILENT_SECONDS = 600.0


@functools.cache
def _machine() -> str:
    """Return what tells this machine, since it was started, from others; not its name.

    Containers may share a name and a kernel, but not the numbers of their processes.
    """
    parts = [socket.gethostname()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        path = Path(file)
        with contextlib.suppress(OSError):
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


def this_process() -> str:
    """Return what tells this process from all others.

    Returns:
        Machine, process number and time of start, separated by colons.
    """
    process = psutil.Process(os.getpid())
    return f"{_machine()}:{process.pid}:{process.create_time():.2f}"


def note_worker(trial: Place) -> None:
    """Record that this process runs a trial, unless that is known."""
    if trial.user_attrs.get(TrialRecord.worker.key) != this_process():
        write_trial(trial, worker=this_process())


def is_dead(worker: str) -> bool:
    """Return whether a process was of this machine and is gone.

    Args:
        worker: From `this_process`.

    Returns:
        False for one that lives, and for one of another machine, of which nothing is known.
    """
    machine, _, rest = worker.partition(":")
    number, _, started = rest.partition(":")
    if machine != _machine():
        return False
    try:
        process = psutil.Process(int(number))
        other = abs(process.create_time() - float(started)) > _TOLERANCE_SECONDS
        return other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError):
        return False


def is_orphan(trial: FrozenTrial) -> bool:
    """Return whether a running trial's process is known to be gone.

    Args:
        trial: A running trial.

    Returns:
        False for a trial that does not say which process runs it.
    """
    worker = TrialRecord(trial).worker
    return worker is not None and is_dead(worker)


def fail_dead_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Fail the running trials whose process is gone; one that was about to be parked is pruned.

    On this machine that is seen at once; on others by their heartbeats, where the storage has them.

    Args:
        study: The study.

    Returns:
        Those of this machine.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    dead = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if is_orphan(trial) or (_is_silent(trial) and StudyRecord(study).settings is not None)
    ]
    for trial in dead:
        # One that says that it is parked had only to be told so.
        state = TrialState.FAIL if TrialRecord(trial).parked is None else TrialState.PRUNED
        with contextlib.suppress(FinishedTrialError, ValueError):  # another was faster
            study.tell(trial.number, state=state)
    return dead


def _is_silent(trial: FrozenTrial) -> bool:
    """Return whether a running trial has not said for long which process runs it."""
    started = trial.datetime_start
    waited = 0.0 if started is None else (datetime.now() - started).total_seconds()
    return TrialRecord(trial).worker is None and waited > _MOST_SILENT_SECONDS
