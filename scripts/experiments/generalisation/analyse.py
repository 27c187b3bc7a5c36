"""What the rows say: scripts/results/generalisation/analysis.json, and the page and its figure.

    python scripts/experiments/generalisation/analyse.py [--page-only]

Every statistic is one of docs/generalisation-protocol.md; the page is docs/generalisation.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import page
import ranks
from choosing import choices
from design import FACTORS, configurations
from run import FOLDER, LOSSES
from table import FOCUS, OUTCOMES, SIGNALS, Table, load, mean_over_seeds, probes, table

DATASETS = ("fashion", "cifar10")
SAMPLES, MORE_SAMPLES, TENTH = 1000, 4000, 50
# With fewer configurations nothing is said, nothing is tested.
FEW, FEWEST = 20, 48
PROBES = {
    "trace all": ("trace_probes", (1, 2, 5, 10, 20, 50, 100)),
    "nu all": ("nu_probes", (1, 2, 5, 10, 20, 50)),
}
RIVALS = ("adaptive SAM", "weight noise", "-normalised margin")


class Means:
    """Signals and outcomes of configurations, means over seeds, where both are there.

    Args:
        data: The networks.
        checkpoint: Where signals are read.
        outcome_at: Where outcomes are read.
    """

    def __init__(self, data: Table, checkpoint: str, outcome_at: str) -> None:
        self._data, self._checkpoint = data, checkpoint
        outcomes = {name: data.values(of, outcome_at) for name, of in OUTCOMES.items()}
        measured = np.isfinite(data.values(SIGNALS["training loss"], checkpoint))
        self._known = measured & np.isfinite(outcomes["test error"])
        self.use = self._known.any(0)
        self.signs = data.signs[self.use]
        self.outcomes = {
            name: np.nanmean(np.where(self._known, values, np.nan)[:, self.use], 0)
            for name, values in outcomes.items()
        }
        self.error = self.outcomes["test error"]

    def __len__(self) -> int:
        return int(self.use.sum())

    def signal(self, name: str) -> np.ndarray:
        """Return a signal, (n,); NaN where it was not measured at the checkpoint."""
        try:
            values = self._data.values(SIGNALS[name], self._checkpoint)
        except (KeyError, ValueError):
            return np.full(len(self), np.nan)
        return mean_over_seeds(np.where(self._known, values, np.nan)[:, self.use])

    def given(self, what: str) -> np.ndarray:
        """Return what a partial correlation is given, (n, variables)."""
        if what == "nothing":
            return np.empty((len(self), 0))
        depth = self.signs[:, [list(FACTORS).index("depth")]]
        size = [self.signal("-parameters")[:, None], depth]
        more = {"loss": [], "loss, size, depth": size, "all factors": [*size, self.signs]}[what]
        return np.column_stack([self.signal("training loss"), *more])


def correlations(data: Table, checkpoint: str, outcome_at: str) -> dict:
    """Return tau, rho and partial correlations of every signal at a checkpoint."""
    means, found = Means(data, checkpoint, outcome_at), {}
    if len(means) < 8:
        return {}
    weights = ranks.resample(len(means), SAMPLES)
    partial = {
        what: ranks.Partial(means.error, means.given(what), weights)
        for what in ("nothing", "loss", "loss, size, depth", "all factors")
    }
    for name in SIGNALS:
        x = means.signal(name)
        if not np.isfinite(x).all():
            continue
        row = {
            f"tau {what}": ranks.weighted_taus(x, y, weights) for what, y in means.outcomes.items()
        }
        row |= {f"given {what}": correlation(x) for what, correlation in partial.items()}
        found[name] = {key: ranks.interval(values) for key, values in row.items()}
    return found


def hypotheses(data: Table) -> dict:
    """Return H1, H2 and H3, with their unadjusted probabilities, and the rivals' lead in tau."""
    means = Means(data, "end", "end")
    if len(means) < FEWEST:
        return {}
    weights = ranks.resample(len(means), MORE_SAMPLES)
    partial = ranks.Partial(means.error, means.given("loss, size, depth"), weights)
    nu, kappa = (partial(means.signal(name)) for name in ("nu all", "kappa all"))
    chosen = choices(data, "end", SAMPLES, {"nu all", f"accuracy, {TENTH}"})
    cost = chosen["nu all"] - chosen[f"accuracy, {TENTH}"]
    found = {
        name: {"estimate": ranks.interval(values), "p": ranks.probability(values)}
        for name, values in (("H1", nu), ("H2", nu - kappa), ("H3", cost))
    }
    taus = {
        name: ranks.weighted_taus(means.signal(name), means.error, weights)
        for name in ("nu all", *RIVALS)
    }
    found["rivals"] = {name: ranks.interval(taus[name] - taus["nu all"]) for name in RIVALS}
    return found


