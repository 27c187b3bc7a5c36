"""The statistics of scores of NAS-Bench-201's cells, and the page; see `nasbench201.py`."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import tables
from correlate import kendall
from early_score import log_ranks
from evidence import rows
from nasbench201_cells import TARGETS, accuracies, features, graph, logit
from scipy import stats
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold, cross_val_predict

from flatsearch.analysis.intervals import (
    bootstrap_weights,
    percentiles,
    weighted_taus,
)

RESULTS = Path(__file__).resolve().parents[1] / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "nasbench201.md"
RESAMPLES = 500
FIRST = 100  # of a ranking count for nDCG
FOREST = "graph, forest fitted to 1,000 trained cells"
FITTED = 1000  # trained cells that a forest is fitted to
AZ_NAS = ("expressivity", "progressivity", "trainability", "flops")
VKDNW = ("jacov", "expressivity", "trainability", "flops")
RANK_SUMS = {
    "AZ-NAS": AZ_NAS,
    "AZ-NAS, nwot": (*AZ_NAS, "nwot"),
    "VKDNW's sum, layers in its place": ("layers", *VKDNW),
    "VKDNW's sum": ("vkdnw", *VKDNW),
    "VKDNW's sum, per image": ("vkdnw_per_image", *VKDNW),
    "AZ-NAS, nwot, training loss": (*AZ_NAS, "nwot", "-training loss"),
}


LEAST, FITS_FROM = 50, 500  # cells that a sample is shown from, and is fitted from
# Tau of Table 1 of Tybl and Neumann, CVPR 2025 (test accuracy; AZ-NAS as they reproduced it), and,
# of AZ-NAS, of its own paper.
PUBLISHED = {
    "FLOPs": (0.623, 0.586, 0.545),
    "SNIP": (0.431, 0.440, 0.389),
    "SynFlow": (0.561, 0.553, 0.531),
    "nwot": (0.571, 0.607, 0.605),
    "ZiCo": (0.607, 0.614, 0.587),
    "Jacov": (0.616, 0.639, 0.602),
    "number of layers": (0.626, 0.646, 0.623),
    "VKDNW": (0.618, 0.634, 0.622),
    "AZ-NAS, reproduced": (0.712, 0.696, 0.673),
    "AZ-NAS, its own paper": (0.741, 0.723, 0.710),
    "VKDNW's sum": (0.750, 0.753, 0.743),
    "random forest on VKDNW, other scores and the graph": (0.859, 0.847, 0.842),
}


def path(depth: int) -> Path:
    """Return the table of networks of a depth."""
    return RESULTS / f"nasbench201-{depth}.csv"


def read(depth: int) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with path(depth).open() as file:
        return list(csv.DictReader(file))


def dcg_share(score: np.ndarray, accuracy: np.ndarray) -> float:
    """Return nDCG of the first networks of a ranking, gains 2^accuracy - 1; ties share theirs."""
    gains = 2.0**accuracy - 1
    _, place, often = np.unique(-score, return_inverse=True, return_counts=True)
    shared = np.repeat(np.bincount(place, gains) / often, often)
    discount = 1 / np.log2(np.arange(2, 2 + min(FIRST, len(gains))))
    best = np.sort(gains)[::-1]
    return float(shared[: len(discount)] @ discount / (best[: len(discount)] @ discount))


def regret(score: np.ndarray, accuracy: np.ndarray) -> float:
    """Return by how much the top pick misses the best accuracy; of equal picks, the mean."""
    return float(accuracy.max() - accuracy[score == score.max()].mean())


STATISTICS = {"tau": kendall, "ndcg": dcg_share, "regret": regret}


def judged(score: np.ndarray, accuracy: np.ndarray, *, whole: bool = False) -> dict[str, list]:
    """Return the statistics of a score, with intervals unless it is of the whole benchmark."""
    # Ranks, so that infinite values are equal to each other and nothing overflows.
    score = stats.rankdata(np.where(np.isnan(score), -np.inf, score))
    if whole:
        return {name: [round(of(score, accuracy), 3)] for name, of in STATISTICS.items()}
    taus = weighted_taus(score, accuracy, bootstrap_weights(np.ones(len(score)), RESAMPLES))
    found = {"tau": [float(taus[0]), *percentiles(taus[1:])]}
    for name in ("ndcg", "regret"):
        found[name] = list(tables.bootstrap(STATISTICS[name], score, accuracy, times=RESAMPLES))
    return {name: [round(v, 3) for v in values] for name, values in found.items()}


def with_sums(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return scores with the sums of log ranks that can be made of them, and their mean."""
    known = {name: names for name, names in RANK_SUMS.items() if set(names) <= scores.keys()}
    sums = {name: log_ranks([scores[n] for n in names]) for name, names in known.items()}
    later = ("epoch", "loss", "connected")  # known after training, or added after the protocol
    untrained = [v for name, v in scores.items() if not any(word in name for word in later)]
    normal = [stats.norm.ppf((stats.rankdata(v) - 0.5) / len(v)) for v in untrained]
    return {**scores, **sums, "mean of all untrained": np.mean(normal, 0)}


