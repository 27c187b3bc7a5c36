"""Replay pruners and samplers on the recorded tables: regret against epochs spent.

    python scripts/experiments/replay.py [TABLE ...] [--studies 200] [--out FILE]

A simulated study draws the networks of a table in random order; a trial reports the recorded
metrics epoch by epoch to a real Optuna study, and the pruner decides. The study returns the network
with the best final validation accuracy among its complete trials; its *regret* is the best final
test accuracy of the table less that network's (with the objectives accuracy and flatness: the
share of the table's hypervolume that the complete trials do not cover). The study without pruning
has TRIALS trials; the others may take as many as fit into its epochs. Reported per table and
pruner, over the same studies, with 95% intervals from resampling them: the epochs until the
unpruned study's final regret is reached, as a share of all of its epochs; the mean regret at a
third of them and at the end, and the difference from successive halving and Hyperband there; and
what happens in TRIALS trials, pruned or not: the share of the epochs, and the regret.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
import tables
from optuna.pruners import (
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

import flatsearch
from flatsearch.analysis.intervals import bootstrap
from flatsearch.record import write_trial
from flatsearch.settings import RunSettings
from flatsearch.signals.table import FLATNESS, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable

TRIALS = 40
# Names of the metrics that the product reports, and their columns.
METRICS = {
    "accuracy": "accuracy",
    "loss": "loss",
    "train_loss": "train_loss",
    "train_accuracy": "train_accuracy",
    "flatness": "kappa_last",
    "hessian_trace": "trace_last",
    "flatness_all": "kappa_all",
    "hessian_trace_all": "trace_all",
}
ALL = ("flatness_all", "hessian_trace_all")
FIXED = {"parameters": "z.parameters", "flops": "z.flops"}
LAST = tuple(name for name in SIGNALS if name not in ALL)
WITHOUT = tuple(name for name in SIGNALS if name not in FLATNESS)


def pruners(epochs: int, several: bool) -> dict[str, Callable[[], optuna.pruners.BasePruner]]:
    """Return everything that is compared, by name."""

    def shown(rule: Callable[[], optuna.pruners.BasePruner]):
        if several:
            return lambda: flatsearch.ParetoPruner(rule())
        return rule

    def by_flatness(direction: str):
        return lambda: flatsearch.MetricPruner(
            "flatness", PercentilePruner(75.0), direction=direction
        )

    return {
        "none": NopPruner,
        "median": shown(MedianPruner),
        "percentile 25": shown(lambda: PercentilePruner(25.0)),
        "successive halving": shown(SuccessiveHalvingPruner),
        "hyperband": shown(lambda: HyperbandPruner(max_resource=epochs)),
        "flatness, small pruned": by_flatness("maximize"),
        "flatness, large pruned": by_flatness("minimize"),
        "calibrated": flatsearch.FlatnessPruner,
        "calibrated, last layer": lambda: flatsearch.FlatnessPruner(signals=LAST),
        "calibrated, no kappa": lambda: flatsearch.FlatnessPruner(signals=WITHOUT),
    }


class Table:
    """A table as plain numbers."""

    def __init__(self, name: str, several: bool) -> None:
        curves = tables.load(name)
        self.epochs, self.n = curves.epochs, len(curves)
        settings = RunSettings(epochs=self.epochs)
        self.steps = [
            {
                m: curves.column(c, epoch)
                for m, c in METRICS.items()
                if m not in ALL or settings.measures_all(epoch)
            }
            for epoch in range(1, self.epochs + 1)
        ]
        self.fixed = {m: curves.column(c) for m, c in FIXED.items()}
        self.test = curves.target() * (0.01 if curves.published else 1.0)
        self.validation = curves.column("accuracy")
        self.several = several
        self.points = np.stack([self.validation, -np.log(curves.column("kappa_last"))], 1)
        self.reference = self.points.min(0)
        self.volume = self.hypervolume(range(self.n)) if several else math.nan

    def hypervolume(self, chosen) -> float:
        """Return the area that networks dominate, of accuracy and -log flatness."""
        area, best = 0.0, self.reference[1]
        for index in sorted(chosen, key=lambda i: -self.points[i, 0]):
            x, y = self.points[index] - self.reference
            if self.points[index, 1] > best:
                area += x * (self.points[index, 1] - best)
                best = self.points[index, 1]
            del y
        return area

    def regret(self, complete: list[int]) -> float:
        """Return the regret of a study with these complete trials."""
        if not complete:
            return float(self.test.max() - self.test.min()) if not self.several else 1.0
        if self.several:
            return 1.0 - self.hypervolume(complete) / self.volume
        best = max(complete, key=lambda i: self.validation[i])
        return float(self.test.max() - self.test[best])


def simulate(
    table: Table, order: np.ndarray, pruner: optuna.pruners.BasePruner, budget: int
) -> list[tuple[int, float]]:
    """Run a study until the epochs or the networks are used up.

    Returns:
        After every trial, (epochs spent so far, regret).
    """
    directions = ["maximize", "minimize"] if table.several else ["maximize"]
    study = optuna.create_study(directions=directions, pruner=pruner, study_name=f"{order[:4]}")
    study.set_metric_names(["accuracy", "flatness"][: len(directions)])
    spent, complete, curve = 0, [], []
    for index in order:
        trial = study.ask()
        fixed = {name: float(column[index]) for name, column in table.fixed.items()}
        write_trial(trial, metrics=fixed)
        metrics: dict[str, float] = {}
        for step, columns in enumerate(table.steps):
            if spent == budget:
                return curve
            spent += 1
            metrics = {m: float(column[index]) for m, column in columns.items()}
            flatsearch.report(trial, step, **metrics)
            if step + 1 < table.epochs and flatsearch.should_prune(trial):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                curve.append((spent, table.regret(complete)))
                break
        else:
            values = [metrics[name] for name in study.metric_names]
            write_trial(trial, metrics=metrics)
            study.tell(trial, values)
            complete.append(int(index))
            curve.append((spent, table.regret(complete)))
    return curve


def at(curve: list[tuple[int, float]], spent: float, start: float) -> float:
    """Return the regret after so many epochs."""
    found = start
    for epochs, regret in curve:
        if epochs > spent:
            break
        found = regret
    return found


def replay(job) -> dict[str, list[float]]:
    """Run one study with every pruner.

    Returns:
        Share of the epochs until the unpruned regret, regret at a third, at the end; share of the
        epochs of as many trials, their regret.
    """
    name, several, seed, chosen = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = Table(name, several)
    order = np.random.default_rng(seed).permutation(table.n)
    budget = min(TRIALS, table.n) * table.epochs
    plain = simulate(table, order, NopPruner(), budget)
    goal, start = plain[-1][1], table.regret([])
    found = {}
    for label, make in pruners(table.epochs, several).items():
        if chosen and label not in chosen:
            continue
        curve = plain if label == "none" else simulate(table, order, make(), budget)
        reached = next((epochs for epochs, regret in curve if regret <= goal + 1e-12), math.inf)
        same = curve[min(len(curve), len(plain)) - 1]
        found[label] = [
            reached / budget, at(curve, budget / 3, start), at(curve, budget, start),
            same[0] / budget, same[1],
        ]  # fmt: skip
    return found


def interval(values: np.ndarray, statistic=np.mean) -> list[float]:
    """Return [value, low, high], a percentile bootstrap over studies."""
    return list(bootstrap(statistic, values, times=500))


def summarise(studies: list[dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Return the statistics of every pruner."""
    stacked = {label: np.array([study[label] for study in studies]) for label in studies[0]}
    result = {}
    for label, values in stacked.items():
        result[label] = {
            "epochs to the unpruned regret": interval(values[:, 0], np.median),
            "regret at a third": interval(values[:, 1]),
            "regret at the end": interval(values[:, 2]),
            "epochs of the same trials": interval(values[:, 3]),
            "regret of the same trials": interval(values[:, 4]),
        }
        for other in ("successive halving", "hyperband", "calibrated, no kappa"):
            if other in stacked and label.startswith("calibrated") and label != other:
                for column, when in ((1, "a third"), (2, "the end")):
                    difference = values[:, column] - stacked[other][:, column]
                    result[label][f"less {other} at {when}"] = interval(difference)
    return result


def main() -> None:
    """Write the replays and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=None)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--pruners", nargs="*", default=[])
    parser.add_argument("--objectives", choices=("accuracy", "accuracy,flatness"), nargs="*",
                        default=["accuracy", "accuracy,flatness"])  # fmt: skip
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = {}
    names = args.tables or [n for n in tables.names() if "nasbench201" not in n]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for name in names:
            for objectives in args.objectives:
                started = time.perf_counter()
                jobs = [
                    (name, "," in objectives, seed, args.pruners) for seed in range(args.studies)
                ]
                found = summarise(pool.map(replay, jobs, chunksize=2))
                key = f"{name} {objectives}"
                results[key] = found
                seconds = time.perf_counter() - started
                print(f"\n{key} ({args.studies} studies, {seconds:.0f} s)")
                for label, statistics in found.items():
                    print(f"  {label:24}", *(
                        f"{v[0]:.4f} [{v[1]:.4f}, {v[2]:.4f}]" for v in statistics.values()
                    ))  # fmt: skip
    if args.out:
        fields = {"trials": TRIALS, "studies": args.studies, "tables": results}
        args.out.write_text(json.dumps(fields, indent=1) + "\n")


if __name__ == "__main__":
    main()
