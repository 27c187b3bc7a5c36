"""Replay schedules on the recorded tables: stop for good, or park and promote.

    python scripts/experiments/replay_parking.py [--studies 300] [--kinds KIND ...] [--out FILE]

What FILE has of other kinds is kept.

Protocol, written before any of it was run.

*Studies.* A simulated study draws the networks of a table, or of a random half of it (so that every
study has other best networks), in random order. Of a whole table the study without pruning has 20,
40 or 100 trials; of a half, two fifths of the half. Every rule sees the same orders. At least 300
studies of every table and kind; fewer only for the calibrated `FlatnessPruner`, whose decisions are
those of the real class, and which is slow.

*Cost.* Epochs of training. A rule that looks at a signal pays for measuring it where it looks, as
`scripts/results/signals-cpu.json` says; validation, losses and parameters cost nothing. With four
workers all of them train at the same time, each an epoch in a unit of time, and what is spent is
the time multiplied by four.

*Regret.* A study returns, of its networks that are trained to the end, the one with the best final
validation accuracy, of equals the one with the lowest validation loss. Its regret is the best such
accuracy of the table (or half) less that network's; once more with test accuracies. With the
objectives accuracy and flatness: the share of the hypervolume that is not covered.

*What is compared.* For every rule
(1) the *share*: the epochs until the mean regret is that of the finished study without pruning,
    as a share of that study's epochs; a rule may take as many networks as fit;
(2) with the same number of trials: the share of the epochs, and the regret less that of the study
    without pruning, in points.
Intervals (95%) are from resampling studies and say nothing about other tables.

*Rules.*
- Nothing stopped; Optuna's median, successive halving and Hyperband, which stop for good, shown
  validation accuracy or training loss; the calibrated `FlatnessPruner`.
- One epoch (Egele et al. 2023): all networks are trained for i + 1 epochs, i = 0, 1, 2, 3; then the
  best eighth, or quarter, goes on to the end.
- Asynchronous successive halving with promotion (Li et al. 2020), of which 1/eta goes on from a
  rung: rungs 1 and 3 of 12, eta 4 or 3; rungs 1 and 4, eta 4; rungs 1, 2, 3 and 6, eta 2; the
  rung 1 alone, eta 4 or 8.
- Predicted gain: halving's rungs, but what goes on is the parked network, or the new one, with
  the largest expected improvement over the best of the complete ones per epoch that is still to be
  paid. Values are predicted from rung to rung by linear regression on the rank sum, learnt from the
  networks that have gone on; at least three of them, and halving decides before.
- The cascade: half of the networks, by the free signals, are trained at all; after one epoch a
  quarter goes on by the rank sum with flatness of all convolutions, or without it; after three a
  quarter by the training loss and validation loss.
- Each with every signal alone, and with rank sums of validation loss, training loss, parameters,
  flatness of all convolutions and the gradient's norm.

*Choice.* On the tables marked (t) (`tables.TUNING`), on random halves, one worker, one objective:
the rule with the least mean share. It has to rank by validation loss or accuracy among others: by
the training loss alone networks that overfit would be promoted, which no table here shows. Of rules
within .02 of the least share the one with the fewest signals, then with the fewest rungs, then the
one that needs no number of trials, is chosen: the first of these that applies. A rule that learns,
or measures, has to be better than that by more than .02. Judged on all other tables, once.
Fronts of several objectives leave out networks that know much less than the best one
(`docs/fronts.md`) since these replays were run. They are run again with such fronts, as a kind of
their own: the regret is the share of the hypervolume not covered by networks that have nine tenths
of what the best network of the half has learnt beyond guessing, measured from that accuracy and the
worst flatness of the half, and networks that know less than that at a rung are the last to go on,
as in the product. (At first it was measured from the worst flatness of the networks that know
enough: no area at all where there is one such network, as in halves of `cifar10-recipes`.) Written
before it was run: with several objectives the eighth becomes the default instead
of the quarter if it takes at most .40 in the mean of the judged tables, and less than the quarter.
*Two objectives once more.* Everything else had been run when it was seen, in 60 studies of the
judged tables, that with a perfect eye after one epoch (networks ranked by their final accuracy and
flatness) the quarter takes .42 in the mean and the eighth .27, where the rules above take .57 and
never get there. So .40 is out of reach of a quarter, and what costs is the ranking. Written before
it was run: after one epoch a quarter, a sixth or an eighth goes on at once; the accuracy is judged
by one of five rank sums (`SEVERAL_SUMS`), the flatness by that of the last convolution or of all
(measured where it is looked at), and networks are ranked by how many dominate them, by the sum of
both ranks, or by accuracy alone: 75 rules, of which the one with the least mean share on random
halves of the tables (t), 100 studies each, is chosen; of those within .02 of it the first in the
order of `several_rules`: what there was comes first. Judged on the other tables, 300 studies each,
it becomes the default with several objectives if it takes at most .40 in their mean, or .05 less
than the quarter that is the default.
*In TPE's order.* Written before it was run: the whole tables once more, 40 studies each, with the
networks in the order in which Optuna's TPE proposes them when it is told their final accuracies
(`replay_samplers.py`), as in the study without pruning. A study that parks tells it less, so this
says what a schedule is worth where the networks to come are better than those before; what parking
does to proposals is measured elsewhere (`samplers_parked.py`). Nothing is chosen by it.
*By time.* An epoch of a large network takes longer, and what goes on by its size is large. Written
before it was run: everything on random halves once more with processor time in the place of epochs,
as it was when the networks were recorded; the rule is chosen again by the same procedure (the grid
of this kind), and becomes the default if in the mean of the judged tables it takes less time, by
more than .02, than the rule that was chosen by epochs.
The default of `flatsearch run` becomes the chosen rule if there it takes at most .30 of the epochs
on whole tables (40 trials) and .40 on random halves, in the mean of the judged tables.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import time
import warnings
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import replay
import tables
from replay_rules import Gain, Halving, Median, Perfect, Rule, Rung, Several, Successive
from replay_samplers import proposed
from replay_studies import SIGNALS, Row, Table, in_rounds, simulate

from flatsearch import FlatnessPruner

if TYPE_CHECKING:
    from collections.abc import Callable

GRID = np.arange(1, 101) / 100
RESAMPLES = 1000
SUMS = (
    "loss+train_loss", "accuracy+train_loss", "loss+parameters", "train_loss+parameters",
    "loss+train_loss+parameters", "loss+flatness_all", "train_loss+flatness_all",
    "loss+train_loss+flatness_all", "loss+train_loss+gradient_norm",
    "loss+train_loss+parameters+flatness_all", "loss+train_loss+parameters+gradient_norm",
)  # fmt: skip
OWN = "loss+train_loss"  # what the promoters of the product rank by


def every_rule() -> dict[str, Callable[[], Rule] | Rung]:
    """Return all rules by name."""
    found: dict[str, Callable[[], Rule] | Rung] = {"nothing stopped": Rule}
    for signal in ("accuracy", "train_loss"):
        found[f"median, {signal}"] = partial(Median, signal)
        found[f"successive halving, {signal}"] = partial(Successive, signal, {(2, 5): 1}, 4)
        brackets = {(2, 4, 10): 9, (4, 10): 5, (10,): 3}
        found[f"hyperband, {signal}"] = partial(Successive, signal, brackets, 3)
    for signals in (*SIGNALS, *SUMS):
        for epoch in (1, 2, 3, 4):
            for part in (8, 4):
                found[f"epoch {epoch}, 1/{part}; {signals}"] = Rung(epoch, 1 / part, signals)
        for rungs, eta in SCHEDULES[: None if signals in SUMS else 1]:
            made = tuple(Rung(epoch, 1 / eta, signals) for epoch in rungs)
            found[f"halving {rungs}, eta {eta}; {signals}"] = partial(Halving, made)
        if signals in GAINS:
            made = tuple(Rung(epoch, 1 / 4, signals) for epoch in (1, 3))
            found[f"gain (1, 3); {signals}"] = partial(Gain, made)
    for free in ("parameters", "snip", "parameters+snip"):
        for first in ("loss+train_loss+parameters", OWN):
            for flat in ("", "+flatness_all", "+gradient_norm"):
                made = (Rung(0, 0.5, free), Rung(1, 0.25, first + flat), Rung(3, 0.25, OWN))
                found[f"cascade; {free}, {first}{flat}"] = partial(Halving, made)
    return found


SEVERAL_SUMS = (
    "loss+parameters", OWN, "loss", "accuracy+train_loss", "loss+train_loss+parameters",
)  # fmt: skip
SEVERAL_STUDIES = 100
PERFECT: dict[str, Callable[[], Rule] | Rung] = {
    f"1/{part} at once; with a perfect eye": partial(Perfect, (Rung(1, 1 / part, "loss"),))
    for part in (4, 8)
}


def several_rules() -> dict[str, Callable[[], Rule]]:
    """Return the rules that are tried with several objectives, what there was first, by name."""
    looks = [("dominated", "kappa_last"), ("dominated", "kappa_all")]
    looks += [("ranks", "kappa_last"), ("ranks", "kappa_all"), ("accuracy", "kappa_last")]
    return {
        f"1/{part} at once; {signals}; {by}{', all' if flatness == 'kappa_all' else ''}": partial(
            Several, (Rung(1, 1 / part, signals, by, flatness),)
        )
        for by, flatness in looks
        for part in (4, 6, 8)
        for signals in SEVERAL_SUMS
    }


GAINS = (OWN, "loss+train_loss+parameters", "train_loss+parameters")
SCHEDULES = (((1, 3), 4), ((1, 3), 3), ((1, 4), 4), ((1, 2, 3, 6), 2), ((1,), 4), ((1,), 8))


@dataclass(frozen=True)
class Job:
    """What one process runs: a rule on the studies of a table."""

    table: str
    half: bool
    rule: str
    studies: int
    workers: int = 1
    counts: tuple[int, ...] = ()  # numbers of trials for which the same trials are compared, too
    several: bool = False
    least: bool = False
    timed: bool = False
    order: tuple[tuple[int, ...], ...] = ()  # the networks of every study; random where empty
    flatness: str = "kappa_last"  # the second objective
    muddle: int = 0
    seeds: int = 0  # the first of the studies'
    made: Callable[[], Rule] | None = None  # the rule, where it is not among those here
    rounds: bool = False  # whether the best go on when all are there


@cache
def known(name: str, **options: Any) -> Table:
    """Return a table, read once in a process."""
    return Table(name, **options)


def orders(table: Table, studies: int, *, half: bool, first: int = 0) -> Row:
    """Return the networks of every study in their order."""
    size = table.n // 2 if half else table.n
    random = [np.random.default_rng([seed, half]) for seed in range(first, first + studies)]
    return np.array([generator.permutation(table.n)[:size] for generator in random])


def on_grid(spent: Row, found: Row, budget: float) -> Row:
    """Return what is found after every share of a budget, (studies, len(GRID)); -1 for nothing."""
    places = [(spent <= share * budget + 1e-6).sum(1) - 1 for share in GRID]
    index = np.arange(len(spent))
    return np.stack([np.where(p >= 0, found[index, np.maximum(p, 0)], -1) for p in places], 1)


def regrets(table: Table, order: Row, found: Row) -> tuple[Row, Row]:
    """Return regrets in points by validation and by test accuracy, of the shape of what is found.

    With two objectives both are the share of the hypervolume that is not covered.
    """
    if table.several:
        whole = np.array([table.volume(row, table.corner(row)) for row in order])
        lost = 100 * (1 - np.maximum(found, 0) / whole[:, None])
        return lost, lost
    result = []
    for values in (table.validation, table.test):
        own = values[order]
        reached = values[table.by_quality[found.astype(int)]]
        worst = np.broadcast_to(own.min(1)[:, None], found.shape)
        reached = np.where(found < 0, worst, reached)
        result.append(100 * (own.max(1)[:, None] - reached))
    return result[0], result[1]


CALIBRATED = "calibrated"


class Slow(replay.Table):
    """A table for the real pruners, whose regret is the quality of what is found."""

    quality: Row

    def regret(self, complete: list[int]) -> float:
        """Return the quality of the best complete network, -1 for none."""
        return float(max((self.quality[i] for i in complete), default=-1))


def calibrated(table: Table, order: Row, budget: float) -> tuple[Row, Row]:
    """Run the real calibrated pruner; return what `simulate` returns."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    curves = []
    for networks in order:
        slow = Slow(table.curves.name, several=False, chosen=networks)
        slow.quality = table.quality[networks]
        pays_for = replay.looks_at(CALIBRATED)
        pruner = FlatnessPruner()
        curves.append(replay.simulate(slow, np.arange(len(networks)), pruner, budget, pays_for))
    longest = max(map(len, curves))
    padded = np.array([curve + curve[-1:] * (longest - len(curve)) for curve in curves])
    return padded[:, :, 0], padded[:, :, 1]


