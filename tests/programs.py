"""Programs in processes of their own, forked from one that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from flatsearch.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["flatsearch.search.session", "flatsearch.reports.dashboard"])


class Program:
    """A function in a process, and what it prints.

    Attributes:
        pid: The number of the process.
        out: Standard output, to be read.
        err: Standard error, to be read.
    """

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        pipes = [os.pipe() for _ in range(2)]
        theirs = [Connection(write, readable=False) for _, write in pipes]
        self.out, self.err = (os.fdopen(read) for read, _ in pipes)
        self._process = CONTEXT.Process(target=_begin, args=(function, arguments, *theirs))
        self._process.start()
        for stream in theirs:
            stream.close()
        self.pid = self._process.pid or 0

    def until(self, text: str) -> str:
        """Return the first line of standard error that has a text."""
        seen = []
        for line in self.err:
            if text in line:
                return line
            seen.append(line)
        raise AssertionError("".join(seen))

    def end(self, number: int | None = None) -> tuple[int | None, str, str]:
        """Send a signal; return exit code, standard output and error when the process has ended."""
        if number is not None:
            os.kill(self.pid, number)
        with self.err, self.out:
            err, out = self.err.read(), self.out.read()
        self._process.join()
        return self._process.exitcode, out, err


def started(*arguments: str) -> Program:
    """Start a command."""
    return Program(main, arguments)


def _begin(
    function: Callable[..., Any], arguments: tuple[Any, ...], out: Connection, err: Connection
) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    # Whatever is started in the background is told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(function(*arguments))
