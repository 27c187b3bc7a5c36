"""How well signals together rank networks early, fitted on some tables and judged on others.

    python scripts/experiments/early_score.py [--out scripts/results/early-scores.json]

After each of the first epochs every signal is turned into normal scores within its table, and
`flatsearch.calibration.fit` learns one set of coefficients from the tuning tables together
(`tables.TUNING`; their final test accuracy). On every other table the score with those coefficients
is compared with the best single free signal of that table and epoch (validation accuracy and loss,
training loss, TSE, parameters, FLOPs: the choice of the best is made on the table itself, in favour
of the single signals). And, on every table, the same sets fitted to the table's own networks, each
network predicted from all others: what a study can learn from its own finished trials. For
NAS-Bench-201 also sums of log ranks, in which nothing is fitted. Kendall's tau-b with the final
(published) accuracy, with 95% bootstrap intervals over networks, also of the differences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import tables
from correlate import kendall, rounded
from scipy import stats

from flatsearch.analysis.intervals import bootstrap
from flatsearch.pruners.regression import Prior, Reference, fit, leave_one_out

RESAMPLES = 500
FREE = (
    "validation accuracy", "-validation loss", "-training loss", "-TSE", "parameters", "FLOPs",
)  # fmt: skip
LAST = ("kappa last", "trace last")
ALL = ("kappa all", "trace all")
UNTRAINED = ("nwot", "synflow", "snip", "ZiCo")
SETS = {
    "free": FREE,
    "free, flatness last": FREE + LAST,
    "free, flatness all": FREE + LAST + ALL,
    "free, untrained": FREE + UNTRAINED,
    "free, untrained, flatness all": FREE + UNTRAINED + LAST + ALL,
}
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
    known = [np.nan_to_num(column, nan=-np.inf, neginf=-np.inf, posinf=np.inf) for column in columns]
    return sum(np.log(stats.rankdata(column) / len(column)) for column in known)


def log_rank_sum(curves: tables.Curves, names: tuple[str, ...], epoch: int) -> np.ndarray:
    """Return the `log_ranks` of signals of a table."""
    return log_ranks([curves.signal(name, epoch) for name in names])


def compared(score: np.ndarray, others: dict[str, np.ndarray], y: np.ndarray) -> dict:
    """Return tau of a score with its interval, and its lead over the best of others."""
    found = {"tau": rounded(bootstrap(kendall, score, y, times=RESAMPLES))}
    if others:
        best = max(others, key=lambda name: kendall(others[name], y))
        lead = bootstrap(
            lambda mine, its, y: kendall(mine, y) - kendall(its, y),
            score, others[best], y, times=RESAMPLES,
        )  # fmt: skip
        found |= {"best": best, "lead": rounded(lead)}
    return found


def analyse(curves: tables.Curves, tuning: list[tables.Curves]) -> dict:
    """Return everything about a table."""
    y, result = curves.target(), {}
    target = Reference(y).score(y)
    for epoch in (1, 2, 3):
        free = {name: curves.signal(name, epoch) for name in FREE}
        found = {"best free": compared(max(free.values(), key=lambda v: kendall(v, y)), {}, y)}
        found["best free"]["best"] = max(free, key=lambda name: kendall(free[name], y))
        plain = None
        for label, names in SETS.items():
            x, prior = scores(curves, names, epoch), Prior(np.zeros(len(names)))
            own = leave_one_out(x, target, prior)
            found[f"own: {label}"] = compared(own, free, y)
            if label == "free":
                plain = own
            else:
                gain = compared(own, {"free": plain}, y)["lead"]
                found[f"own: {label}"]["gain over free"] = gain
        if curves.name not in tables.TUNING and not curves.published:
            for label, names in SETS.items():
                x = np.concatenate([scores(t, names, epoch) for t in tuning])
                finals = [Reference(t.target()).score(t.target()) for t in tuning]
                learnt = fit(x, np.concatenate(finals), Prior(np.zeros(len(names))))
                found[f"others: {label}"] = compared(
                    scores(curves, names, epoch) @ learnt.mean, free, y
                )
                found[f"others: {label}"]["coefficients"] = dict(
                    zip(names, rounded(learnt.mean.tolist()), strict=True)
                )
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
                numbers = [values[k] for k in ("tau", "lead", "gain over free") if k in values]
                shown = (f"{v[0]:+.3f} [{v[1]:+.3f}, {v[2]:+.3f}]" for v in numbers)
                print(f"  {epoch} {label:48}", *shown, values.get("best", ""))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
