"""What an error of a storage says: whether it passes, and why it came."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import optuna.exceptions
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError

from flatsearch.errors import StorageError, hide_passwords

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FinishedTrialError", "is_damage", "is_of_storage", "passes", "reason"]

# What Optuna raises where a trial that has ended is changed; before 4.3 without a class of its own.
FinishedTrialError: type[RuntimeError] = getattr(
    optuna.exceptions, "UpdateFinishedTrialError", RuntimeError
)

# SQLSTATE of connections, of servers that shut down or start, of locks, and of too many clients.
_PASSING_STATES = ("08", "40", "57P", "53300", "55P03")
# The same of MySQL, as numbers.
_PASSING_NUMBERS = {1040, 1053, 1205, 1213, 2002, 2003, 2006, 2013}
_PASSING_NAMES = {"BusyLoadingError", "ConnectionError", "TimeoutError"}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what it was raised from or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # errors raised twice can form a circle
        seen.add(id(error))
        yield error
        during = None if error.__suppress_context__ else error.__context__
        if isinstance(during, StorageError):  # of what was asked before, and has been said
            during = None
        error = getattr(error, "orig", None) or error.__cause__ or during


def passes(error: BaseException) -> bool:
    """Return whether an error of a storage is over when its connection or a lock is back."""
    for cause in _causes(error):
        code = getattr(cause, "code", None)
        if callable(code) and _is_broken_call(getattr(code(), "name", ""), reason(cause)):
            return True
        if isinstance(cause, sqlite3.OperationalError):
            return "locked" in str(cause)
        if getattr(cause, "connection_invalidated", False):
            return True
        if isinstance(cause, (ConnectionError, TimeoutError, sqlalchemy.exc.TimeoutError)):
            return True
        kind = type(cause)
        if kind.__module__.startswith("redis.") and kind.__name__ in _PASSING_NAMES:
            return True
        if kind.__module__.startswith("psycopg"):
            state = getattr(cause, "sqlstate", None)
            if state is None:  # there was no connection
                return kind.__name__ in {"OperationalError", "ConnectionTimeout"}
            return str(state).startswith(_PASSING_STATES)
        if kind.__module__.startswith("pymysql"):
            return bool(cause.args) and cause.args[0] in _PASSING_NUMBERS
        # Optuna's lock of a journal, which others have broken.
        if isinstance(cause, RuntimeError) and "did not possess lock" in str(cause):
            return True
    return False


def _is_broken_call(status: str, said: str) -> bool:
    """Return whether a call of gRPC's ended with its connection; the server's own errors do not."""
    broken = ("Stream removed", "RST_STREAM", "GOAWAY", "Socket closed")
    return status in {"CANCELLED", "UNAVAILABLE"} or any(text in said for text in broken)


def reason(error: BaseException) -> str:
    """Return an error's cause in its own words, one line without SQL, links and passwords."""
    *_, cause = _causes(error)
    said = getattr(cause, "details", None)  # gRPC's
    text = str(said() if callable(said) else cause).strip()
    return hide_passwords(text.splitlines()[0]) if text else type(cause).__name__


def is_of_storage(error: Exception) -> bool:
    """Return whether an error says that the storage does not work."""
    kinds = (StorageInternalError, sqlalchemy.exc.SQLAlchemyError, OSError)
    foreign = type(error).__module__.startswith(("grpc.", "redis."))
    return isinstance(error, kinds) or foreign or is_damage(error) or passes(error)


def is_damage(error: BaseException) -> bool:
    """Return whether a storage cannot read what it has, or take what it is given, ever."""
    # Optuna stores JSON.
    kinds = (json.JSONDecodeError, UnicodeDecodeError, RecursionError, sqlalchemy.exc.DataError)
    # Not what it was raised during: that may be a trial's.
    return isinstance(error, kinds) or isinstance(error.__cause__, kinds)