def granulated(data: Table) -> dict:
    """Return psi, conditional information and sign errors of the signals in focus."""
    error, found = data.values(OUTCOMES["test error"], "end"), {}
    means, weights = Means(data, "end", "end"), ranks.resample(len(data.indices), SAMPLES)
    noise = math.sqrt(float(np.nanmean(error * (1 - error))) / 10_000)
    for name in FOCUS:
        values = data.values(SIGNALS[name], "end")
        mean, factors = ranks.psi(values, error, data.signs, weights)
        errors = ranks.sign_errors(values, error, data.signs, noise)
        errors = {key: value for key, value in errors.items() if value[1] >= 6}
        alone = {key: value for key, value in errors.items() if key[1] < 0}
        found[name] = {
            "psi": ranks.interval(mean),
            "factors": {f: ranks.interval(factors[:, i]) for i, f in enumerate(FACTORS)},
            "information": ranks.conditional_information(
                means.signal(name), means.error, means.signs
            ),
            "worst": worst(alone),
            "worst of all": worst(errors),
        }
    random = np.random.default_rng(0).random((20, len(means)))
    found["random numbers"] = {
        "information": float(
            np.mean([ranks.conditional_information(x, means.error, means.signs) for x in random])
        )
    }
    return found


def worst(errors: dict) -> dict | None:
    """Return the environment with the largest sign error."""
    if not errors:
        return None
    (changing, other, level), (share, pairs) = max(errors.items(), key=lambda item: item[1][0])
    names = list(FACTORS)
    where = f", {names[other]} {FACTORS[names[other]][level > 0]}" if other >= 0 else ""
    return {"environment": names[changing] + where, "error": share, "pairs": pairs}


def probing(data: Table) -> dict:
    """Return how well means of probes rank, by exact number and number of probes."""
    means, found = Means(data, "end", "end"), {}
    weights = ranks.resample(len(means), SAMPLES)
    seconds = {
        k: data.values(lambda row, _, k=k: float(row[f"{k}_seconds@end"]), "end")
        for k in ("flatness", "probes")
    }
    found["seconds"] = {k: float(np.nanmedian(v)) for k, v in seconds.items()}
    found["seconds"]["probes"] /= sum(counts[-1] for _, counts in PROBES.values())
    for name, (column, counts) in PROBES.items():
        exact, values = means.signal(name), data.values(SIGNALS[name], "end")
        found[name] = {
            "exact": {"error": ranks.interval(ranks.weighted_taus(exact, means.error, weights))}
        }
        for count in counts:
            estimates = data.values(probes(column, count), "end")
            mean = mean_over_seeds(estimates)
            known = np.isfinite(values)
            single = np.ones((1, known.sum()))
            found[name][str(count)] = {
                "exact": float(ranks.weighted_taus(estimates[known], values[known], single)[0]),
                "error": ranks.interval(ranks.weighted_taus(mean, means.error, weights)),
            }
    return found


