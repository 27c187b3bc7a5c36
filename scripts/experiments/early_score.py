"""How well signals together rank networks early, fitted on some networks and judged on others.

    python scripts/experiments/early_score.py [--out scripts/results/early-scores.json]

After each of the first epochs every signal is turned into normal scores within its table.

- *own*: what a study can learn from its own finished trials. `flatsearch.pruners.regression.fit`
  learns coefficients from a random half of a table and ranks the other half, SPLITS times.
  Kendall's tau-b with the final (published) accuracy, and the gain of a set of signals over another
  on the same halves: means over the splits, with the 2.5% and 97.5% percentiles, which are those of
  half a table.
- *others*: one set of coefficients from the tuning tables together (`tables.TUNING`), applied to
  every other table, beside the best single free signal of that table and epoch (the choice of the
  best is made on the table itself, in favour of the single signals); 95% bootstrap intervals over
  networks.
- *log ranks*, for NAS-Bench-201: sums of log ranks, in which nothing is fitted; likewise.

Free are validation accuracy and loss, training loss, TSE, parameters and FLOPs. *Cheap* adds the
number of convolutions, the movement of the weights and the norm of the gradient, which cost nothing
or next to it: flatness, summed over convolutions, has to add something to these.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import tables
from correlate import kendall, rounded
from scipy import stats

from flatsearch.analysis.intervals import bootstrap_weights, percentiles, weighted_taus
from flatsearch.pruners.regression import Prior, Reference, fit

RESAMPLES = 500
FREE = (
    "validation accuracy", "-validation loss", "-training loss", "-TSE", "parameters", "FLOPs",
)  # fmt: skip
FLATNESS = ("kappa last", "trace last", "kappa all", "trace all")
DEPTH = (*FREE, "depth")
CHEAP = (*DEPTH, "gradient norm", "weight movement")
UNTRAINED = ("nwot", "synflow", "snip", "ZiCo")
SETS = {
    name + also: names + more
    for name, names in {
        "free": FREE,
        "with depth": DEPTH,
        "cheap": CHEAP,
        "cheap, untrained": CHEAP + UNTRAINED,
    }.items()
    for also, more in {"": (), ", flatness": FLATNESS}.items()
}
# What is added, to what.
GAINS = {name: name.removesuffix(", flatness") for name in SETS if name.endswith(", flatness")}
GAINS |= {"with depth": "free", "cheap": "free"}
SPLITS = 200
AZ_NAS = ("expressivity", "progressivity", "trainability", "FLOPs")
# Sums of logarithms of ranks, chosen before they were seen: published ones and ours added to them.
RANK_SUMS = {
    "AZ-NAS": AZ_NAS,
    "AZ-NAS, nwot": (*AZ_NAS, "nwot"),
    "AZ-NAS, nwot, training loss": (*AZ_NAS, "nwot", "-training loss"),
    "AZ-NAS, nwot, training loss, trace all": (*AZ_NAS, "nwot", "-training loss", "trace all"),
    "nwot, training loss": ("nwot", "-training loss"),
    "nwot, training loss, trace all": ("nwot", "-training loss", "trace all"),
}


def scores(curves: tables.Curves, names: tuple[str, ...], epoch: int) -> np.ndarray:
    """Return the normal scores of signals, (networks, signals)."""
    columns = [curves.signal(name, epoch) for name in names]
    return np.stack([Reference(column).score(column) for column in columns], 1)


def log_ranks(columns: list[np.ndarray]) -> np.ndarray:
    """Return the sum of log(rank / n), 1 the worst; NaN is worst."""
    known = [
        np.nan_to_num(column, nan=-np.inf, neginf=-np.inf, posinf=np.inf) for column in columns
    ]
    return sum(np.log(stats.rankdata(column) / len(column)) for column in known)


def log_rank_sum(curves: tables.Curves, names: tuple[str, ...], epoch: int) -> np.ndarray:
    """Return the `log_ranks` of signals of a table."""
    return log_ranks([curves.signal(name, epoch) for name in names])


def compared(score: np.ndarray, others: dict[str, np.ndarray], y: np.ndarray) -> dict:
    """Return tau of a score with its interval, and its lead over the best of others."""
    weights = bootstrap_weights(np.ones(len(y)), RESAMPLES)

    def summed(taus: np.ndarray) -> list[float | None]:
        return rounded([float(taus[0]), *percentiles(taus[1:])])

    taus = weighted_taus(score, y, weights)
    found: dict = {"tau": summed(taus)}
    if others:
        best = max(others, key=lambda name: kendall(others[name], y))
        lead = taus - weighted_taus(others[best], y, weights)
        found |= {"best": best, "lead": summed(lead)}
    return found


def halves(x: dict[str, np.ndarray], y: np.ndarray) -> dict[str, np.ndarray]:
    """Return tau of sets of signals on random halves, fitted on the other ones.

    Args:
        x: By set, the networks' normal scores, (networks, signals).
        y: What is predicted, (networks,).

    Returns:
        By set, (SPLITS,).
    """
    target, random = Reference(y).score(y), np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in x}
    for _ in range(SPLITS):
        order = random.permutation(len(y))
        learnt, judged = order[: len(y) // 2], order[len(y) // 2 :]
        for name, columns in x.items():
            prior = Prior(np.zeros(columns.shape[1]))
            mean = fit(columns[learnt], target[learnt], prior).mean
            found[name].append(kendall(columns[judged] @ mean, y[judged]))
    return {name: np.array(taus) for name, taus in found.items()}


def over_splits(values: np.ndarray) -> list[float | None]:
    """Return the mean over splits with their percentiles."""
    return rounded([float(values.mean()), *percentiles(values)])


def own(x: dict[str, np.ndarray], y: np.ndarray) -> dict[str, dict]:
    """Return what a study learns from its own trials, by set of signals."""
    taus = halves(x, y)
    found = {f"own: {name}": {"tau": over_splits(values)} for name, values in taus.items()}
    for name, base in GAINS.items():
        found[f"own: {name}"]["gain"] = over_splits(taus[name] - taus[base])
    return found


def learnt(tuning: list[tables.Curves], names: tuple[str, ...], epoch: int) -> np.ndarray:
    """Return the coefficients of signals on the tuning tables together."""
    x = np.concatenate([scores(t, names, epoch) for t in tuning])
    finals = [Reference(t.target()).score(t.target()) for t in tuning]
    return fit(x, np.concatenate(finals), Prior(np.zeros(len(names)))).mean


def analyse(curves: tables.Curves, tuning: list[tables.Curves]) -> dict:
    """Return everything about a table."""
    y, result = curves.target(), {}
    for epoch in (1, 2, 3):
        free = {name: curves.signal(name, epoch) for name in FREE}
        best = max(free, key=lambda name: kendall(free[name], y))
        found = {"best free": {**compared(free[best], {}, y), "best": best}}
        found |= own({label: scores(curves, names, epoch) for label, names in SETS.items()}, y)
        if curves.name not in tables.TUNING and not curves.published:
            for label, names in SETS.items():
                weights = learnt(tuning, names, epoch)
                of = scores(curves, names, epoch) @ weights
                found[f"others: {label}"] = compared(of, free, y)
                pairs = zip(names, rounded(weights.tolist()), strict=True)
                found[f"others: {label}"]["coefficients"] = dict(pairs)
        if curves.published:
            for label, names in RANK_SUMS.items():
                found[f"log ranks: {label}"] = compared(log_rank_sum(curves, names, epoch), free, y)
        result[str(epoch)] = found
    return result


def main() -> None:
    """Write the scores and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    recorded = [tables.load(name) for name in tables.names()]
    tuning = [curves for curves in recorded if curves.name in tables.TUNING]
    results = {}
    for curves in recorded:
        results[curves.name] = analyse(curves, tuning)
        print(f"\n{curves.name}: {len(curves)} networks")
        for epoch, found in results[curves.name].items():
            for label, values in found.items():
                numbers = [values[k] for k in ("tau", "lead", "gain") if k in values]
                shown = (f"{v[0]:+.3f} [{v[1]:+.3f}, {v[2]:+.3f}]" for v in numbers)
                print(f"  {epoch} {label:48}", *shown, values.get("best", ""))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
