"""Many simulated studies of a recorded table at a time, as arrays; see `replay_parking.py`."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import tables
from replay import COSTS, PROBE

from flatsearch.record import LeastAccuracy

if TYPE_CHECKING:
    from replay_rules import Halving, Rule

# Name of the signal: (column, its sign: 1 where larger is better, what measuring it is called).
SIGNALS = {
    "loss": ("loss", -1, None),
    "accuracy": ("accuracy", 1, None),
    "train_loss": ("train_loss", -1, None),
    "train_accuracy": ("train_accuracy", 1, None),
    "tse": ("tse", -1, None),
    "weight_movement": ("weight_movement", 1, None),
    "gradient_norm": ("gradient_norm", 1, "gradient_norm"),
    "flatness": ("kappa_last", 1, "flatness"),
    "flatness_all": ("kappa_all", 1, "flatness_all"),
    "hessian_trace_all": ("trace_all", 1, "flatness_all"),
    "parameters": ("z.parameters", 1, None),
    "snip": ("z.snip", 1, "snip"),
    "synflow": ("z.synflow", 1, "synflow"),
    "nwot": ("z.nwot", 1, "nwot"),
}
Row = np.ndarray
# What is clearly better than guessing one of ten classes, on 1,000 images.
GUESSING = 0.12
MUDDLE = 0.3


@cache
def cost(signals: str, images: int) -> float:
    """Return what measuring the signals of a rank sum once takes, in epochs."""
    measured = json.loads(COSTS.read_text())
    names = {SIGNALS[name][2] for name in signals.split("+")} - {None}
    images_each = sum(measured["costs"][name]["median"] for name in names)
    return images_each * PROBE / measured["images"] / images


class Table:
    """A table as arrays.

    Args:
        name: Of the table.
        several: Whether flatness is an objective beside accuracy.
        least: Whether fronts need a least accuracy.
        flatness: The column of the second objective, smaller is better.
        muddle: For a table on which early epochs say less: the seed of noise that is added to the
            rank of every network in every signal after epoch e, `MUDDLE` / e of the networks.
        timed: Whether an epoch counts by the processor time that the network's took when it was
            recorded, the median over its epochs, in those of a mean network.
    """

    def __init__(
        self,
        name: str,
        *,
        several: bool = False,
        least: bool = False,
        flatness: str = "kappa_last",
        muddle: int = 0,
        timed: bool = False,
    ) -> None:
        self.curves = tables.load(name)
        self.epochs, self.n = self.curves.epochs, len(self.curves)
        self.images = self.curves.environment["settings"]["train"]
        self.several, self.least = several, LeastAccuracy(GUESSING) if least else None
        self.validation = self.curves.column("accuracy")
        self.test = self.curves.target()
        self.weight = np.ones(self.n)
        if timed:
            each = [self.curves.column("seconds", epoch + 1) for epoch in range(self.epochs)]
            self.weight = np.median(each, 0) / np.median(each, 0).mean()
        order = np.lexsort((-self.curves.column("loss"), self.validation))
        self.quality = np.empty(self.n, int)  # larger is better, without ties
        self.quality[order] = np.arange(self.n)
        self.by_quality = order
        self._kept: dict[tuple[str, int], Row] = {}
        self.flatness, self._muddle = flatness, muddle
        self.points = np.stack([self.validation, -np.log(self.curves.column(flatness))], 1)

    def corner(self, networks: Row) -> Row:
        """Return from which accuracy and -log flatness the area of a front is measured."""
        if self.least is None:
            return self.points.min(0)
        accuracy, flatness = self.points[networks].T
        return np.array([self.least.beside(accuracy.max()), flatness.min()])

    def volume(self, chosen: Row, corner: Row) -> float:
        """Return the area that networks dominate, of accuracy and -log flatness."""
        points = self.points[chosen] - corner
        points = points[(points >= 0).all(1)]
        points = points[(-points[:, 0]).argsort(kind="stable")]
        highest = np.maximum.accumulate(points[:, 1])
        return float((points[:, 0] * np.diff(highest, prepend=0.0)).sum())

    def column(self, name: str, epoch: int) -> Row:
        """Return a signal after an epoch, larger is better."""
        column, sign, _ = SIGNALS[name]
        return self.early(column, epoch, sign)

    def early(self, column: str, epoch: int, sign: int) -> Row:
        """Return a column as it is seen after an epoch, by a sign."""
        values = np.nan_to_num(sign * self.curves.column(column, max(1, epoch)), nan=-np.inf)
        if not self._muddle:
            return values
        random = np.random.default_rng([self._muddle, epoch, zlib.crc32(column.encode())])
        ranks = values.argsort(kind="stable").argsort()
        noisy = ranks + random.normal(0, MUDDLE * self.n / max(1, epoch), self.n)
        return np.sort(values)[noisy.argsort().argsort()]

    def ahead(self, signals: str, epoch: int) -> Row:
        """Return what each network (row) adds to the rank sum of every other one."""
        key = signals, epoch
        if key not in self._kept:
            total = np.zeros((self.n, self.n), np.float32)
            for name in signals.split("+"):
                values = self.column(name, epoch)
                total += values[:, None] > values
                total += 0.5 * (values[:, None] == values)
            self._kept[key] = total
        return self._kept[key]


@dataclass
class Studies:
    """Many studies of one table at a time; the first axis is the study."""

    table: Table
    order: Row  # (studies, networks): those of the study, in their order
    supply: int
    done: Row = field(init=False)  # (studies, networks): epochs so far
    busy: Row = field(init=False)
    started: Row = field(init=False)
    best: Row = field(init=False)  # the quality of the best complete one; -1 for none
    complete: Row = field(init=False)
    corner: Row = field(init=False)  # (studies, 2): see `Table.corner`
    age: Row = field(init=False)  # its place in the order, as a number that only breaks ties

    def __post_init__(self) -> None:
        n, size = len(self.order), self.table.n
        self.done = np.zeros((n, size), np.int8)
        self.busy = np.zeros((n, size), bool)
        self.started, self.best = np.zeros(n, int), np.full(n, -1)
        self.complete = np.zeros((n, size), bool)
        self.corner = np.array([self.table.corner(row) for row in self.order])
        self.age = np.full((n, size), 1e6)
        np.put_along_axis(self.age, self.order, np.arange(self.order.shape[1])[None] * 1e-5, 1)

    def new(self, rows: Row) -> Row:
        """Return the next network of each study, -1 where there is none."""
        left = self.started[rows] < self.supply
        nets = np.where(left, self.order[rows, np.minimum(self.started[rows], self.supply - 1)], -1)
        self.started[rows] += left
        return nets


def simulate(
    table: Table, order: Row, rule: Rule, *, supply: int, budget: float, workers: int = 1
) -> tuple[Row, Row, Row]:
    """Run studies until the budget is spent or nothing is left to do.

    Returns:
        After every unit of time, (studies, times): what has been spent, in epochs, and the quality
        of the best network so far (with two objectives the hypervolume that is covered), and the
        number of networks that were begun.
    """
    studies = Studies(table, order, supply)
    rule.begin(studies)
    index = np.arange(len(order))
    running = np.full((len(order), workers), -1)
    spent, found = np.zeros(len(order)), np.full(len(order), -1.0)
    covered = found.copy()
    history = []
    while spent.min() < budget:
        for worker in range(workers):
            free = index[running[:, worker] < 0]
            nets = rule.next(free) if len(free) else free
            running[free, worker] = nets
            studies.busy[free[nets >= 0], nets[nets >= 0]] = True
        active = (running >= 0).any(1)
        if not active.any():
            break
        # An epoch of one worker; several are busy for as long as the slowest of them.
        slowest = np.where(running >= 0, table.weight[running], 0.0).max(1)
        spent = spent + workers * slowest + rule.extra
        rule.extra[:] = 0.0
        for worker in range(workers):
            rows = index[running[:, worker] >= 0]
            nets = running[rows, worker]
            studies.done[rows, nets] += 1
            epochs = studies.done[rows, nets]
            for epoch in (*rule.looks(), table.epochs):
                here = epochs == epoch
                if not here.any():
                    continue
                now, those = rows[here], nets[here]
                if epoch == table.epochs:
                    over = np.ones(len(now), bool)
                    studies.complete[now, those] = True
                    studies.best[now] = np.maximum(studies.best[now], table.quality[those])
                    found = studies.best.astype(float)
                    if table.several:
                        pairs = zip(studies.complete[now], studies.corner[now], strict=True)
                        covered[now] = [table.volume(*pair) for pair in pairs]
                        found = covered.copy()
                else:
                    spent[now] += rule.measured(epoch)
                    over = rule.reached(now, those, epoch)
                running[now[over], worker] = -1
                studies.busy[now[over], those[over]] = False
        history.append((spent, found, studies.started.copy()))
    spent, found, started = (np.array(part).T for part in zip(*history, strict=True))
    return spent, found, started


def in_rounds(table: Table, order: Row, rule: Halving, workers: int = 1) -> tuple[Row, Row]:
    """Train all networks to the first rung, then the best of them to the next, for any number.

    Returns:
        For 1, 2, ... networks: what has been spent, and the quality of the best one, as `simulate`.
    """
    n, size = order.shape
    studies = Studies(table, order, size)
    rule.begin(studies)
    index = np.arange(n)
    ends = [*(rung.epoch for rung in rule.rungs[1:]), table.epochs]
    spent, found = [], []
    for count in range(1, size + 1):
        left = order[:, :count]
        total = _waiting(table, left, workers) * rule.rungs[0].epoch
        for place, (rung, end) in enumerate(zip(rule.rungs, ends, strict=True)):
            there = np.zeros((n, table.n), np.float32)
            np.put_along_axis(there, left, 1.0, 1)
            rule.there[place] = there > 0
            rule.sums[place] = studies.age + there @ table.ahead(rung.signals, rung.epoch)
            total += left.shape[1] * rule.measured(rung.epoch)
            keep = max(1, round(left.shape[1] * rung.share))
            keys = np.where(rule.there[place], rule.keys(place, index), np.inf)
            left = keys.argsort(1, kind="stable")[:, :keep]
            total += _waiting(table, left, workers) * (end - rung.epoch)
        spent.append(total)
        if table.several:
            pairs = zip(left, studies.corner, strict=True)
            found.append([table.volume(*pair) for pair in pairs])
        else:
            found.append(table.quality[left].max(1))
    # What fewer networks have cost is spent with more of them, too.
    return np.maximum.accumulate(spent).T, np.array(found, float).T


def _waiting(table: Table, networks: Row, workers: int) -> Row:
    """Return what an epoch of networks takes, where several workers wait for the last ones."""
    return table.weight[networks].mean(1) * math.ceil(networks.shape[1] / workers) * workers
