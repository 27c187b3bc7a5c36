"""What may end a trial from outside: a signal to its worker, or a deadline."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsearch.errors import OutOfTimeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Control"]


def _go_on() -> None:
    """End nothing."""


@dataclass(frozen=True)
class Control:
    """What a worker's loop hands to the trial that it runs.

    Attributes:
        check: A function that is called before every training batch and while a trial waits for
            others; what it raises ends the trial.
        deadline: The time, by `time.monotonic`, after which a trial ends at its next epoch.
    """

    check: Callable[[], None] = _go_on
    deadline: float = math.inf

    def check_time(self, epoch: int) -> None:
        """End a trial whose time is up.

        Args:
            epoch: The number of epochs that it has been trained for.

        Raises:
            OutOfTimeError: If the deadline has passed.
        """
        if time.monotonic() > self.deadline:
            raise OutOfTimeError(f"the time was up after epoch {epoch}")
