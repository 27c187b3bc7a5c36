"""Reading the recorded tables; which of them may be tuned on, and which are reported on.

Signals are turned so that larger is better according to their papers; flatness and trace keep
their own sign, which is what the tables are about.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flatsearch.analysis.intervals import percentiles, resamples
from flatsearch.signals import table as signals

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(os.environ.get("CURVES", Path(__file__).resolve().parents[1] / "results" / "curves"))
# Everything that was chosen (features, prior, limits) was chosen on these alone.
TUNING = ("fashion-plain", "cifar10-resnet", "fashion-recipes")

# Columns that have another name than the signal; those of the untrained network begin with "z.".
COLUMNS = {
    "flatness": "kappa_last",
    "hessian_trace": "trace_last",
    "flatness_all": "kappa_all",
    "hessian_trace_all": "trace_all",
}


def bootstrap(
    statistic: Callable[..., float], *columns: np.ndarray, times: int
) -> tuple[float, float, float]:
    """Return a statistic of columns with its 95% percentile bootstrap interval over their rows."""
    chosen = resamples(len(columns[0]), times)
    values = np.array([statistic(*(column[rows] for column in columns)) for rows in chosen])
    return float(statistic(*columns)), *percentiles(values)


def column_of(signal: signals.Signal) -> str:
    """Return the column that holds a signal of the product."""
    if signal.first == "untrained":
        return "z." + signal.name.removeprefix("untrained_")
    return COLUMNS.get(signal.name, signal.name)


def _columns(first: str) -> dict[str, tuple[str, int]]:
    """Return (column, sign) of the product's signals by what tables call them."""
    found = {}
    for signal in signals.SIGNALS.values():
        if signal.first == first:
            column = column_of(signal)
            words = column.replace("_", " ") if signal.name in COLUMNS else signal.words
            found["-" * (signal.sign < 0) + words] = (column, signal.sign or 1)
    return found


# Name of the signal: (column, sign); variants of flatness that are recorded in these tables alone.
SIGNALS = _columns("epoch") | {
    "kappa last, input": ("kappa_last_input", 1),
    "mean log kappa": ("log_kappa_all", 1),
}
UNTRAINED = _columns("untrained")


@dataclass(frozen=True)
class Curves:
    """One table: networks that were trained to the end.

    Attributes:
        name: Of the table.
        rows: Per network, its rows by epoch.
        epochs: How many.
        diverged: Networks without a final accuracy, which are not among the rows.
    """

    name: str
    rows: tuple[tuple[dict[str, str], ...], ...]
    epochs: int
    diverged: int

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str, epoch: int | None = None) -> np.ndarray:
        """Return a column after an epoch (from 1), the last where None; NaN where it is empty."""
        index = -1 if epoch is None else epoch - 1
        return np.array([float(row[index].get(name) or "nan") for row in self.rows])

    def has(self, name: str) -> bool:
        """Return whether a signal was recorded, by its name here."""
        return (SIGNALS | UNTRAINED)[name][0] in self.rows[0][0]

    def signal(self, name: str, epoch: int) -> np.ndarray:
        """Return a signal by its name here, turned so that larger is said to be better."""
        if name == "depth":
            return self.depth()
        column, sign = (SIGNALS | UNTRAINED)[name]
        return sign * self.column(column, epoch)

    @cached_property
    def environment(self) -> dict:
        """What was run, where."""
        return json.loads((FOLDER / f"{self.name}.json").read_text())

    @cached_property
    def published(self) -> bool:
        """Whether the final accuracy is a benchmark's."""
        return "published" in self.rows[0][0]

    def size(self) -> np.ndarray:
        """Return what is known of a network's size, (networks, 3): parameters, FLOPs and depth."""
        columns = [self.column("z.parameters"), self.column("z.flops"), self.depth()]
        return np.stack(columns, 1)

    def depth(self) -> np.ndarray:
        """Return the number of convolutions of the networks."""
        return np.array([float(len(row[0]["layers"].split())) for row in self.rows])

    def matched_loss(self) -> float:
        """Return a training loss that three quarters of the networks get down to."""
        return float(np.quantile(self.column("train_loss"), 0.75))

    def at_matched_loss(self, name: str) -> np.ndarray:
        """Return a column when the training loss first passes `matched_loss`.

        Interpolated in the loss between epochs, logarithmically; NaN for networks that do not get
        there, or begin below it.
        """
        level, found = self.matched_loss(), []
        for rows in self.rows:
            losses = [float(row["train_loss"]) for row in rows]
            after = next((i for i, loss in enumerate(losses) if loss <= level), 0)
            if after == 0:
                found.append(np.nan)
                continue
            a, b = (float(rows[i].get(name) or "nan") for i in (after - 1, after))
            share = (losses[after - 1] - level) / (losses[after - 1] - losses[after])
            log = np.log([a, b]) if min(a, b) > 0 else np.array([np.nan] * 2)
            found.append(float(np.exp(log[0] + share * (log[1] - log[0]))))
        return np.array(found)

    def target(self) -> np.ndarray:
        """Return what a search is after: the final test accuracy, or the published accuracy."""
        return self.column("published" if self.published else "test_accuracy")

    def gap(self) -> np.ndarray:
        """Return the final accuracy on the training images less the one on the test images."""
        return self.column("fit_accuracy") - self.column("test_accuracy")


def names() -> list[str]:
    """Return the tables that are recorded."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def trained(*, tuning: bool = False) -> list[str]:
    """Return those of networks that were trained for them, `tuning`: that rules are chosen on."""
    return [n for n in names() if "nasbench201" not in n and (n in TUNING or not tuning)]


def load(name: str) -> Curves:
    """Read a table."""
    networks: dict[int, list[dict[str, str]]] = {}
    with (FOLDER / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            networks.setdefault(int(row["network"]), []).append(row)
    whole = [tuple(rows) for rows in networks.values() if rows[-1].get("test_accuracy")]
    epochs = max(int(row["epoch"]) for rows in whole for row in rows)
    return Curves(name, tuple(whole), epochs, len(networks) - len(whole))
