"""Do parked trials make samplers propose worse? On a made-up objective with epochs.

    python scripts/experiments/samplers_parked.py [--studies 20] [--out FILE]

A network is a point x of [0, 1]^6, and what it ends with is f(x) = sum (x_i - c_i)^2, to be
minimised; after epoch t of 12 it is f(x) + (1 - t / 12) (1 + z / 8), where z is a standard normal
number that belongs to the point. Forty networks each, or as many as there are epochs for:

- all of them trained to the end;
- parked and promoted (`HalvingPromoter`), the sampler shown what `PromotionSampler` shows;
- the same without it: parked trials are Optuna's PRUNED, and promotions trials of their own;
- parked and promoted, with as many networks as take the epochs of the first (not GP: it is slow);
- all trained to the end, but only as many as take the epochs of the second.

Reported: log10 of the smallest f among the networks, trained to the end or not, which says what was
proposed, and of the best one that was trained to the end, which says what was found; the mean over
studies and its standard error; and the share of the epochs. A row is written when it is done.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.artifacts import FileSystemArtifactStore

import flatsearch
from flatsearch.search.factories import make_sampler

if TYPE_CHECKING:
    from collections.abc import Mapping

SAMPLERS = ("tpe", "nsga2", "gp", "random")
NETWORKS, EPOCHS, SIZE = 40, 12, 6
RESULT = Path(__file__).resolve().parents[1] / "results" / "samplers-parked.json"
SAME_EPOCHS = "parked, the same epochs"
WHOLE, PARKED = "trained to the end", "parked"
FEWER = "trained to the end, the epochs of parked"
MODES = (WHOLE, PARKED, "parked, as they are told", SAME_EPOCHS, FEWER)


class Point:
    """A point in training."""

    trained: list[tuple[float, int]] = []  # noqa: RUF012 - of the study that runs

    def __init__(self, trial: optuna.Trial) -> None:
        x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(SIZE)])
        self.final = float(((x - np.linspace(0.2, 0.7, SIZE)) ** 2).sum())
        digits = np.round(x * 2**32).astype(np.uint64).tolist()
        self.noise = float(np.random.default_rng(digits).standard_normal())
        self.done = 0

    def epoch(self) -> Mapping[str, float]:
        """Train for an epoch."""
        self.done += 1
        self.trained.append((self.final, self.done))
        return {"loss": self.final + (1 - self.done / EPOCHS) * (1 + self.noise / 8)}

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after so many epochs."""
        self.done = state["done"]


def study_of(
    sampler: str, seed: int, mode: str, folder: str, networks: int = NETWORKS
) -> list[float]:
    """Run a study; return log10 of what was proposed and found, and the share of the epochs."""
    Point.trained = []
    asked = make_sampler(sampler, seed)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if mode not in {WHOLE, FEWER}:
        pruner = flatsearch.HalvingPromoter(("-loss",), epochs=EPOCHS)
    if mode in {PARKED, SAME_EPOCHS}:
        asked = flatsearch.PromotionSampler(asked)
    study = optuna.create_study(sampler=asked, pruner=pruner, study_name=f"{sampler}{seed}")
    study.set_metric_names(["loss"])
    store = FileSystemArtifactStore(folder)
    objective = flatsearch.ResumableObjective(Point, EPOCHS, ["loss"], artifact_store=store)

    def goes_on() -> bool:
        if mode == SAME_EPOCHS:
            return len(Point.trained) < NETWORKS * EPOCHS
        return sum(done == 1 for _, done in Point.trained) < networks

    while goes_on():
        study.optimize(objective, n_trials=1)
    flatsearch.finish(study, objective)
    proposed = min(final for final, _ in Point.trained)
    found = min(final for final, done in Point.trained if done == EPOCHS)
    spent = len(Point.trained) / (NETWORKS * EPOCHS)
    return [math.log10(proposed), math.log10(found), spent]


def main() -> None:
    """Run all studies; print and write what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS, choices=SAMPLERS)
    parser.add_argument("--out", type=Path, default=RESULT, help="rows that are there are kept")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    done = {(row["sampler"], row["mode"]) for row in rows}
    for sampler in args.samplers:
        for mode in MODES:
            if (sampler, mode) in done or (sampler, mode) == ("gp", SAME_EPOCHS):
                continue
            networks = NETWORKS
            if mode == FEWER:
                (row,) = (r for r in rows if (r["sampler"], r["mode"]) == (sampler, PARKED))
                networks = math.ceil(NETWORKS * row["epochs"][0])
            with tempfile.TemporaryDirectory() as folder:
                found = np.array([
                    study_of(sampler, seed, mode, folder, networks) for seed in range(args.studies)
                ])
            mean, error = found.mean(0), found.std(0, ddof=1) / math.sqrt(args.studies)
            named = zip(("proposed", "found", "epochs"), mean, error, strict=True)
            row = {name: [round(float(m), 3), round(float(e), 3)] for name, m, e in named}
            rows.append({"sampler": sampler, "mode": mode, "studies": args.studies, **row})
            print(rows[-1], flush=True)
            args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
