"""What pruning and the loop around a trial cost.

    python scripts/benchmarks/pruning.py [--peer FOLDER] [--out scripts/results/pruning-cpu.json]

1. One decision (`flatsearch.should_prune` after a report) beside 10, 200, 2,000 and 5,000 finished
   trials of 8 steps, in memory; median of 30, after one to warm up. Beside it Optuna's MedianPruner
   in a single-objective study, and with --peer the OptunaHub package `multi_metric_pruner`
   (FOLDER is a checkout's `package/pruners/multi_metric_pruner`).
2. The time of a trial of `FlatnessObjective` outside training and measuring: suggesting, building,
   telling it from others, counting its cost, recording; in memory, `resnet_small` on digits. Median
   of 20 trials.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import optuna

import flatsearch
from flatsearch.training.trainer import Trainer

SIZES = (10, 200, 2_000, 5_000)
STEPS, REPEATS = 8, 30
NAMES = ["accuracy", "flatness"]


def median() -> optuna.pruners.BasePruner:
    """Return the rule that all are compared with."""
    return optuna.pruners.MedianPruner(n_startup_trials=5)


def filled(n: int, pruner, store) -> optuna.Study:
    """Return a two-objective study with n complete trials, with curves stored by a function."""
    study = optuna.create_study(directions=["maximize", "minimize"], pruner=pruner)
    study.set_metric_names(NAMES)
    curves = np.random.default_rng(0).uniform(0, 1, (n, STEPS, 2))
    for curve in curves:
        study.add_trial(
            optuna.trial.create_trial(values=curve[-1].tolist(), user_attrs=store(curve.tolist()))
        )
    return study


def ours(curve) -> dict:
    """Return a curve as flatsearch stores it."""
    return {f"flatsearch:step:{s}": dict(zip(NAMES, v, strict=True)) for s, v in enumerate(curve)}


def peers(curve) -> dict:
    """Return a curve as the OptunaHub package stores it."""
    values = {str(s): dict(zip(NAMES, v, strict=True)) for s, v in enumerate(curve)}
    return {"multi_pruner:values": values}


def decision(study: optuna.Study, report, prune, before=lambda: None) -> float:
    """Return the median milliseconds of a decision at the fourth step of a running trial."""
    times = []
    for repeat in range(REPEATS + 1):
        trial = study.ask()
        for step in range(4):
            report(trial, step, repeat)
        before()
        started = time.perf_counter()
        prune(trial)
        times.append(1e3 * (time.perf_counter() - started))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return round(statistics.median(times[1:]), 3)


def flatsearch_decision(n: int, pruner, *, finishing: bool = False) -> float:
    """Time one of our pruners, also where another trial has just finished."""
    study = filled(n, pruner, ours)

    def report(trial, step, repeat):
        value = (repeat % 10) / 10
        flatsearch.report(trial, step, accuracy=value, flatness=1 - value)

    def another():
        if finishing:
            study.add_trial(study.get_trials(deepcopy=False)[0])

    return decision(study, report, flatsearch.should_prune, another)


def optuna_decision(n: int) -> float:
    """Time Optuna's own pruner where it works: with one objective."""
    study = optuna.create_study(direction="maximize", pruner=median())
    for curve in np.random.default_rng(0).uniform(0, 1, (n, STEPS)).tolist():
        study.add_trial(
            optuna.trial.create_trial(value=curve[-1], intermediate_values=dict(enumerate(curve)))
        )
    return decision(
        study,
        lambda t, step, repeat: t.report((repeat % 10) / 10, step),
        lambda t: t.should_prune(),
    )


def peer_decision(package, n: int, *, joint: bool) -> float:
    """Time the OptunaHub package."""
    directions = {"accuracy": "maximize", "flatness": "minimize"}
    if not joint:
        directions = {"accuracy": "maximize"}
    pruner = package.MultiMetricPruner(median(), metric_directions=directions, joint=joint)
    study = filled(n, pruner, peers)
    wrapped = {}

    def report(trial, step, repeat):
        value = (repeat % 10) / 10
        values = {"accuracy": value, "flatness": 1 - value}
        wrapped[trial.number] = mmt = wrapped.get(trial.number) or package.MultiMetricPrunerTrial(
            trial
        )
        mmt.report({name: values[name] for name in directions}, step)

    return decision(study, report, lambda trial: wrapped[trial.number].should_prune())


def overhead() -> dict:
    """Return the milliseconds of a trial outside training and measuring."""
    spent = [0.0]
    results, measure = Trainer.results, flatsearch.FlatnessMeter.__call__

    def timed_results(trainer):
        epochs = results(trainer)
        while True:
            started = time.perf_counter()
            epoch = next(epochs, None)
            spent[0] += time.perf_counter() - started
            if epoch is None:
                return
            yield epoch

    def timed_measure(*args, **kwargs):
        started = time.perf_counter()
        try:
            return measure(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - started

    Trainer.results = timed_results
    flatsearch.FlatnessMeter.__call__ = timed_measure
    objective = flatsearch.FlatnessObjective("resnet_small", "digits", epochs=8, device="cpu")
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    outside = []
    for _ in range(21):
        spent[0], started = 0.0, time.perf_counter()
        study.optimize(objective, n_trials=1)
        outside.append(1e3 * (time.perf_counter() - started - spent[0]))
    return {"median_ms": round(statistics.median(outside[1:]), 1), "epochs": 8}


def load_peer(folder: Path):
    """Import a package from a folder."""
    name = "multi_metric_pruner"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def environment() -> dict:
    """Return versions, without the machine's name."""
    from importlib.metadata import version

    versions = {package: version(package) for package in ("torch", "optuna", "numpy")}
    return {**versions, "python": platform.python_version(), "device": platform.machine()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    methods = {
        "flatsearch calibrated": lambda n: flatsearch_decision(n, flatsearch.FlatnessPruner()),
        "flatsearch calibrated, new trial": lambda n: flatsearch_decision(
            n, flatsearch.FlatnessPruner(), finishing=True
        ),
        "flatsearch, Optuna's median": lambda n: flatsearch_decision(
            n, flatsearch.MetricPruner("accuracy", median())
        ),
        "flatsearch, median of Pareto ranks": lambda n: flatsearch_decision(
            n, flatsearch.ParetoPruner(median())
        ),
        "Optuna's median, one objective": optuna_decision,
    }
    if options.peer is not None:
        package = load_peer(options.peer)
        methods["OptunaHub, median"] = lambda n: peer_decision(package, n, joint=False)
        methods["OptunaHub, median of Pareto ranks"] = lambda n: peer_decision(
            package, n, joint=True
        )
    result = {"environment": environment(), "decision_ms": {}, "overhead": overhead()}
    print("outside training and measuring:", result["overhead"], flush=True)
    for name, method in methods.items():
        result["decision_ms"][name] = {n: method(n) for n in SIZES}
        print(f"{name:36s}", result["decision_ms"][name], flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