def rescaling(data: Table) -> dict:
    """Return what Petzka's control does to each signal."""
    found = {}
    for name, of in SIGNALS.items():
        try:
            pair = [data.values(of, checkpoint) for checkpoint in ("end", "rescaled")]
        except (KeyError, ValueError):
            continue
        before, after = (values[np.isfinite(pair[0])] for values in pair)
        change = np.abs(after - before) / np.maximum(np.abs(before), 1e-300)
        tau = ranks.weighted_taus(before, after, np.ones((1, len(before))))[0]
        found[name] = {"largest": float(change.max()), "tau": float(tau)}
    return found


def describe(data: Table) -> dict:
    """Return how many networks there are, how they ended and how they differ."""
    ends = {key: row["status"] for key, row in data.every.items()}
    levels = {c.index: c.levels for c in configurations()}
    unfinished: dict[str, dict[str, int]] = {name: {} for name in FACTORS}
    for (index, _), status in ends.items():
        for name, level in levels[index].items():
            unfinished[name].setdefault(str(level), 0)
            unfinished[name][str(level)] += status != "done"
    error = data.values(OUTCOMES["test error"], "end")
    spread = np.nanmean(error, 0) if error.size else np.array([])
    seconds = [
        sum(float(row[f"seconds.{k}"] or 0) for k in ("training", "measuring", "costly"))
        for row in data.every.values()
    ]
    return {
        "rows": len(ends),
        "finished": len(data.rows),
        "configurations": len(data.indices),
        "diverged": sum(status == "diverged" for status in ends.values()),
        "unfinished": unfinished,
        "seconds": float(np.sum(seconds)),
        "error": [float(v) for v in np.percentile(spread, [0, 50, 100])] if spread.size else None,
        "ceiling": ranks.between_seeds(error),
        "seeds": {name: ranks.between_seeds(data.values(SIGNALS[name], "end")) for name in FOCUS},
    }


def analyse(data: Table) -> dict:
    """Return everything about a data set."""
    found = {"networks": describe(data)}
    if len(data.indices) < FEW:
        return found
    unfinished = table(data.every, ("done", "limit"))
    found |= {
        "hypotheses": hypotheses(data),
        "end": correlations(data, "end", "end"),
        "end, unfinished too": correlations(unfinished, "end", "end"),
        "checkpoints": {str(v): correlations(data, str(v), str(v)) for v in LOSSES},
        "brief": correlations(data, "brief", "end"),
        "granulated": granulated(data),
        "probes": probing(data),
        "rescaled": rescaling(data),
    }
    for key, checkpoint in (("choosing", "end"), ("choosing, brief", "brief")):
        regret = choices(data, checkpoint, SAMPLES)
        found[key] = {name: ranks.interval(values) for name, values in regret.items()}
    return found


def adjust(results: dict) -> None:
    """Add Holm's adjusted probabilities over the hypotheses of all data sets."""
    tests = [
        test
        for found in results.values()
        for name, test in found.get("hypotheses", {}).items()
        if name != "rivals"
    ]
    for test, p in zip(tests, ranks.holm([test["p"] for test in tests]), strict=True):
        test["adjusted"] = p


def known(found: object) -> object:
    """Return numbers with None for what is not defined, which JSON has no word for."""
    if isinstance(found, dict):
        return {key: known(value) for key, value in found.items()}
    if isinstance(found, list):
        return [known(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def main() -> None:
    """Analyse and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page-only", action="store_true", help="from the numbers that are there")
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--docs", type=Path, default=page.DOCS)
    args = parser.parse_args()
    file = args.results / "analysis.json"
    if not args.page_only:
        results = {}
        for name in DATASETS:
            if (args.results / f"{name}.csv").exists():
                results[name] = analyse(load(args.results / f"{name}.csv"))
        adjust(results)
        file.write_text(json.dumps(known(results), indent=1) + "\n")
    page.write(json.loads(file.read_text()), args.docs)


if __name__ == "__main__":
    main()
