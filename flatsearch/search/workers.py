"""Several worker processes on one study, started and watched by one parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from flatsearch.errors import FlatsearchError
from flatsearch.search.interrupts import Interrupted, handling

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.process import BaseProcess
    from types import FrameType

__all__ = ["run_workers"]

_POLL_SECONDS = 0.2
# Workers that are killed (out of memory, most of all) and replaced, in all.
_RESTARTS = 3
# The exit code that Python gives where the server that forks the workers is gone, and cannot tell.
_LOST = 255


class _Pool:
    """The processes of the workers, by index."""

    def __init__(
        self,
        work: Callable[[Sequence[str]], int],
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._work = work
        self._commands = commands
        self._say = say
        self._forks = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if self._forks else "spawn")
        # What all workers need is imported once, and in memory once.
        self._context.set_forkserver_preload(["flatsearch.search.session"])
        threads = str(max(1, _cores() // len(commands)))
        # The user's own OMP_NUM_THREADS comes last, and stays.
        self._environment = {"OMP_NUM_THREADS": threads, **os.environ, **environment}
        self._restarts = 0
        self.processes: dict[int, BaseProcess] = {}
        # By which a worker gets signals, and notices that the supervisor is gone.
        self._lifelines: dict[int, Connection] = {}
        self.received: list[int] = []
        self.failed: list[int] = []

    def start(self, index: int) -> None:
        theirs, ours = self._context.Pipe(duplex=False)
        if index in self._lifelines:  # of the one before, which may still run
            self._lifelines[index].close()
        self._lifelines[index] = ours
        # A server that forks has the output of the time when it was started.
        output = [Connection(os.dup(number)) for number in (1, 2)] if self._forks else []
        arguments = (self._work, self._commands[index], self._environment, theirs, output)
        process = self._context.Process(target=_begin, args=arguments)
        try:
            process.start()
        except (EOFError, OSError) as error:
            raise FlatsearchError(
                f"worker {index} could not be started: {type(error).__name__} {error}".rstrip()
            ) from error
        self.processes[index] = process
        for signum in self.received[:1]:  # while it was being started
            self._send(index, signum)
        for sent in (theirs, *output):
            sent.close()

    def handle(self, signum: int, _: FrameType | None) -> None:
        self.received.append(signum)
        for index in self.processes:
            self._send(index, signum)

    def _send(self, index: int, signum: int) -> None:
        """Pass a signal on to a worker, which may not listen to signals yet."""
        with contextlib.suppress(OSError):  # it has just ended
            self._lifelines[index].send(signum)

    def look(self) -> None:
        """Note which workers have ended, and replace those that were killed."""
        ended = {i: p for i, p in self.processes.items() if p.exitcode is not None}
        # Those that are lost at once are lost to one kill.
        left = _RESTARTS - self._restarts
        for index, process in ended.items():
            code = process.exitcode or 0
            del self.processes[index]
            if code == 0 or self.received:
                continue
            what = f"killed by signal {-code}"
            if code == _LOST:
                what = "lost with what forks workers"
            if (code < 0 and self._restarts < _RESTARTS) or (code == _LOST and left):
                self._restarts += code < 0
                self._say(f"worker {index} was {what}; starting another")
                self.start(index)
            else:
                self.failed.append(index)
                self._say(f"worker {index} ended with exit code {code}")
        self._restarts += any(process.exitcode == _LOST for process in ended.values())

    def end(self) -> None:
        """Stop those that still run."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.join()
        for lifeline in self._lifelines.values():
            lifeline.close()


def _cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _begin(
    work: Callable[[Sequence[str]], int],
    command: Sequence[str],
    environment: Mapping[str, str],
    lifeline: Connection,
    output: Sequence[Connection],
) -> None:
    """Do a worker's work, in its process."""
    import torch

    # In a session of its own: a terminal's Ctrl-C comes to the supervisor, and is passed on once.
    if hasattr(os, "setsid"):
        os.setsid()
    for number, stream in enumerate(output, 1):
        os.dup2(stream.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=_listen, args=(lifeline,), daemon=True).start()
        code = work(command)
    except KeyboardInterrupt:  # before the work had begun
        code = 128 + signal.SIGINT
    sys.exit(code)


def _listen(lifeline: Connection) -> None:
    """Give this process the supervisor's signals; SIGTERM when that is gone, whatever it died of.

    A signal that is sent to a process which has just been forked can be lost.
    """
    while True:
        try:
            signum = lifeline.recv()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        os.kill(os.getpid(), signum)


def run_workers(
    work: Callable[[Sequence[str]], int],
    commands: Sequence[Sequence[str]],
    say: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Let processes do a worker's work until all of them have ended.

    A signal is passed on, once. A worker that is killed is replaced, a few times in all: its trial
    is failed by the others. The cores are shared out among them, unless OMP_NUM_THREADS is set.

    Args:
        work: What a worker does, a function of a module; what it returns is the exit code.
        commands: What each worker is told.
        say: Told, in a line, of what goes wrong.
        environment: Variables for the workers, beside those of this process.

    Raises:
        FlatsearchError: If a worker fails.
        Interrupted: On SIGINT, SIGTERM or SIGHUP, when all workers have ended.
    """
    pool = _Pool(work, commands, environment or {}, say)
    with handling(pool.handle):
        try:
            for index in range(len(commands)):
                if not pool.received:
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
