"""Opening an Optuna storage."""

from __future__ import annotations

import re
import warnings

import optuna
import sqlalchemy.exc

from flatsearch.errors import StorageError

__all__ = ["open_storage"]

# A worker that has not been heard of for this long is taken for dead, and its trial failed. Much
# longer than the interval: a slow machine must not lose a live trial.
_HEARTBEAT_SECONDS = 60
_GRACE_SECONDS = 300


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open an Optuna storage.

    Args:
        url: A database URL, for example "sqlite:///flatsearch.db" or "postgresql://HOST/DB".

    Returns:
        The storage, with heartbeats, so that trials of killed workers are noticed.

    Raises:
        StorageError: If it cannot be reached, or its driver is not installed.
    """
    shown = re.sub(r"(?<=:)[^:@/]+(?=@)", "***", url)
    # The driver that the extra brings, whichever is the default of this SQLAlchemy.
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(
                url, heartbeat_interval=_HEARTBEAT_SECONDS, grace_period=_GRACE_SECONDS
            )
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        extra = "; pip install 'flatsearch[postgres]'" if url.startswith("postgres") else ""
        raise StorageError(f"storage {shown!r} needs a driver: {_one_line(error)}{extra}") from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, ValueError) as error:
        raise StorageError(f"storage {shown!r} cannot be opened: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    """Return the cause's own words, without SQLAlchemy's link and SQL."""
    original = getattr(error, "orig", None) or error.__cause__ or error
    original = getattr(original, "orig", None) or original
    return str(original).strip().splitlines()[0] if str(original).strip() else type(error).__name__