def run(job: Job) -> dict[str, Any]:
    """Run a job; return its regrets on the grid, and for the same trials."""
    own = {name: getattr(job, name) for name in ("several", "least", "timed", "flatness", "muddle")}
    table = known(job.table, **own)
    order = (
        np.array(job.order)
        if job.order
        else orders(table, job.studies, half=job.half, first=job.seeds)
    )
    unpruned = trials_of(table, half=job.half)
    budget = float(unpruned * table.epochs)
    if job.rule == CALIBRATED:
        spent, found = calibrated(table, order, budget)
        count = unpruned  # what it has spent after as many trials
        last = regrets(table, order, found[:, count - 1 : count])
        return {
            "grid": regrets(table, order, on_grid(spent, found, budget)),
            "same": {count: (spent[:, count - 1] / budget, *last)},
        }
    made = job.made or (every_rule() | several_rules() | PERFECT)[job.rule]
    rounds = job.rounds or isinstance(made, Rung)
    if isinstance(made, Rung):
        made = partial(Halving, (made,))
    if job.several and type(rule := made()) is Halving:
        made = partial(Several, rule.rungs)
    result: dict[str, Any] = {"same": {}}
    several_counts = len(job.counts) > 1  # which are looked up in one and the same study
    if rounds and isinstance(rule := made(), Halving):
        spent, found = in_rounds(table, order, rule, job.workers)
    else:
        spent, found, started = simulate(
            table,
            order,
            made(),
            supply=order.shape[1],
            budget=math.inf if several_counts else budget,
            workers=job.workers,
        )
    result["grid"] = regrets(table, order, on_grid(spent, found, budget))
    index = np.arange(len(order))
    for count in job.counts:
        if count > order.shape[1]:
            continue
        if rounds:
            ends, last = spent[:, count - 1], found[:, count - 1]
        elif several_counts:
            places = (started <= count).sum(1) - 1  # just before the next one begins
            ends, last = spent[index, places], found[index, places]
        else:
            a, b, _ = simulate(
                table, order, made(), supply=count, budget=math.inf, workers=job.workers
            )
            ends, last = a[:, -1], b[:, -1]
        share = ends / (count * table.epochs)
        result["same"][count] = (share, *regrets(table, order, last[:, None]))
    return result


