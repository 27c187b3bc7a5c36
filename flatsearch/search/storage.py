"""Where a study is stored, and where the files of its trials are."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import socket
import tempfile
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import optuna
import sqlalchemy
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from tenacity import Retrying, retry_if_exception, stop_after_delay

from flatsearch.errors import StorageError, UsageError, hide_passwords, shown_storage
from flatsearch.record import StudyRecord
from flatsearch.search.faults import passes, reason
from flatsearch.search.journal import JournalLock, damaged_line, is_journal
from flatsearch.search.leases import WorkerStorage
from flatsearch.search.patience import BACKOFF, PATIENCE_SECONDS, PatientStorage
from flatsearch.settings import DEFAULT_ARTIFACTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

    from optuna.trial import TrialState

__all__ = [
    "address_family",
    "artifact_store",
    "artifacts_of",
    "bracketed",
    "open_storage",
    "serve_storage",
]

KINDS = (
    "sqlite:///FILE.db, postgresql://USER@HOST/DB, mysql://USER@HOST/DB, a journal FILE.log,"
    " redis://HOST, grpc://HOST:PORT"
)
# Drivers, whichever is the default of this SQLAlchemy; MariaDB speaks MySQL, and only by that name
# Optuna knows what to do with it.
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}
_EXTRAS = {"postgresql": "postgres", "mysql": "mysql", "redis": "redis", "grpc": "grpc"}
# A machine that has vanished is noticed; a server that is only slow is waited for.
_CONNECTIONS = {
    "sqlite": {"timeout": 10},
    "mysql": {"connect_timeout": 10},
    "postgresql": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    },
}
_GRPC_PORT = 13000
# What follows sqlite:// where there is no file.
_IN_MEMORY = re.compile(r":memory:|[?&]mode=memory|^/?(\?|$)")
# Several processes may make the same tables at once.
_OPEN_SECONDS = 5.0


def open_storage(
    url: str,
    *,
    create: bool = True,
    wait: bool = False,
    kind: type[PatientStorage] = WorkerStorage,
) -> PatientStorage:
    """Open an Optuna storage.

    Args:
        url: Of a database, for example "sqlite:///flatsearch.db" or "postgresql://HOST/DB"; of a
            journal, "study.log" or "journal:///FOLDER/study.log"; "redis://HOST"; or
            "grpc://HOST:PORT" of a `flatsearch serve-storage`.
        create: Whether a file that does not exist is made.
        wait: Whether a server that does not answer yet is waited for.
        kind: What is put around it.

    Returns:
        The storage, which waits for what goes away for a while, and notices dead workers.

    Raises:
        StorageError: If it cannot be reached, does not exist, or its driver is not installed.
    """
    given, url = url, _meant(url)
    scheme = url.partition("://")[0].partition("+")[0]
    file = _file_of(url)
    if file is not None and file.is_dir():
        raise StorageError(f"storage {given!r} cannot be opened: {str(file)!r} is a folder")
    if file is not None and not file.exists():
        if not create:
            raise StorageError(
                f"storage {given!r} does not exist; give `storage`, or run a search first"
            )
        if not file.absolute().parent.is_dir():
            raise StorageError(f"storage {given!r} cannot be made: no folder {str(file.parent)!r}")
    seconds = PATIENCE_SECONDS if wait else _OPEN_SECONDS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            retrying = Retrying(
                retry=retry_if_exception(
                    lambda error: _is_made_elsewhere(error) or (wait and passes(error))
                ),
                wait=BACKOFF,
                stop=stop_after_delay(seconds),
                reraise=True,
            )
            backend = retrying(_OPENERS.get(scheme, _open_database), url)
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        extra = _EXTRAS.get(scheme)
        how = f"; pip install 'flatsearch[{extra}]'" if extra else f"; accepted: {KINDS}"
        if "+" in given.partition("://")[0] and extra:  # another driver than the extra's
            how = f"; write {scheme}:// for that of 'flatsearch[{extra}]'"
        raise StorageError(f"storage {given!r} needs a driver: {reason(error)}{how}") from None
    except Exception as error:
        line = damaged_line(file) if scheme == "journal" and file is not None else None
        why = f"it is damaged in line {line}" if line is not None else reason(error)
        raise StorageError(f"storage {given!r} cannot be opened: {why}") from None
    return kind(backend, hide_passwords(given), file=file)


def _meant(url: str) -> str:
    """Return a storage's URL with the driver's name; a path gets that of its kind.

    Raises:
        StorageError: If it is no URL; says which one was meant.

    Example:
        >>> _meant("postgres://HOST/DB"), _meant("./study.log")
        ('postgresql+psycopg://HOST/DB', 'journal:///./study.log')
    """
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if not colon:
        if url.endswith((".log", ".journal", ".jsonl")):
            return f"journal:///{url}"
        meant = f" (did you mean 'sqlite:///{url}'?)" if _looks_like_sqlite(url) else ""
        raise StorageError(f"storage {shown_storage(url)!r} is no URL{meant}; accepted: {KINDS}")
    if scheme == "sqlite" and rest and not rest.startswith("/"):
        raise StorageError(f"storage {url!r} has a slash too few: sqlite:///{rest}")
    kind = scheme.partition("+")[0]
    if kind == "sqlite" and _IN_MEMORY.search(rest):
        raise StorageError(
            f"storage {url!r} names no file, so that all is gone when this process ends; give"
            " sqlite:///FILE.db"
        )
    if kind not in {"sqlite", "journal"} and re.search(r"\s", rest.rpartition("@")[0]):
        raise StorageError(
            f"storage {scheme}://... has a space before its @: in a name or password it must be"
            " written as %20"
        )
    return f"{_DRIVERS.get(scheme, scheme)}://{rest}"


def _looks_like_sqlite(name: str) -> bool:
    return bool(re.fullmatch(r"[^:]+\.(db|db3|sqlite|sqlite3)|[\w./-]+", name))


def _file_of(url: str) -> Path | None:
    """Return the file that holds a storage, if it is one."""
    scheme, _, rest = url.partition("://")
    if scheme == "journal":
        path = Path(rest.removeprefix("/"))
        # As with SQLite one more slash begins an absolute path; who has left it out meant that.
        return path if path.parent.is_dir() or not Path(rest).parent.is_dir() else Path(rest)
    if scheme.partition("+")[0] == "sqlite":
        database = sqlalchemy.make_url(url).database
        return Path(database) if database and database != ":memory:" else None
    return None


def _is_made_elsewhere(error: BaseException) -> bool:
    return "already exists" in reason(error) or isinstance(error, sqlalchemy.exc.IntegrityError)


def _open_database(url: str) -> optuna.storages.BaseStorage:
    arguments = _CONNECTIONS.get(url.partition("://")[0].partition("+")[0], {})
    try:
        sqlalchemy.make_url(url)
    except ValueError:
        raise ValueError(
            "its port is no number; an address of IPv6 is written in brackets"
        ) from None
    # Optuna fills in what is in braces; a password may have some.
    plain = url.replace("{", "{{").replace("}", "}}")
    kind = _Sqlite if url.startswith("sqlite") else optuna.storages.RDBStorage
    database = kind(plain, {"connect_args": arguments})
    return optuna.storages.get_storage(database)  # with a cache


class _Sqlite(optuna.storages.RDBStorage):
    """SQLite, where only one worker takes a waiting trial.

    Optuna looks at a trial's state and then changes it. Other databases lock the row from the look
    on; SQLite begins its transaction with the change, and two workers could both have looked.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = threading.local()
        sqlalchemy.event.listen(self.engine, "begin", self._begin)

    def _begin(self, connection: sqlalchemy.Connection) -> None:
        if getattr(self._thread, "changes", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        self._thread.changes = True
        try:
            return super().set_trial_state_values(trial_id, state, values)
        finally:
            self._thread.changes = False


def _open_journal(url: str) -> optuna.storages.BaseStorage:
    found = _file_of(url)
    assert found is not None  # noqa: S101 - for the type checker
    # Absolute: the lock is a link to the file, in the file's folder.
    file = found.absolute()
    if file.exists() and not is_journal(file):
        raise ValueError("the file is no journal of Optuna's")
    return optuna.storages.JournalStorage(JournalFileBackend(str(file), lock_obj=JournalLock(file)))


def _address(url: str) -> SplitResult:
    """Return the parts of a URL; parts of a password are not taken for them, and printed.

    Raises:
        ValueError: Says which part is wrong.
    """
    address = urlsplit(url)
    if "@" in address.path + address.query + address.fragment:
        raise ValueError("in a password / ? # must be written as %2F %3F %23")
    return address


def address_family(host: str) -> socket.AddressFamily:
    """Return the kind of a host's address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def bracketed(host: str) -> str:
    """Return a host as it is written before a port: an address of IPv6 in brackets."""
    return f"[{host}]" if address_family(host) == socket.AF_INET6 else host


def _open_redis(url: str) -> optuna.storages.BaseStorage:
    number = _address(url).path.strip("/")
    if number and not number.isdecimal():  # which redis leaves out without a word
        raise ValueError(f"the database {number!r} is no number")
    return optuna.storages.JournalStorage(JournalRedisBackend(url))


def _open_proxy(url: str) -> optuna.storages.BaseStorage:
    address = _address(url)
    if not address.hostname:
        raise ValueError("it must be grpc://HOST:PORT")
    host, port = bracketed(address.hostname), address.port or _GRPC_PORT
    proxy = optuna.storages.GrpcStorageProxy(host=host, port=port)
    with contextlib.suppress(KeyError):  # there is no such study; but is there a server?
        proxy.get_study_id_from_name("")
    return proxy


_OPENERS: dict[str, Callable[[str], optuna.storages.BaseStorage]] = {
    "journal": _open_journal,
    "redis": _open_redis,
    "rediss": _open_redis,
    "grpc": _open_proxy,
}


def serve_storage(url: str, host: str, port: int, say: Callable[[str], None]) -> None:
    """Let others use a storage through Optuna's gRPC proxy, until interrupted.

    Args:
        url: The storage; it is waited for.
        host: Name or address to listen on.
        port: Number.
        say: Told the address.

    Raises:
        UsageError: If gRPC is not installed, or nothing can listen there.
    """
    if importlib.util.find_spec("grpc") is None:
        raise UsageError("serving a storage needs gRPC: pip install 'flatsearch[grpc]'")
    # The public function never says that the server listens.
    from optuna.storages._grpc.server import make_server

    try:
        # gRPC itself would share the port with whatever listens there.
        with socket.create_server((host, port), family=address_family(host)):
            pass
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {host}:{port}: {why}; give another `port`") from None
    # Trials are those of its clients, and what is acknowledged is stored.
    storage = open_storage(url, wait=True, kind=PatientStorage)  # type: ignore[type-abstract]
    server = make_server(storage, bracketed(host), port)
    server.start()
    say(f"grpc://{bracketed(host)}:{port}")
    server.wait_for_termination()


class _ArtifactFolder(FileSystemArtifactStore):
    """A folder of files that says in one line when it cannot be written to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file; see Optuna."""
        try:
            super().write(artifact_id, content_body)
        except OSError as error:
            with contextlib.suppress(OSError):  # half a file
                (self._folder / artifact_id).unlink()
            raise StorageError(
                f"`artifacts` {str(self._folder)!r} cannot be written to: {error.strerror};"
                " finished trials are kept: the same command goes on when it can"
            ) from error


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
    try:  # rights alone do not tell: nobody makes a folder in /proc
        with tempfile.TemporaryDirectory(dir=nearest):
            pass
    except OSError:
        raise UsageError(f"`artifacts` {name!r} is not a folder that can be written to") from None
    return _ArtifactFolder(folder)


def artifacts_of(study: optuna.Study) -> str:
    """Return where a study's files are, as the search was told."""
    return str((StudyRecord(study).run or {}).get("artifacts") or DEFAULT_ARTIFACTS)
