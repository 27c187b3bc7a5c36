"""Replay pruners on random halves of the recorded tables: regret against the time spent.

    python scripts/experiments/replay.py [TABLE ...] [--studies 40] [--out FILE]

A simulated study draws the networks of a random half of a table, so that every study has other best
networks; a trial reports the recorded metrics epoch by epoch to a real Optuna study, and the pruner
decides. The study returns the network with the best final validation accuracy among its complete
trials, and of equals the one with the lowest validation loss; its *regret* is the best final test
accuracy of the half less that network's (with the objectives accuracy and flatness: the share of
the half's hypervolume that the complete trials do not cover). The study without pruning has TRIALS
trials; the others may take as many as fit into its time.

Time is counted in epochs of training. A pruner that looks at flatness pays for measuring it, as
`benchmarks/signals.py` has found (scripts/results/signals-cpu.json), and so does every study that
has flatness as an objective; nothing else costs anything. Pruners of one metric are shown the
validation accuracy, and once more the training loss.

Per table and pruner, over the same studies, with 95% intervals from resampling the studies, which
say nothing about other tables: the time until the mean regret is that of the finished studies
without pruning, as a share of all of their time; the mean regret at a third of it and at the end,
and the calibrated rule's less that of others there; and what happens in TRIALS trials, pruned or
not: the share of the time and of the epochs, and the regret. Of all tables together, the mean of
the tables' values with the least and the largest: there are as many independent observations as
tables.
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
from flatsearch.record import write_trial
from flatsearch.settings import RunSettings
from flatsearch.signals.table import FLATNESS, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable

TRIALS = 20
GRID = np.arange(1, 101) / 100
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
COSTS = Path(__file__).resolve().parents[1] / "results" / "signals-cpu.json"
PROBE = 128  # images that flatness was recorded on; of the default of the product it costs double
RESAMPLES = 500
# The calibrated rule's regret is compared with that of these.
OTHERS = (
    "median", "median, training loss", "successive halving, training loss", "hyperband",
    "calibrated, no flatness",
)  # fmt: skip
WITHOUT = tuple(name for name in SIGNALS if name not in FLATNESS)


def pruners(epochs: int, several: bool) -> dict[str, Callable[[], optuna.pruners.BasePruner]]:
    """Return everything that is compared, by name."""
    rivals: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": MedianPruner,
        "percentile 25": lambda: PercentilePruner(25.0),
        "successive halving": SuccessiveHalvingPruner,
        "hyperband": lambda: HyperbandPruner(max_resource=epochs),
    }

    def shown(make: Callable[[], optuna.pruners.BasePruner]):
        return (lambda: flatsearch.ParetoPruner(make())) if several else make

    def on(metric: str, make: Callable[[], optuna.pruners.BasePruner], direction: str):
        return lambda: flatsearch.MetricPruner(metric, make(), direction=direction)

    def quarter() -> optuna.pruners.BasePruner:
        return PercentilePruner(75.0)

    return {
        "none": NopPruner,
        **{name: shown(make) for name, make in rivals.items()},
        **{
            f"{name}, training loss": on("train_loss", rivals[name], "minimize")
            for name in ("median", "successive halving", "hyperband")
        },
        "flattest quarter pruned": on("flatness", quarter, "maximize"),
        "sharpest quarter pruned": on("flatness", quarter, "minimize"),
        "calibrated": flatsearch.FlatnessPruner,
        "calibrated, no flatness": lambda: flatsearch.FlatnessPruner(signals=WITHOUT),
    }


def looks_at(label: str) -> tuple[str, ...]:
    """Return the measures of flatness that a pruner pays for."""
    if label == "calibrated":
        return ("flatness", "flatness_all")
    return ("flatness",) if "quarter" in label else ()


def measuring(images: int, probe: int = PROBE) -> dict[str, float]:
    """Return what measuring flatness takes, in epochs of training on so many images."""
    costs = json.loads(COSTS.read_text())
    return {
        name: costs["costs"][name]["median"] * probe / costs["images"] / images
        for name in ("flatness", "flatness_all")
    }


class Table:
    """A table, or some of its networks, as plain numbers."""

    def __init__(self, name: str, several: bool, chosen: np.ndarray | None = None) -> None:
        curves = tables.load(name)
        rows = np.arange(len(curves)) if chosen is None else chosen
        self.epochs, self.n = curves.epochs, len(rows)
        settings = RunSettings(epochs=self.epochs)
        self.steps = [
            {
                m: curves.column(c, epoch)[rows]
                for m, c in METRICS.items()
                if m not in ALL or settings.measures_all(epoch)
            }
            for epoch in range(1, self.epochs + 1)
        ]
        self.fixed = {m: curves.column(c)[rows] for m, c in FIXED.items()}
        self.measuring = measuring(curves.environment["settings"]["train"])
        self.test = curves.target()[rows] * (0.01 if curves.published else 1.0)
        self.validation = curves.column("accuracy")[rows]
        self.loss = curves.column("loss")[rows]
        self.several = several
        self.points = np.stack([self.validation, -np.log(curves.column("kappa_last")[rows])], 1)
        self.reference = self.points.min(0)
        self.volume = self.hypervolume(range(self.n)) if several else math.nan

    def seconds(self, step: int, pays_for: tuple[str, ...]) -> float:
        """Return the time of an epoch, training's being 1, with what is measured after it."""
        return 1 + sum(self.measuring[name] for name in pays_for if name in self.steps[step])

    def best(self, complete: list[int]) -> int:
        """Return the network that a study with these complete trials returns."""
        return max(complete, key=lambda i: (self.validation[i], -self.loss[i]))

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
        return float(self.test.max() - self.test[self.best(complete)])


