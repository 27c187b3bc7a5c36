"""What a storage costs a study with many workers, and whether that stays the same.

    python scripts/benchmarks/soak.py [KIND ...] [--trials 5000] [--workers 16] [--seconds 0]

Trials of one parameter wait for `--seconds` in all, record three epochs and ask the pruner after
each; what is measured is everything around the training. Of every trial its worker notes the memory
of its process, the processor time of the decisions (sampler and pruner), and the time and processor
time in the storage; of the storage's own process the processor time is taken. Every tenth of the
trials has its medians and its trials per second. What the last one has beside the second, in which
all is warm, is the verdict: memory may grow by 5%, and what a trial takes by a quarter. `--minutes`
ends a run early, with the trials that it has by then.

With several numbers of workers (`--workers 1 4 16 --each 5 --seconds 1 --out scaling.json`) the
result is what `docs/storages.md` estimates from. It goes to scripts/results/soak.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import psutil
from faults import KINDS, OTHERS, Objective, storage_of

import flatsearch
from flatsearch import record
from flatsearch.search.leases import WorkerStorage
from flatsearch.search.loop import run_study
from flatsearch.search.storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.trial import FrozenTrial

    from flatsearch.search.control import Control

RESULTS = Path(__file__).parents[1] / "results"
STUDY = "soak"
# What is noted of a trial.
NOTES = ("number", "at", "memory", "decision", "storage", "storage_cpu")
# By how much the last tenth may be above the second.
GROWTH = {"memory_mb": 0.05, "trial_ms": 0.25, "decision_ms": 0.25, "storage_cpu_ms": 0.25}
PROGRESS_SECONDS = 30.0


class Timed(WorkerStorage):
    """A storage that takes the time that is spent in it."""

    spent = spent_cpu = 0.0
    _inside = False

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._inside, began, began_cpu = True, time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self._inside = False
            self.spent += time.perf_counter() - began
            self.spent_cpu += time.thread_time() - began_cpu

    def ask(self, call: Callable[[], Any]) -> Any:
        """Ask the storage."""
        with self._clock():
            return super().ask(call)

    def _write_or_wait(self, *arguments: Any) -> None:
        with self._clock():
            super()._write_or_wait(*arguments)


class Deciding(Objective):
    """Asks the pruner after every epoch."""

    decision = 0.0

    @contextlib.contextmanager
    def _clock(self, storage: Timed) -> Iterator[None]:
        began = time.thread_time() - storage.spent_cpu
        yield
        self.decision += time.thread_time() - storage.spent_cpu - began

    def run(self, trial: optuna.Trial, control: Control) -> tuple[float, float]:
        """Record three epochs, each of a third of the time."""
        storage: Any = trial.study._storage
        with self._clock(storage):
            x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            time.sleep(self._seconds / 3)
            control.check()
            flatsearch.report(trial, step, accuracy=x, flatness=(1 - x) ** 2)
            with self._clock(storage):
                pruned = flatsearch.should_prune(trial)
            if pruned:
                raise optuna.TrialPruned
        return x, (1 - x) ** 2


def work(url: str, notes: str, seconds: float, trials: int, timeout: float | None) -> None:
    """Be a worker, and note every trial."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    storage, objective = open_storage(url, wait=True, kind=Timed), Deciding(seconds)
    process, file = psutil.Process(), Path(notes).open("w", buffering=1)  # noqa: SIM115
    before = [0.0, 0.0, 0.0]

    def note(_: optuna.Study, trial: FrozenTrial) -> None:
        if not record.TrialRecord(trial).trained:  # one too many
            return
        now = [objective.decision, storage.spent, storage.spent_cpu]
        spent = [after - earlier for after, earlier in zip(now, before, strict=True)]
        before[:] = now
        memory = process.memory_info().rss
        file.write(json.dumps([trial.number, time.time(), memory, *spent]) + "\n")

    study = optuna.load_study(
        study_name=STUDY,
        storage=storage,
        sampler=optuna.samplers.RandomSampler(seed=os.getpid()),
        pruner=flatsearch.FlatnessPruner(),
    )
    run_study(study, objective, target=trials, timeout=timeout, on_trial=note)


def processor_seconds(pids: list[int]) -> float:
    """Return what processes and their children have used."""
    found = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found += sum(psutil.Process(pid).cpu_times()[:2])
    if pids:  # those that have ended
        found += sum(psutil.Process(pids[0]).cpu_times()[2:4])
    return found


