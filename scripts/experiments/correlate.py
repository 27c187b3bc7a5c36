"""How well every recorded signal ranks networks by their final accuracy, and by their gap.

    python scripts/experiments/correlate.py [TABLE ...] [--out scripts/results/correlations.json]

For every table in scripts/results/curves, signal and epoch: Kendall's tau-b with
the final test accuracy (NAS-Bench-201: the published accuracy), tau among the tenth of the
networks (at least ten) that end best, and tau with the gap between training and test accuracy;
each with the 95% percentile bootstrap interval over networks. And per parameter of the space, the
sign error: of all pairs of networks that differ in that parameter and in their final accuracy, the
share that the signal orders wrongly (0.5 is chance), minus the same share over all pairs. Flatness
also at a matched training loss, one that three quarters of the networks get down to; and there once
more given size: tau between what is left of the normal scores of both after a linear regression on
those of parameters, FLOPs and the number of convolutions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import tables
from scipy import stats

from flatsearch.analysis.intervals import (
    MIN_TRIALS,
    bootstrap_weights,
    percentiles,
    weighted_taus,
)
from flatsearch.pruners.regression import Reference

RESAMPLES = 500
MATCHED = {"kappa last": "kappa_last", "trace last": "trace_last", "kappa all": "kappa_all"}


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Return Kendall's tau-b."""
    return float(stats.kendalltau(x, y).statistic)


def interval(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Return [tau, low, high] over pairs that are both known."""
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < MIN_TRIALS or len(np.unique(x)) < 2:
        return [np.nan] * 3
    taus = weighted_taus(x, y, bootstrap_weights(np.ones(len(x)), RESAMPLES))
    return [float(taus[0]), *percentiles(taus[1:])]


def tau_given(x: np.ndarray, y: np.ndarray, covariates: np.ndarray) -> float:
    """Return tau between what a linear regression on covariates (n, p) leaves of both."""
    design = np.column_stack([np.ones(len(x)), covariates])
    both = np.stack([x, y], 1)
    left = both - design @ np.linalg.lstsq(design, both, rcond=None)[0]
    return kendall(*left.T)


def interval_given(x: np.ndarray, y: np.ndarray, covariates: np.ndarray) -> list[float]:
    """Return [tau, low, high] of normal scores given those of covariates, regressions made anew."""
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < MIN_TRIALS:
        return [np.nan] * 3
    columns = np.column_stack([x, y, covariates])[known]
    scores = np.stack([Reference(column).score(column) for column in columns.T], 1)
    return list(
        tables.bootstrap(tau_given, scores[:, 0], scores[:, 1], scores[:, 2:], times=RESAMPLES)
    )


def top(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Return tau with its interval among the networks that end best."""
    best = np.argsort(-y)[: max(10, len(y) // 10)]
    return interval(x[best], y[best])


def sign_errors(curves: tables.Curves, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return by how much the share of wrongly ordered pairs rises where a parameter differs."""
    first, second = np.triu_indices(len(y), 1)
    differs = (y[first] != y[second]) & (x[first] != x[second])
    first, second = first[differs], second[differs]
    wrong = np.sign(x[first] - x[second]) != np.sign(y[first] - y[second])
    found = {}
    for name in curves.rows[0][0]:
        if not name.startswith(("p.", "r.")) or name == "p.cell":
            continue
        values = np.array([row[0][name] for row in curves.rows])
        pairs = values[first] != values[second]
        if pairs.sum() >= 100:
            found[name[2:]] = round(float(wrong[pairs].mean() - wrong.mean()), 3)
    return found


def rounded(values: list[float]) -> list[float | None]:
    """Return three digits, and None for what is not defined."""
    return [None if np.isnan(v) else round(float(v), 3) for v in values]


def correlate(curves: tables.Curves) -> dict:
    """Return everything about a table."""
    y, gap = curves.target(), curves.gap()
    middle = {1, 2, 3, curves.epochs // 4, curves.epochs // 2, curves.epochs}
    names = [name for name in tables.SIGNALS if curves.has(name)]
    rows = [(name, epoch) for epoch in sorted(middle) for name in names]
    found = []
    values = [(n, 0, curves.signal(n, 1)) for n in tables.UNTRAINED if curves.has(n)]
    values += [(name, epoch, curves.signal(name, epoch)) for name, epoch in rows]
    values += [(f"{name} at matched loss", None, curves.at_matched_loss(column))
               for name, column in MATCHED.items()]  # fmt: skip
    size = curves.size()
    for name, epoch, x in values:
        matched = epoch is None
        found.append({
            "signal": name,
            "epoch": epoch,
            "tau": rounded(interval(x, y)),
            "tau_top": rounded(top(x, y)),
            "tau_gap": rounded(interval(x, gap)),
            "tau_given_size": rounded(interval_given(x, y, size)) if matched else None,
            "tau_gap_given_size": rounded(interval_given(x, gap, size)) if matched else None,
            "sign_error": sign_errors(curves, x, y),
        })
    return {
        "networks": len(curves),
        "diverged": curves.diverged,
        "epochs": curves.epochs,
        "target": "published accuracy" if curves.published else "test accuracy",
        "range": rounded([y.min(), y.max()]),
        # Whether networks that have learnt more are sharper, after the first epoch.
        "learnt": rounded(
            interval(curves.signal("kappa all", 1), curves.signal("-training loss", 1))
        ),
        "matched_loss": round(curves.matched_loss(), 3),
        "signals": found,
        "environment": curves.environment,
    }


def main() -> None:
    """Write the correlations and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", default=tables.names())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = {}
    for name in args.tables:
        results[name] = correlate(tables.load(name))
        print(f"\n{name}: {results[name]['networks']} networks")
        for row in results[name]["signals"]:
            numbers = [row[key] for key in ("tau", "tau_top", "tau_gap")]
            shown = (f"{v[0]:+.2f} [{v[1]:+.2f}, {v[2]:+.2f}]" for v in numbers if v[0] is not None)
            print(
                f"{row['epoch'] if row['epoch'] is not None else '':3}",
                f"{row['signal']:26}",
                *shown,
            )
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