def scored_cells(depth: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the cells of a table with their scores, of those that all cells have."""
    rows = read(depth)
    names = [n for n in rows[0] if n not in {"cell", "seconds", *TARGETS}]
    whole = [n for n in names if all(row[n] for row in rows)]
    scores = {n: np.array([float(row[n]) for row in rows]) for n in whole}
    for entropy_name, name in (("entropy", "vkdnw"), ("entropy_per_image", "vkdnw_per_image")):
        if entropy_name in scores:
            scores[name] = scores["layers"] + scores.pop(entropy_name)
    cells = [row["cell"] for row in rows]
    return cells, {**scores, **graph(cells)}


def recorded_cells() -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the cells of the recorded curves with their scores."""
    curves = tables.load("cifar10-nasbench201")
    cells = [rows[0]["p.cell"] for rows in curves.rows]
    columns = {n.removeprefix("z."): curves.column(n) for n in curves.rows[0][0] if n[:2] == "z."}
    scores = {**columns, **graph(cells)}
    scores["-training loss"] = -curves.column("train_loss")
    scores["validation accuracy after 3 epochs"] = curves.column("accuracy")
    scores["trace all after 3 epochs"] = curves.column("trace_all")
    scores["kappa all after 3 epochs"] = curves.column("kappa_all")
    return cells, scores


def cross_validated(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the forest's predictions of cells from nine tenths that they are not in."""
    x = np.nan_to_num(x, neginf=-1e9, posinf=1e9)
    folds = KFold(10, shuffle=True, random_state=0)
    return cross_val_predict(RandomForestRegressor(random_state=0), x, logit(y), cv=folds)


def fitted(x: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """Return the statistics, on all other cells, of a forest fitted to random ones."""
    order = np.random.default_rng(0).permutation(len(y))
    some, others = order[:FITTED], order[FITTED:]
    model = RandomForestRegressor(50, random_state=0).fit(x[some], logit(y[some]))
    return judged(model.predict(x[others]), y[others], whole=True)


def analyse() -> dict:
    """Return everything that is on the page."""
    published = accuracies()
    every = sorted(published)
    without, x = graph(every), features(every)
    result: dict = {"cells": len(every), "whole": {}, "samples": {}}
    for target in TARGETS:
        y = np.array([published[cell][target] for cell in every])
        found = {name: judged(v, y, whole=True) for name, v in without.items()}
        found[FOREST] = fitted(x, y)
        result["whole"][target] = found
    samples = {"recorded": recorded_cells()}
    samples |= {f"depth {d}": scored_cells(d) for d in (5, 1) if path(d).exists()}
    for label, (cells, scores) in samples.items():
        if len(cells) < LEAST:
            continue
        result["samples"][label] = {"cells": len(cells), "targets": {}}
        for target in TARGETS:
            y = np.array([published[cell][target] for cell in cells])
            found = {name: judged(v, y) for name, v in with_sums(scores).items()}
            if len(cells) >= FITS_FROM:
                signals = np.stack([*scores.values()], 1)
                both = np.hstack([signals, features(cells)])
                found["fitted: scores"] = judged(cross_validated(signals, y), y)
                found["fitted: scores, graph"] = judged(cross_validated(both, y), y)
            result["samples"][label]["targets"][target] = found
    return result


def shown(values: list[float], digits: int) -> str:
    """Return a value with its interval, if it has one."""
    text = f"{values[0]:.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} [{values[1]:.{digits}f}, {values[2]:.{digits}f}]"


def page_table(targets: dict[str, dict]) -> str:
    """Return the statistics of scores, data sets side by side, the best on average first."""
    names = list(next(iter(targets.values())))
    names.sort(key=lambda name: -sum(found[name]["tau"][0] for found in targets.values()))
    head = ["score", *(f"{what}, {t}" for what in ("tau", "nDCG", "regret")
                       for t in TARGETS.values())]  # fmt: skip
    body = []
    for name in names:
        cells = [
            shown(found[name][key], digits)
            for key, digits in (("tau", 3), ("ndcg", 2), ("regret", 1))
            for found in targets.values()
        ]
        body.append([name, *cells])
    return "\n".join(rows(head, body))


def taus(targets: dict[str, dict], name: str) -> str:
    """Return tau of a score on the three data sets."""
    return ", ".join(f"{found[name]['tau'][0]:.2f}" for found in targets.values())


def done(depth: int) -> str:
    """Return how many cells are scored, and what one takes."""
    if not path(depth).exists():
        return "none"
    scored = read(depth)
    seconds = np.median([float(row["seconds"]) for row in scored])
    return f"{len(scored)} ({seconds:.1f} s of one busy core each)"


def write_page(found: dict) -> None:
    """Write the page from the results."""
    titles = {
        "recorded": "networks of the benchmark's size, and three epochs of small ones",
        "depth 5": "networks of the benchmark's size, small images",
        "depth 1": "networks of one cell per stage, small images",
    }
    parts = []
    for label, sample in found["samples"].items():
        parts += [f"### {sample['cells']} cells: {titles[label]}", ""]
        parts += [page_table(sample["targets"]), ""]
    few, whole = found["samples"]["recorded"]["targets"], found["whole"]
    many, small = found["samples"]["depth 5"], found["samples"]["depth 1"]
    values = {
        "whole": page_table(whole),
        "cells": f"{found['cells']:,}",
        "samples": "\n".join(parts).rstrip(),
        "published": "\n".join(
            rows(["score", *TARGETS.values()], [[n, *map(str, v)] for n, v in PUBLISHED.items()])
        ),
        "forest": taus(whole, FOREST),
        "size_whole": taus(whole, "parameters"),
        "size_few": taus(few, "parameters"),
        "connected": taus(whole, "parameters, connected"),
        "sum": taus(few, "AZ-NAS, nwot"),
        "az_nas": taus(few, "AZ-NAS"),
        "scored": f"{many['cells']:,}",
        "vkdnw_sum": taus(many["targets"], "VKDNW's sum, per image"),
        "sum_many": taus(many["targets"], "AZ-NAS, nwot"),
        "fit_many": taus(many["targets"], "fitted: scores, graph"),
        "vkdnw_small": taus(small["targets"], "VKDNW's sum, per image"),
        "sum_small": taus(small["targets"], "AZ-NAS, nwot"),
        "vkdnw_plain": taus(many["targets"], "VKDNW's sum"),
        "done_1": done(1),
        "done_5": done(5),
    }
    text = (Path(__file__).parent / "nasbench201.md.in").read_text()
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    PAGE.write_text(re.sub("\n{3,}", "\n\n", text))