def tenths_of(rows: list[list[float]]) -> dict[str, list[float]]:
    """Return what trials of each tenth have cost: medians, and the time from one to the next."""
    edges = [len(rows) * part // 10 for part in range(11)]
    found: dict[str, list[float]] = {}
    for begin, end in itertools.pairwise(edges):
        part = rows[begin:end]
        memory, decision, storage, cpu = (
            statistics.median(row[i] for row in part) for i in range(2, len(NOTES))
        )
        tenth = {
            "memory_mb": memory / 1e6,
            "trial_ms": 1000 * (part[-1][1] - rows[max(0, begin - 1)][1]) / len(part),
            "decision_ms": 1000 * decision,
            "storage_ms": 1000 * storage,
            "storage_cpu_ms": 1000 * cpu,
        }
        for key, value in tenth.items():
            found.setdefault(key, []).append(round(value, 2))
    return found


def grown(tenths: dict[str, list[float]]) -> dict[str, str]:
    """Return the verdict on everything that should stay the same."""
    found = {}
    for key, most in GROWTH.items():
        growth = tenths[key][-1] / tenths[key][1] - 1
        found[key] = f"{'flat' if growth <= most else 'GROWS'} ({growth:+.1%})"
    return found


def measured(
    kind: str, workers: int, trials: int, seconds: float, timeout: float | None = None
) -> dict[str, Any]:
    """Run a study on a new storage, and return what it has cost."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flatsearch.search.loop", "sqlalchemy.orm"])
    with tempfile.TemporaryDirectory() as name, storage_of(kind, Path(name)) as storage:
        study = optuna.create_study(
            study_name=STUDY,
            storage=open_storage(storage.url, wait=True),
            directions=["maximize", "minimize"],
        )
        record.write_study(study, settings=flatsearch.RunSettings(epochs=3).to_dict())
        processes = [
            context.Process(
                target=work, args=(storage.url, f"{name}/notes-{i}", seconds, trials, timeout)
            )
            for i in range(workers)
        ]
        for process in processes:
            process.start()
        begun, before, served, said = 0, 0.0, 0.0, time.monotonic()
        while any(process.is_alive() for process in processes):
            time.sleep(0.2)
            served = processor_seconds(storage.pids())
            noted = [len(file.read_text().splitlines()) for file in Path(name).glob("notes-*")]
            if not begun and len(noted) == workers and all(noted):
                begun, before = sum(noted), served  # all have connected
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                print(f"{kind}: {sum(noted)} of {trials}", file=sys.stderr, flush=True)
        exits = [process.exitcode for process in processes]
        rows = sorted(
            # What a worker does for its first trial, it does once.
            (
                json.loads(line)
                for file in Path(name).glob("notes-*")
                for line in file.read_text().splitlines()[1:]
            ),
            key=lambda row: row[1],
        )
    tenth = len(rows) // 10
    tenths = tenths_of(rows) if tenth > 1 else {}  # too few to say
    return {
        "kind": kind,
        "workers": workers,
        "trials": len(rows),
        "seconds": seconds,
        "bad_exits": sum(code != 0 for code in exits),
        "trials_per_second": round((len(rows) - tenth) / (rows[-1][1] - rows[tenth][1]), 2),
        "server_ms": round(1000 * (served - before) / (len(rows) + workers - begun), 2),
        "client_ms": round(1000 * statistics.fmean(row[5] for row in rows[tenth:]), 2),
        **({"verdict": grown(tenths), **tenths} if tenths else {}),
    }


def main() -> int:
    """Measure every kind with every number of workers, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=[], choices=[*KINDS, *OTHERS, []])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--workers", type=int, nargs="+", default=[16])
    parser.add_argument("--each", type=int, help="instead, trials for each worker")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, help="after which no new trial begins")
    parser.add_argument("--out", default="soak.json")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    environment = {
        "optuna": optuna.__version__,
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)),
    }
    file = RESULTS / options.out
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    for kind in options.kinds or KINDS:
        for workers in options.workers:
            trials = options.each * workers if options.each else options.trials
            timeout = 60 * options.minutes if options.minutes else None
            run = measured(kind, workers, trials, options.seconds, timeout)
            print(json.dumps(run), flush=True)
            # What is there of others is kept: it can be run in parts.
            runs = [r for r in runs if (r["kind"], r["workers"]) != (kind, workers)] + [run]
            written = ",\n  ".join(json.dumps(row) for row in runs)
            head = json.dumps(environment)
            file.write_text(f'{{"environment": {head}, "runs": [\n  {written}\n]}}\n')
    return int(any(run["bad_exits"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