def simulate(
    table: Table,
    order: np.ndarray,
    pruner: optuna.pruners.BasePruner,
    budget: float,
    pays_for: tuple[str, ...] = (),
) -> list[tuple[float, float, int]]:
    """Run a study until the time or the networks are used up.

    Returns:
        After every trial, (time spent so far, regret, epochs so far).
    """
    directions = ["maximize", "minimize"] if table.several else ["maximize"]
    study = optuna.create_study(directions=directions, pruner=pruner, study_name=f"{order[:4]}")
    study.set_metric_names(["accuracy", "flatness"][: len(directions)])
    spent, epochs = 0.0, 0
    complete: list[int] = []
    curve = []
    for index in order:
        trial = study.ask()
        fixed = {name: float(column[index]) for name, column in table.fixed.items()}
        write_trial(trial, metrics=fixed)
        metrics: dict[str, float] = {}
        for step, columns in enumerate(table.steps):
            spent, epochs = spent + table.seconds(step, pays_for), epochs + 1
            if spent > budget + 1e-9:
                return curve
            metrics = {m: float(column[index]) for m, column in columns.items()}
            flatsearch.report(trial, step, **metrics)
            if step + 1 < table.epochs and flatsearch.should_prune(trial):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            values = [metrics[name] for name in study.metric_names]
            write_trial(trial, metrics=metrics)
            study.tell(trial, values)
            complete.append(int(index))
        curve.append((spent, table.regret(complete), epochs))
    return curve


def at(curve: list[tuple[float, float, int]], spent: float, start: float) -> float:
    """Return the regret after so much time."""
    found = start
    for time_spent, regret, _ in curve:
        if time_spent > spent + 1e-9:
            break
        found = regret
    return found


def replay(job) -> dict[str, list[float]]:
    """Run one study with every pruner.

    Returns:
        The regret at every share of the time in `GRID`; then the share of the time and of the
        epochs of as many trials, and their regret.
    """
    name, several, seed, chosen = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    whole = len(tables.load(name))
    random = np.random.default_rng(seed)
    table = Table(name, several, random.permutation(whole)[: whole // 2])
    order = random.permutation(table.n)
    budget = min(TRIALS, table.n) * table.epochs
    start = table.regret([])
    found = {}
    for label, make in pruners(table.epochs, several).items():
        if chosen and label not in (*chosen, "none"):
            continue
        pays_for = looks_at(label) or ("flatness",) * several
        curve = simulate(table, order, make(), budget, pays_for)
        same = curve[min(len(curve), TRIALS) - 1]
        found[label] = [
            *(at(curve, share * budget, start) for share in GRID),
            same[0] / budget,
            same[2] / budget,
            same[1],
        ]
    return found


def interval(values: np.ndarray, statistic=np.mean) -> list[float]:
    """Return [value, low, high], a percentile bootstrap over studies."""
    return list(tables.bootstrap(statistic, values, times=RESAMPLES))


def reached(regrets: np.ndarray, goal: np.ndarray) -> float:
    """Return the share of the time after which the mean regret is that of other finished studies.

    Args:
        regrets: (studies, len(GRID)).
        goal: The regrets at the end of the others, (studies,).
    """
    there = regrets.mean(0) <= goal.mean() + 1e-12
    return float(GRID[there.argmax()]) if there.any() else math.inf


def summarise(studies: list[dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Return the statistics of every pruner."""
    stacked = {label: np.array([study[label] for study in studies]) for label in studies[0]}
    n, goal = len(GRID), stacked["none"][:, len(GRID) - 1]
    third = int(np.searchsorted(GRID, 1 / 3)) - 1  # the last point that is not after a third
    result = {}
    for label, values in stacked.items():
        result[label] = {
            "time to the unpruned regret": list(
                tables.bootstrap(reached, values[:, :n], goal, times=RESAMPLES)
            ),
            "regret at a third": interval(values[:, third]),
            "regret at the end": interval(values[:, n - 1]),
            "time of the same trials": interval(values[:, n]),
            "epochs of the same trials": interval(values[:, n + 1]),
            "regret of the same trials": interval(values[:, n + 2]),
        }
    for other in OTHERS:
        if other in stacked and "calibrated" in stacked:
            for column, when in ((third, "a third"), (n - 1, "the end")):
                difference = stacked["calibrated"][:, column] - stacked[other][:, column]
                result["calibrated"][f"less {other} at {when}"] = interval(difference)
    return result


def main() -> None:
    """Write the replays and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=None)
    parser.add_argument(
        "--studies", type=int, default=40, help="per table; half of them with two objectives"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--pruners", nargs="*", default=[])
    parser.add_argument("--objectives", choices=("accuracy", "accuracy,flatness"), nargs="*",
                        default=["accuracy", "accuracy,flatness"])  # fmt: skip
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, dict] = {}
    names = args.tables or tables.trained()
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for objectives in args.objectives:
            several = "," in objectives
            studies = args.studies // 2 if several else args.studies
            for name in names:
                started = time.perf_counter()
                jobs = [(name, several, seed, args.pruners) for seed in range(studies)]
                found = summarise(pool.map(replay, jobs, chunksize=2))
                key = f"{name} {objectives}"
                results[key] = {"studies": studies, "pruners": found}
                print(f"\n{key} ({studies} studies, {time.perf_counter() - started:.0f} s)")
                for label, statistics in found.items():
                    shown = (f"{v[0]:.4f} [{v[1]:.4f}, {v[2]:.4f}]" for v in statistics.values())
                    print(f"  {label:24}", *shown, flush=True)
                if args.out:
                    fields = {"trials": TRIALS, "probe": PROBE, "tables": results}
                    args.out.write_text(json.dumps(fields, indent=1) + "\n")


if __name__ == "__main__":
    main()
