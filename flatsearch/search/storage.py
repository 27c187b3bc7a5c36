"""Where a study is stored, and where the files of its trials are."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import optuna
import sqlalchemy.exc
from optuna.artifacts import FileSystemArtifactStore

from flatsearch.errors import StorageError, UsageError
from flatsearch.record import StudyRecord
from flatsearch.settings import DEFAULT_ARTIFACTS

__all__ = ["artifact_store", "artifacts_of", "open_storage"]

# A worker that has not been heard of for this long is taken for dead, and its trial failed. Much
# longer than the interval: a slow machine must not lose a live trial.
_HEARTBEAT_SECONDS = 60
_GRACE_SECONDS = 300


def open_storage(url: str, *, create: bool = True) -> optuna.storages.RDBStorage:
    """Open an Optuna storage.

    Args:
        url: A database URL, for example "sqlite:///flatsearch.db" or "postgresql://HOST/DB".
        create: Whether a SQLite file that does not exist is made.

    Returns:
        The storage, with heartbeats, so that trials of killed workers are noticed.

    Raises:
        StorageError: If it cannot be reached, does not exist, or its driver is not installed.
    """
    file = url.removeprefix("sqlite:///")
    if not create and file != url and not Path(file).exists():
        raise StorageError(f"storage {url!r} does not exist; give `storage`, or run a search first")
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


def artifact_store(name: str) -> FileSystemArtifactStore | None:
    """Return the store of the trials' files, whose folder is made when a run begins.

    Args:
        name: A folder, or "none".

    Returns:
        The store; None for "none".

    Raises:
        UsageError: If it is not a folder that can be written to.
    """
    if name == "none":
        return None
    folder = Path(name)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UsageError(f"`artifacts` {name!r} is not a folder that can be written to")
    return FileSystemArtifactStore(folder)


def artifacts_of(study: optuna.Study) -> str:
    """Return where a study's files are, as the search was told."""
    return str((StudyRecord(study).run or {}).get("artifacts") or DEFAULT_ARTIFACTS)