def trials_of(table: Table, *, half: bool) -> int:
    """Return the number of trials of the study without pruning."""
    return round(0.4 * (table.n // 2)) if half else 40


def shares(
    job: Job, result: dict[str, Any], unpruned: dict[str, Any], resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return when the mean regret is that of the finished studies without pruning.

    Returns:
        By the kind of accuracy, the value for these studies, and for samples of them.
    """
    random = np.random.default_rng(0)
    n = job.studies
    weights = random.multinomial(n, [1 / n] * n, resamples - 1)
    weights = np.concatenate([np.ones((1, n)), weights]) / n
    found = {}
    for place, name in enumerate(("validation", "test")):
        means = weights @ result["grid"][place]
        there = means <= (weights @ unpruned["grid"][place][:n, -1])[:, None] + 1e-9
        found[name] = np.where(there.any(1), GRID[there.argmax(1)], math.inf)
    return found


def interval(values: Row) -> list[float | None]:
    """Return [value, low, high] of a value and its resamples; None for never."""
    low, high = np.quantile(values[1:], [0.025, 0.975], method="nearest")
    return [None if math.isinf(v) else round(float(v), 4) for v in (values[0], low, high)]


def mean_of(values: Row) -> list[float | None]:
    """Return the mean of studies with its 95% interval."""
    random = np.random.default_rng(0)
    picks = random.integers(0, len(values), (RESAMPLES - 1, len(values)))
    return interval(np.concatenate([[values.mean()], values[picks].mean(1)]))


def choose(grid: dict[str, dict[str, float]]) -> str:
    """Return the rule that the protocol chooses.

    Args:
        grid: The shares on random halves by rule, of the tables to choose on.
    """
    rules = every_rule()
    mean = {r: float(np.mean([grid[t][r] for t in grid])) for r in rules}

    def eligible(rule: str) -> bool:
        signals = rule.split("; ")[-1]
        validates = {"loss", "accuracy"} & set(re.split(r"[+, ]+", signals))
        return "; " in rule and bool(validates)

    def costs(rule: str) -> bool:
        return rule.startswith("gain") or any(
            SIGNALS[name][2]
            for name in re.split(r"[+, ]+", rule.split("; ")[-1])
            if name in SIGNALS
        )

    def complexity(rule: str) -> tuple[int, int, bool, float]:
        signals = rule.split("; ")[-1]
        made = rules[rule]
        rungs = 1 if isinstance(made, Rung) else len(made().rungs)
        return len(re.split(r"[+, ]+", signals)), rungs, isinstance(made, Rung), mean[rule]

    found = {r: mean[r] for r in rules if eligible(r)}
    plain = min(found[r] for r in found if not costs(r))
    found = {r: m for r, m in found.items() if not costs(r) or m < plain - 0.02}
    near = [r for r, m in found.items() if m <= min(found.values()) + 0.02]
    return min(near, key=complexity)


FAMILIES = ("epoch", "halving", "gain", "cascade", "median", "successive", "hyperband")
CASCADES = ("", "+flatness_all", "+gradient_norm")


def best_of_families(grid: dict[str, dict[str, float]]) -> list[str]:
    """Return the rule of each family with the least mean share on the tables to choose on."""
    return [
        min(
            (rule for rule in every_rule() if rule.startswith(family)),
            key=lambda rule: np.mean([grid[table][rule] for table in grid]),
        )
        for family in FAMILIES
    ]


def with_flatness(rule: str) -> list[str]:
    """Return a rule with flatness, and with the gradient's norm, among its signals."""
    return [
        name
        for extra in ("+flatness_all", "+gradient_norm")
        if (name := rule.removesuffix(extra) + extra) in every_rule()
    ]


def compared(grid: dict[str, dict[str, float]], chosen: str) -> list[str]:
    """Return the rules that are looked at more closely, without repetition."""
    own = f"halving (1, 3), eta 4; {OWN}"
    stops = [
        f"{rule}, {signal}"
        for rule in ("median", "successive halving", "hyperband")
        for signal in ("accuracy", "train_loss")
    ]
    found = ["nothing stopped", chosen, *with_flatness(chosen), own, *with_flatness(own)]
    cascade = next(rule for rule in best_of_families(grid) if rule.startswith("cascade"))
    stem = cascade.removesuffix("+flatness_all").removesuffix("+gradient_norm")
    found += [f"epoch 1, 1/8; {OWN}", *(stem + extra for extra in CASCADES)]
    return list(dict.fromkeys([*found, *best_of_families(grid), *stops, CALIBRATED]))


def try_all(
    pool: Any, studies: int, before: dict[str, Any], *, timed: bool
) -> dict[str, dict[str, float]]:
    """Return the share of every rule on the tables to choose on; `before` is not made again."""
    grid = {
        name: {rule: math.inf if v is None else v for rule, v in by_rule.items()}
        for name, by_rule in before.items()
    }
    for name in [name for name in tables.trained(tuning=True) if name not in grid]:
        jobs = [Job(name, True, rule, studies, timed=timed) for rule in every_rule()]
        results = dict(zip(every_rule(), pool.map(run, jobs, chunksize=4), strict=True))
        unpruned = results["nothing stopped"]
        grid[name] = {
            job.rule: float(shares(job, results[job.rule], unpruned, 1)["validation"][0])
            for job in jobs
        }
    return grid


def try_several(pool: Any, before: dict[str, Any]) -> dict[str, Any]:
    """Return the share of every rule with two objectives on the tables to choose on."""
    grid = dict(before)
    rules = ["nothing stopped", *several_rules()]
    for name in [name for name in tables.trained(tuning=True) if name not in grid]:
        jobs = [Job(name, True, rule, SEVERAL_STUDIES, several=True, least=True) for rule in rules]
        results = dict(zip(rules, pool.map(run, jobs, chunksize=1), strict=True))
        unpruned = results[rules[0]]
        grid[name] = {
            job.rule: interval(shares(job, results[job.rule], unpruned, 2)["validation"])[0]
            for job in jobs[1:]
        }
    return grid


def chosen_of_several(grid: dict[str, Any]) -> str:
    """Return the rule that the protocol chooses with two objectives."""

    def mean(rule: str) -> float:
        return float(np.mean([math.inf if (v := g[rule]) is None else v for g in grid.values()]))

    near = min(map(mean, several_rules())) + 0.02
    return next(rule for rule in several_rules() if mean(rule) <= near)


def looked_at(kind: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """Return the rules that are compared closely on a kind of studies."""
    if "several" in kind:
        return [*SEVERAL, *([chosen[OF_SEVERAL], *PERFECT] if "least" in kind else [])]
    timed = "timed" in kind
    rules = compared(chosen[GRIDS[timed]], chosen[CHOSEN[timed]])
    if timed:
        return list(dict.fromkeys([*rules, chosen[CHOSEN[False]], *AT_ONCE]))
    if "half" in kind:
        return rules
    return list(dict.fromkeys(["nothing stopped", chosen[CHOSEN[False]], *AT_ONCE, *BRIEFLY]))


def closely(pool: Any, jobs: list[Job]) -> dict[str, Any]:
    """Run jobs of one table, and return the statistics of every rule."""
    results = dict(zip((job.rule for job in jobs), pool.map(run, jobs, chunksize=1), strict=True))
    unpruned = results["nothing stopped"]
    found = {}
    for job in jobs:
        result = results[job.rule]
        share = shares(job, result, unpruned)
        found[job.rule] = {
            "share": interval(share["validation"]),
            "share, test": interval(share["test"]),
            "curve": [round(float(v), 4) for v in result["grid"][0].mean(0)[4::5]],
            "same trials": {
                str(count): {
                    "share": mean_of(same[0]),
                    "regret": mean_of(same[1][:, 0]),
                    "more regret": mean_of(
                        (same[1] - unpruned["same"][count][1][: job.studies])[:, 0]
                    ),
                    "more test regret": mean_of(
                        (same[2] - unpruned["same"][count][2][: job.studies])[:, 0]
                    ),
                }
                for count, same in result["same"].items()
            },
        }
        found[job.rule]["draws"] = share["validation"]
    return found


def add_means(by_table: dict[str, Any]) -> None:
    """Add the mean of the judged tables to what `closely` found of each; forget the resamples."""
    judged = [name for name in by_table if name not in tables.TUNING]
    draws = {
        rule: np.mean([by_table[name][rule]["draws"] for name in judged], axis=0)
        for rule in by_table[judged[0]]
    }
    for statistics in by_table.values():
        for entry in statistics.values():
            del entry["draws"]
    by_table["mean of the judged"] = {rule: interval(values) for rule, values in draws.items()}


def main() -> None:
    """Choose, judge, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--calibrated", type=int, default=0, help="studies of that rule: slow")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = tables.trained()
    started = time.perf_counter()
    before: dict[str, Any] = {}
    if args.out and args.out.exists():
        before = json.loads(args.out.read_text())
        if before["studies"] != args.studies:
            parser.error(f"{args.out} is of {before['studies']} studies, not {args.studies}")
    found: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for timed in sorted({"timed" in KINDS[key] for key in args.kinds} | {False}):
            # Before the other tables are looked at.
            grid = try_all(pool, args.studies, before.get(GRIDS[timed], {}), timed=timed)
            chosen[CHOSEN[timed]], chosen[GRIDS[timed]] = choose(grid), grid
            print(
                f"{CHOSEN[timed]}: {chosen[CHOSEN[timed]]}, {time.perf_counter() - started:.0f} s"
            )
        if any("least" in KINDS[key] for key in args.kinds):
            several = try_several(pool, before.get(GRID_OF_SEVERAL, {}))
            before |= {GRID_OF_SEVERAL: several, OF_SEVERAL: chosen_of_several(several)}
            chosen[OF_SEVERAL] = before[OF_SEVERAL]
            print(f"{OF_SEVERAL}: {chosen[OF_SEVERAL]}, {time.perf_counter() - started:.0f} s")
        for key in args.kinds:
            kind, found[key] = KINDS[key], {}
            own = {name: kind[name] for name in ("several", "least", "timed") if name in kind}
            half, workers = kind.get("half", False), kind.get("workers", 1)
            for name in names:
                several_counts = (40,) if workers > 1 else (20, 40, 100)
                counts = (trials_of(known(name), half=half),) if half else several_counts
                studies, proposals = args.studies, ()
                if "sampler" in kind:
                    studies = min(studies, OF_SAMPLER)
                    asked = [
                        (name, kind["sampler"], seed, known(name).n) for seed in range(studies)
                    ]
                    proposals = tuple(map(tuple, pool.starmap(proposed, asked, chunksize=1)))
                jobs = [
                    Job(
                        name,
                        half,
                        rule,
                        args.calibrated if rule == CALIBRATED else studies,
                        workers,
                        () if "timed" in kind else counts,
                        order=proposals,
                        **own,
                    )
                    for rule in looked_at(kind, chosen)
                    if rule != CALIBRATED or (args.calibrated and half and not own)
                ]
                found[key][name] = closely(pool, jobs)
                print(key, name, f"{time.perf_counter() - started:.0f} s", flush=True)
    for by_table in found.values():
        add_means(by_table)
    fields = {
        **before,
        "studies": args.studies,
        **{name: chosen[name] for name in CHOSEN if name in chosen},
        **{
            key: {
                name: {rule: None if math.isinf(v) else v for rule, v in by_rule.items()}
                for name, by_rule in chosen[key].items()
            }
            for key in GRIDS
            if key in chosen
        },
        "found": before.get("found", {}) | found,
    }
    if args.out:
        args.out.write_text(json.dumps(fields, indent=1) + "\n")


# What is compared closely: on random halves, by several workers, with several objectives, of which
# the front needs a least accuracy, with processor time for epochs.
KINDS: dict[str, dict[str, Any]] = {
    "halves": {"half": True},
    "whole": {},
    "whole, 4 workers": {"workers": 4},
    "halves, 2 objectives": {"half": True, "several": True},
    "halves, 2 objectives, least accuracy": {"half": True, "several": True, "least": True},
    "halves, by time": {"half": True, "timed": True},
    "whole, in TPE's order": {"sampler": "tpe"},
}
OF_SAMPLER = 40  # studies: it takes seconds to propose a whole table
# What is chosen by epochs, and by time.
CHOSEN, GRIDS = ("chosen", "chosen by time"), ("grid", "grid by time")
OF_SEVERAL, GRID_OF_SEVERAL = "chosen of two objectives", "grid of two objectives"
AT_ONCE = ("halving (1,), eta 8; loss+parameters", "halving (1,), eta 4; loss+parameters")
SEVERAL = ("nothing stopped", f"halving (1, 3), eta 4; {OWN}", *AT_ONCE)
# On whole tables.
BRIEFLY = (
    f"halving (1, 3), eta 4; {OWN}",
    "median, accuracy",
    "median, train_loss",
    "successive halving, train_loss",
    "hyperband, train_loss",
)


if __name__ == "__main__":
    main()
