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
random forest on the cell's graph, fitted to a random sample of trained cells and judged on the
rest. nDCG is that of the first 100. Added after a first look: a forest told only the operations as
they are written ranks badly (.70), so that it, and size, are told which of them are connected.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from nasbench201_analysis import RESULTS, analyse, path, read, write_page
from nasbench201_cells import accuracies, built, counts, size
from PIL import Image
from torch import Tensor, nn

from flatsearch.signals.aznas import block_outputs, entropy
from flatsearch.signals.compute import ProxyInput, measure
from flatsearch.signals.fisher import fisher_information
from flatsearch.signals.table import PROXIES, UNTRAINED
from search_spaces.nasbench201 import parse_cell

IMAGES, SIZE = 16, 16
# Images for the Fisher information, by depth.
NOISE = {1: 8, 5: 16}


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
        **dict(zip(("parameters", "flops", "layers"), size(counts(parse_cell(cell))), strict=True)),
        **{name.removeprefix(UNTRAINED): value for name, value in found.items()},
        "expressivity": sum(entropies),
        "progressivity": float(np.diff(entropies).min()),
        "jacov": jacov(built(cell, depth), x),
        "entropy": decile_entropy(built(cell, depth), few) if fisher else "",
        "entropy_per_image": decile_entropy(per_image(built(cell, depth)), few) if fisher else "",
    }


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
