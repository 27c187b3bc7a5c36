"""Several worker processes on one study, started and watched by one parent."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from flatsearch.errors import FlatsearchError
from flatsearch.search.interrupts import Interrupted, handling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

__all__ = ["end_with_supervisor", "run_workers"]

_POLL_SECONDS = 0.2
# Workers that are killed (out of memory, most of all) and replaced, in all.
_RESTARTS = 3


class _Pool:
    """The processes of the workers, by index."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._commands = commands
        self._say = say
        threads = max(1, _cores() // len(commands))
        # The user's own OMP_NUM_THREADS comes last, and stays.
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **environment}
        self._restarts = 0
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.received: list[int] = []
        self.failed: list[int] = []

    def start(self, index: int) -> None:
        # In a session of their own: a terminal's Ctrl-C comes here only, and is passed on once.
        self.processes[index] = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "flatsearch", *self._commands[index]],
            env=self._environment,
            start_new_session=True,
            stdin=subprocess.PIPE,  # see `end_with_supervisor`
        )

    def handle(self, signum: int, _: FrameType | None) -> None:
        self.received.append(signum)
        for process in self.processes.values():
            process.send_signal(signum)

    def look(self) -> None:
        """Note which workers have ended, and replace those that were killed."""
        for index, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self.processes[index]
            if code == 0 or self.received:
                continue
            if code < 0 and self._restarts < _RESTARTS:
                self._restarts += 1
                self._say(f"worker {index} was killed by signal {-code}; starting another")
                self.start(index)
            else:
                self.failed.append(index)
                self._say(f"worker {index} ended with exit code {code}")

    def end(self) -> None:
        """Stop those that still run."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()


def _cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def end_with_supervisor() -> None:
    """Let this process get SIGTERM when the one that started it with `run_workers` is gone.

    Then the system closes the other end of the pipe that standard input is, whatever it died of.
    """
    if not stat.S_ISFIFO(os.fstat(0).st_mode):  # nobody's worker
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def run_workers(
    commands: Sequence[Sequence[str]],
    say: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a flatsearch command per worker until all of them have ended.

    A signal is passed on, once. A worker that is killed is replaced, a few times in all: its trial
    is failed by the others. The cores are shared out among them, unless OMP_NUM_THREADS is set.

    Args:
        commands: Arguments of each worker's command.
        say: Told, in a line, of what goes wrong.
        environment: Variables for the workers, beside those of this process.

    Raises:
        FlatsearchError: If a worker fails.
        Interrupted: On SIGINT, SIGTERM or SIGHUP, when all workers have ended.
    """
    pool = _Pool(commands, environment or {}, say)
    with handling(pool.handle):
        try:
            for index in range(len(commands)):
                pool.start(index)
            while pool.processes:
                time.sleep(_POLL_SECONDS)
                pool.look()
        finally:
            pool.end()
    if pool.received:
        raise Interrupted(pool.received[0])
    if pool.failed:
        raise FlatsearchError(
            f"{len(pool.failed)} of {len(commands)} workers failed; their messages are above"
        )
