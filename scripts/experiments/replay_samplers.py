"""Replay samplers on the recorded tables: regret against trials, without pruning.

    python scripts/experiments/replay_samplers.py [TABLE ...] [--studies 30] [--out FILE]

A sampler proposes parameters; the nearest network of the table that has not been taken is what is
trained, and the sampler is told that network's own parameters with its final validation accuracy.
The distance is the sum over parameters of 1 for different categories, of the difference relative
to the range for numbers, and of 1 where only one of the two has the parameter. Regret is the best
final test accuracy of the table less that of the network with the best validation accuracy so far,
and of equals the one with the lowest validation loss.
A table holds a hundred networks out of very many, so this favours samplers that are good at a
coarse choice. NSGA-II is not among them: its generations are noted in the trials it proposes, and
these are not the ones that are trained here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import tables
from optuna.distributions import CategoricalDistribution
from replay import interval

import flatsearch
from flatsearch.search.factories import make_sampler
from flatsearch.search.recipe import suggest_recipe
from flatsearch.settings import RunSettings

SAMPLERS = ("random", "tpe", "gp")
TRIALS = 40
SHOWN = (10, 20, 40)


def distributions(space, *, recipe: bool, may_flip: bool) -> dict[str, Any]:
    """Return every parameter of a space with its distribution, as random trials meet them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found: dict[str, Any] = {}
    for _ in range(300):
        trial = study.ask()
        space.suggest(trial)
        if recipe:
            suggest_recipe(space, trial, RunSettings(), may_flip=may_flip)
        found |= trial.distributions
    return found


def typed(text: str, distribution) -> Any:
    """Return a parameter's value from its text in a table."""
    if isinstance(distribution, CategoricalDistribution):
        return next(choice for choice in distribution.choices if str(choice) == text)
    value = float(text)
    if isinstance(distribution, optuna.distributions.IntDistribution):
        return round(value)
    # Five digits were written: a value at the end of a range may have left it.
    return min(max(value, distribution.low), distribution.high)


def distance(a: dict[str, Any], b: dict[str, Any], known: dict[str, Any]) -> float:
    """Return how far two sets of parameters are apart."""
    total = 0.0
    for name in a.keys() | b.keys():
        if name not in a or name not in b:
            total += 1.0
        elif isinstance(known[name], CategoricalDistribution):
            total += a[name] != b[name]
        else:
            ends = known[name].low, known[name].high
            low, high, x, y = np.array([*ends, a[name], b[name]], float)
            if known[name].log:
                low, high, x, y = np.log([low, high, x, y])
            total += abs(x - y) / (high - low) if high > low else 0.0
    return total


def proposed(name: str, sampler: str, seed: int, trials: int) -> list[int]:
    """Run one study; return the networks in the order in which they are trained.

    Args:
        name: Of the table.
        sampler: Its command-line name.
        seed: Its seed.
        trials: The number of networks, if the table has so many.
    """
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves = tables.load(name)
    settings = curves.environment["settings"]
    space, recipe = flatsearch.load_space(settings["space"]), settings["tune_recipe"]
    known = distributions(space, recipe=recipe, may_flip=name.startswith("cifar10"))
    pool = []
    for rows in curves.rows:
        row = {k[2:]: v for k, v in rows[0].items() if k.startswith("p.") and v}
        row |= {f"recipe_{k[2:]}": v for k, v in rows[0].items() if k.startswith("r.") and v}
        pool.append({k: typed(v, known[k]) for k, v in row.items()})
    validation = curves.column("accuracy")
    study = optuna.create_study(direction="maximize", sampler=make_sampler(sampler, seed))
    left, taken = list(range(len(pool))), []
    for _ in range(min(trials, len(pool))):
        trial = study.ask()
        space.suggest(trial)
        if recipe:
            suggest_recipe(space, trial, RunSettings(), may_flip=name.startswith("cifar10"))
        nearest = min(left, key=lambda i: distance(trial.params, pool[i], known))
        left.remove(nearest)
        taken.append(nearest)
        # What was proposed was not trained; the neighbour was.
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        study.add_trial(
            optuna.trial.create_trial(
                params=pool[nearest],
                distributions={k: known[k] for k in pool[nearest]},
                value=float(validation[nearest]),
            )
        )
    return taken


def simulate(job: tuple[str, str, int]) -> list[float]:
    """Run one study; return its regret after the numbers of trials that are shown."""
    name, sampler, seed = job
    taken, curves = proposed(name, sampler, seed, TRIALS), tables.load(name)
    validation, loss, test = curves.column("accuracy"), curves.column("loss"), curves.target()
    best = [
        max(taken[: min(n, len(taken))], key=lambda i: (validation[i], -loss[i])) for n in SHOWN
    ]
    return [float(test.max() - test[i]) for i in best]


def main() -> None:
    """Write the replays and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*")
    parser.add_argument("--studies", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = args.tables or tables.trained()
    results: dict[str, Any] = {}
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for name in names:
            results[name] = {}
            for sampler in SAMPLERS:
                jobs = [(name, sampler, seed) for seed in range(args.studies)]
                found = np.array(pool.map(simulate, jobs, chunksize=1))
                rows = {str(n): interval(found[:, i]) for i, n in enumerate(SHOWN)}
                results[name][sampler] = rows
                shown = (f"{v[0]:.4f} [{v[1]:.4f}, {v[2]:.4f}]" for v in rows.values())
                print(f"{name:20} {sampler:8}", *shown, flush=True)
    if args.out:
        fields = {"studies": args.studies, "trials": TRIALS, "tables": results}
        args.out.write_text(json.dumps(fields, indent=1) + "\n")


if __name__ == "__main__":
    main()
