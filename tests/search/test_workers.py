"""Workers: one that is killed, one that fails, signals, a supervisor that is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from flatsearch import FlatsearchError
from flatsearch.search import workers as module
from flatsearch.search.interrupts import Interrupted
from flatsearch.search.workers import run_workers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def work(command: Sequence[str]) -> int:
    """Run code, in place of a flatsearch command."""
    exec(command[0], {})
    return 0


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    dies_once = f"""
import os, pathlib
mark = pathlib.Path({str(tmp_path / "mark")!r})
if not mark.exists():
    mark.touch()
    os.kill(os.getpid(), 9)
"""
    said: list[str] = []
    run_workers(work, [[dies_once], ["pass"]], said.append)
    assert said == ["worker 0 was killed by signal 9; starting another"]
    with pytest.raises(FlatsearchError, match="1 of 1 workers failed"):
        run_workers(work, [["import os; os.kill(os.getpid(), 9)"]], said.append)
    assert len(said) == 1 + 4


def test_a_failed_worker_is_not_replaced() -> None:
    said: list[str] = []
    with pytest.raises(FlatsearchError, match="1 of 2 workers failed"):
        run_workers(work, [["raise SystemExit(1)"], ["pass"]], said.append)
    assert said == ["worker 0 ended with exit code 1"]


@pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="there is no such server"
)
def test_workers_whose_fork_server_is_killed_are_replaced(tmp_path: Path) -> None:
    """More than may be killed one by one."""
    code = """
import os, pathlib, time
folder = pathlib.Path({folder!r})
mark = folder / "{index}"
if not mark.exists():
    mark.touch()
    while {index} == 0 and len(list(folder.iterdir())) < 5:
        time.sleep(0.01)
    if {index} == 0:
        os.kill(os.getppid(), 9)
    time.sleep(60)
"""
    said: list[str] = []
    commands = [[code.format(folder=str(tmp_path), index=index)] for index in range(5)]
    run_workers(work, commands, said.append)
    lost = "was lost with what forks workers; starting another"
    assert sorted(said) == [f"worker {index} {lost}" for index in range(5)]


def test_a_signal_is_passed_on_once(tmp_path: Path) -> None:
    code = f"""
import signal, sys, time, pathlib
def end(*_):
    open({str(tmp_path / "seen")!r}, "a").write("x")
    sys.exit(130)
signal.signal(signal.SIGINT, end)
pathlib.Path({str(tmp_path / "ready")!r}).touch()
time.sleep(60)
"""

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        run_workers(work, [[code]], lambda _: None)
    thread.join()
    assert (tmp_path / "seen").read_text() == "x"


def supervise(code: str) -> None:
    run_workers(work, [[code]], print)


def test_a_signal_while_workers_are_started_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: list[module._Pool] = []
    start = module._Pool.start

    def interrupted(self: module._Pool, index: int) -> None:
        pool.append(self)
        self.received.append(signal.SIGINT)  # as while the server that forks is being started
        start(self, index)

    monkeypatch.setattr(module._Pool, "start", interrupted)
    with pytest.raises(Interrupted):
        run_workers(work, [["import time; time.sleep(600)"]] * 2, print)
    assert len(pool) == 1  # no other one is started


def test_workers_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, time
part = pathlib.Path({str(tmp_path / "part")!r})
part.write_text(str(os.getpid()))
part.rename(part.with_name("worker"))
time.sleep(600)
"""
    supervisor = multiprocessing.get_context("forkserver").Process(target=supervise, args=(code,))
    supervisor.start()
    while not (tmp_path / "worker").exists():
        time.sleep(0.05)
    worker = psutil.Process(int((tmp_path / "worker").read_text()))
    supervisor.kill()
    worker.wait(60)
