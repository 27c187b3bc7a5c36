"""Kill workers while trials are parked and promoted, and check what that costs.

    python scripts/benchmarks/parked_faults.py [KIND ...] [--trials 60] [--workers 4] [--seconds 1]

As `faults.py` does, with trainings that are parked after their first epoch: of every four one goes
on to the end (at the third), in other trials. A training only waits, and writes down, in a file of
its worker's, each epoch when it begins and when it is over. From that, the raw records and the
folder of checkpoints it is checked that

- no epoch is trained twice, or begun and left, but one for each worker that was killed or stopped;
- no network is trained by two workers at once;
- exactly as many networks are trained as were asked for, none of them is left running or waiting,
  and a quarter of them, the best of their first epoch, has been trained to the end, in order;
- there are never more files than documented: one for each of the best parked networks, `keep`
  or twice as many as go on, and for each worker, running or killed, two.

The result is scripts/results/parked-faults.json.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import torch
from faults import STUDY, Round, play
from optuna.artifacts import FileSystemArtifactStore

import flatsearch
from flatsearch.record import TrialRecord, read_trials
from flatsearch.search.interrupts import Interrupted
from flatsearch.search.loop import run_study
from flatsearch.search.storage import open_storage
from flatsearch.search.trial_budget import finished_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsearch.search.control import Control

RESULT = Path(__file__).parents[1] / "results" / "parked-faults.json"
EPOCHS, KEEP, SHARE = 3, 50, 0.25


class Training:
    """Waits, and writes down what it does."""

    def __init__(self, trial: optuna.Trial, file: Path, seconds: float) -> None:
        self.x = trial.suggest_float("x", 0, 1)
        self.done, self.control = 0, None
        self._trial, self._file, self._seconds = trial.number, file, seconds

    def _note(self, what: str) -> None:
        line = [time.time(), self.x, f"{self._trial} by {os.getpid()}", self.done, what]
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def epoch(self) -> Mapping[str, float]:
        """Wait for an epoch's share of a trial."""
        self._note("begins")
        time.sleep(self._seconds / EPOCHS)
        self.done += 1
        self._note("ends")
        return {"loss": self.x / self.done}

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far, and 10 kB of weights."""
        return {"done": self.done, "weights": torch.zeros(2500)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after so many epochs."""
        self.done = state["done"]


class Objective:
    """What the loop of a worker runs."""

    def __init__(self, folder: Path, seconds: float) -> None:
        def start(trial: optuna.Trial) -> Training:
            return Training(trial, folder / f"epochs-{os.getpid()}", seconds)

        store = FileSystemArtifactStore(folder / "artifacts")
        self._inner = flatsearch.ResumableObjective(start, EPOCHS, ["loss"], artifact_store=store)
        self.space, self.settings = None, flatsearch.RunSettings()
        self.parking = self._inner.parking

    def run(self, trial: optuna.Trial, control: Control) -> Any:
        """Train as long as the pruner says."""
        control.check()
        return self._inner(trial)


def work(url: str, told: str, seconds: float, trials: int) -> None:
    """Be a worker."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = optuna.load_study(
        study_name=STUDY,
        storage=open_storage(url, wait=True),
        sampler=flatsearch.PromotionSampler(optuna.samplers.RandomSampler(seed=os.getpid())),
        pruner=flatsearch.OneRungPromoter(
            ("-loss",), promote=SHARE, epochs=EPOCHS, keep=KEEP, audit=0.0
        ),
    )
    objective: Any = Objective(Path(told).parent, seconds)
    with contextlib.suppress(Interrupted):
        run_study(study, objective, target=trials)


class ParkedRound(Round):
    """One study whose trials are parked."""

    work = staticmethod(work)
    directions = ("minimize",)
    most_files = 0

    def done(self, study: optuna.Study) -> int:
        """Return how many networks have had their turn, and count the checkpoints."""
        (self.folder / "artifacts").mkdir(exist_ok=True)
        files = len(os.listdir(self.folder / "artifacts"))  # noqa: PTH208 - they come and go
        self.most_files = max(self.most_files, files)
        return finished_count(study)

    def check(self, study: optuna.Study) -> dict[str, Any]:
        """Compare what was trained with what is stored."""
        events = sorted(
            json.loads(line)
            for file in self.folder.glob("epochs-*")
            for line in file.read_text().splitlines()
        )
        ended = [(x, epoch) for _, x, _, epoch, what in events if what == "ends"]
        begun = [x for _, x, _, _, what in events if what == "begins"]
        again = len(ended) - len(set(ended))
        left = len(begun) - len(ended)
        at_once = []
        for x in set(begun):
            turns = [turn for turn, _ in itertools.groupby(e[2] for e in events if e[1] == x)]
            if len(turns) > len(set(turns)):
                at_once.append(x)
        trials = read_trials(study.get_trials(deepcopy=False))
        networks = {t.begun_by: t.params["x"] for t in trials if t.trained}
        whole = [t for t in trials if t.complete]
        best = sorted(networks.values())[: round(SHARE * len(networks))]
        stopped = self.killed + self.plan.workers
        most = max(KEEP, 2 * len(best)) + 2 * (self.plan.workers + stopped)
        kept = len(list((self.folder / "artifacts").iterdir()))
        parked = {n for n in networks if n not in {t.begun_by for t in whole}}
        faults = {
            "epochs_lost": max(0, again + left - stopped),
            "at_once": at_once,
            "too_many": len(networks) - self.plan.trials,
            "twice": len(networks) - len(set(networks.values())),
            "unfinished": [t.number for t in trials if t.state in {"RUNNING", "WAITING"}],
            "wrong_promoted": sorted({t.params["x"] for t in whole} ^ set(best)),
            "wrong_curves": [
                t.number
                for t in whole
                if [round(m["loss"] * (s + 1), 9) for s, m in t.steps.items()]
                != [round(t.params["x"], 9)] * EPOCHS
            ],
            "too_many_files": max(0, self.most_files - most),
            # Of more networks the best now need not have been among the best before.
            "lost_files": max(0, len(parked) - kept) if len(networks) <= KEEP else 0,
            "bad_exits": self.bad_exits,
        }
        return {
            "networks": len(networks),
            "promoted": sum(TrialRecord(t.trial).promotion is not None for t in trials),
            "epochs": len(set(ended)),
            "epochs_lost": again + left,
            "stopped": stopped,
            "most_files": self.most_files,
            "files": kept,
            "faults": {k: v for k, v in faults.items() if v},
        }


if __name__ == "__main__":
    sys.exit(play(ParkedRound, ("postgres", "sqlite"), RESULT, __doc__))
