"""The rows as arrays: every signal and outcome of the networks of one data set.

Signals are turned so that a larger one is expected to go with a larger test error.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
from design import FACTORS, SEEDS, configurations

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["FOCUS", "OUTCOMES", "SIGNALS", "Table", "load", "mean_over_seeds", "probes", "table"]


def _layers(index: int, join: Callable[[np.ndarray, np.ndarray], float]):
    """Return a number made of one of (kappa, trace, nu) of all convolutions, and their fan-in."""

    def value(row: dict, checkpoint: str) -> float:
        layers = [part.split(":") for part in row[f"layers@{checkpoint}"].split()[:-1]]
        numbers = np.array(layers, dtype=float)
        return join(numbers[:, index], numbers[:, 3])

    return value


def _column(name: str, sign: float = 1.0):
    return lambda row, checkpoint: sign * float(row[f"{name}@{checkpoint}"])


def _ratio(name: str):
    return lambda row, checkpoint: _column(name)(row, checkpoint) / _column("loss")(row, checkpoint)


def _validation(name: str, images: int, sign: float = 1.0):
    def value(row: dict, checkpoint: str) -> float:
        groups = np.array(row[f"{name}@{checkpoint}"].split(), dtype=float)
        return sign * float(groups[: images // 25].mean())

    return value


def probes(name: str, count: int):
    """Return the mean of the first probes of a row."""
    return lambda row, checkpoint: float(
        np.mean([float(v) for v in row[f"{name}@{checkpoint}"].split()[:count]])
    )


def _sum_of_logs(numbers: np.ndarray, _: np.ndarray) -> float:
    return float(np.log(numbers).sum()) if (numbers > 0).all() else math.nan


# Name -> the number of a row at a checkpoint.
SIGNALS: dict[str, Callable[[dict, str], float]] = {
    **{
        f"{k} {w}": _column(f"{k}_{w}")
        for k in ("nu", "kappa", "trace")
        for w in ("all", "last", "head")
    },
    **{
        f"{k} {w}, input": _column(f"{k}_input_{w}")
        for k in ("nu", "kappa", "trace")
        for w in ("all", "last")
    },
    "nu all / loss": _ratio("nu_all"),
    "kappa all / loss": _ratio("kappa_all"),
    "kappa / d all": _layers(0, lambda kappa, d: float((kappa / d).sum())),
    "sum of log nu": _layers(2, _sum_of_logs),
    "sum of log kappa": _layers(0, _sum_of_logs),
    "largest eigenvalue": _column("largest_eigenvalue"),
    **{f"trace, {n} probes": probes("traceprobes", n) for n in (1, 10, 100)},
    "SAM": _column("sam"),
    "adaptive SAM": _column("adaptive_sam"),
    "weight noise": _column("weight_noise"),
    "gradient norm": _column("gradient_norm"),
    "weight norm": _column("weight_norm"),
    "log Frobenius norms": _column("log_frobenius"),
    "log spectral norms": _column("log_spectral"),
    "distance from start": _column("distance"),
    "log path norm": _column("log_path_norm"),
    "-margin": _column("margin", -1.0),
    "-normalised margin": _column("normalised_margin", -1.0),
    "training loss": _column("loss"),
    "-parameters": lambda row, _: -float(row["parameters"]),
    **{f"validation loss, {n}": _validation("validation_losses", n) for n in (25, 50, 250, 1000)},
}
# What the pilots looked at: psi, information, sign errors and choices are of these.
FOCUS = (
    "nu all",
    "nu last",
    "kappa all",
    "kappa last",
    "trace all",
    "adaptive SAM",
    "weight noise",
    "-normalised margin",
    "training loss",
    "-parameters",
)
OUTCOMES: dict[str, Callable[[dict, str], float]] = {
    "test error": lambda row, c: 1 - float(row[f"test_accuracy@{c}"]),
    "accuracy gap": lambda row, c: float(row[f"accuracy@{c}"]) - float(row[f"test_accuracy@{c}"]),
    "loss gap": lambda row, c: float(row[f"test_loss@{c}"]) - float(row[f"loss@{c}"]),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """The networks of one data set.

    Attributes:
        rows: (configuration, seed) -> row, of the networks that count.
        every: The same of all rows.
        signs: Levels of all configurations of the design that have a network, (n, factors).
        indices: Their numbers, (n,).
    """

    rows: dict[tuple[int, int], dict]
    every: dict[tuple[int, int], dict]
    signs: np.ndarray
    indices: list[int]

    def values(self, of: Callable[[dict, str], float], checkpoint: str) -> np.ndarray:
        """Return a number of every network, (seeds, n), NaN where there is none."""
        found = np.full((len(SEEDS), len(self.indices)), np.nan)
        for column, index in enumerate(self.indices):
            for line, seed in enumerate(SEEDS):
                row = self.rows.get((index, seed))
                if row is not None and row.get(f"loss@{checkpoint}", "rescaled"):
                    found[line, column] = of(row, checkpoint)
        return found


def mean_over_seeds(values: np.ndarray) -> np.ndarray:
    """Return means of logarithms where all are positive, else means, (n,)."""
    known = np.isfinite(values)
    if (values[known] > 0).all():
        values = np.log(np.where(known, values, 1.0))
    total = np.where(known, values, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def load(file: Path, status: tuple[str, ...] = ("done",)) -> Table:
    """Read the rows of a data set; those whose training ended otherwise do not count."""
    with file.open(newline="") as source:
        every = {(int(r["configuration"]), int(r["seed"])): r for r in csv.DictReader(source)}
    return table(every, status)


def table(every: dict[tuple[int, int], dict], status: tuple[str, ...] = ("done",)) -> Table:
    """Return the networks that count, of rows by configuration and seed."""
    rows = {key: row for key, row in every.items() if row["status"] in status}
    indices = sorted({index for index, _ in rows})
    signs = {c.index: c.signs for c in configurations()}
    found = np.array([signs[i] for i in indices]).reshape(len(indices), len(FACTORS))
    return Table(rows, every, found, indices)
