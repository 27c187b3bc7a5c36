"""What SIGINT, SIGTERM and SIGHUP do to a search: the running trial ends, the study stays."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


__all__ = ["Interrupted", "handling"]


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal; finished trials are stored, none is left running.

    Attributes:
        signum: The signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP, in the main thread; no other one gets them.

    A terminal that closes is no end of what was started with nohup.

    Args:
        handler: As `signal.signal` takes it.

    Yields:
        Nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGINT, signal.SIGTERM] if main else []
    if main and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)


class StopSignals:
    """Turns signals into `Interrupted` where it is safe.

    An exception that is raised wherever the program happens to be can be swallowed by a callback
    or leave a trial running for ever. The first signal is therefore only noted; training asks
    before every batch, and the loop between trials. A second one inside a trial is raised at once.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.inside = False

    def handle(self, signum: int, _: FrameType | None) -> None:
        self.received.append(signum)
        if self.inside and len(self.received) > 1:
            raise Interrupted(signum)

    def check(self) -> None:
        if self.received:
            raise Interrupted(self.received[0])
