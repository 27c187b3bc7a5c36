"""The rules that `replay_parking.py` compares: which network goes on, and whose turn is over."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from replay_studies import GUESSING, cost
from scipy.special import ndtr

if TYPE_CHECKING:
    from replay_studies import Row, Studies


@dataclass(frozen=True)
class Rung:
    """Where a network's turn may be over: after how many epochs, who goes on, ranked by what.

    With two objectives the signals judge the accuracy.

    Attributes:
        epoch: After how many.
        share: Of those that come there, who go on.
        signals: The rank sum.
        by: "dominated", by how many networks dominate one, those of the same number by the sum of
            both ranks; "ranks", by that sum alone; "accuracy", by the accuracy alone: with these
            the networks that know too little for the front, as it is known there, are last. "sum",
            by the accuracy alone, whoever knows how much; "turns", by that, but every third is the
            flattest of the better half.
        flatness: What judges the flatness, smaller is better; where empty, the objective.
    """

    epoch: int
    share: float
    signals: str
    by: str = "dominated"
    flatness: str = ""


class Rule:
    """Everything is trained to the end; the base of all others."""

    def begin(self, studies: Studies) -> None:
        """Forget other studies."""
        self.studies, self.table = studies, studies.table
        self.extra = np.zeros(len(studies.order))  # what was measured before training, in epochs

    def next(self, rows: Row) -> Row:
        """Return the network that goes on, or begins, in each study; -1 for none."""
        return self.studies.new(rows)

    def looks(self) -> tuple[int, ...]:
        """Return after which epochs it looks at a network."""
        return ()

    def reached(self, rows: Row, nets: Row, epoch: int) -> Row:  # noqa: ARG002 - nobody's is
        """Return whether the turn of networks is over that have been trained for some epochs."""
        return np.zeros(len(rows), bool)

    def measured(self, epoch: int) -> float:  # noqa: ARG002 - nothing is
        """Return what is measured after an epoch, in epochs."""
        return 0.0


class Median(Rule):
    """Optuna's median rule."""

    def __init__(self, signal: str) -> None:
        self._signal = signal

    def begin(self, studies: Studies) -> None:
        """Forget other studies."""
        super().begin(studies)
        epochs = range(1, self.table.epochs + 1)
        self._values = np.stack([self.table.column(self._signal, epoch) for epoch in epochs])
        self._best = np.maximum.accumulate(self._values)

    def looks(self) -> tuple[int, ...]:
        """Return all epochs."""
        return tuple(range(1, self.table.epochs))

    def reached(self, rows: Row, nets: Row, epoch: int) -> Row:
        """Return whether the turn of networks is over."""
        complete = self.studies.complete[rows]
        count = complete.sum(1)
        values = np.sort(np.where(complete, self._values[epoch - 1], np.inf), 1)
        index = np.arange(len(rows))
        middle = values[index, np.maximum(count - 1, 0) // 2] + values[index, count // 2]
        return (count >= 5) & (self._best[epoch - 1, nets] < middle / 2)


class Successive(Rule):
    """Optuna's successive halving: brackets of rungs; who is not among the best stops for good."""

    def __init__(self, signal: str, brackets: dict[tuple[int, ...], int], factor: int) -> None:
        self._signal, self._brackets, self._factor = signal, brackets, factor

    def begin(self, studies: Studies) -> None:
        """Forget other studies."""
        super().begin(studies)
        weights = np.array(list(self._brackets.values()), float)
        random = np.random.default_rng(1)
        shape = studies.done.shape
        self._bracket = random.choice(len(weights), shape, p=weights / weights.sum())
        self._there = {
            (place, rung): np.zeros(shape, bool)
            for place, rungs in enumerate(self._brackets)
            for rung in rungs
        }

    def looks(self) -> tuple[int, ...]:
        """Return all rungs."""
        return tuple({rung for _, rung in self._there})

    def reached(self, rows: Row, nets: Row, epoch: int) -> Row:
        """Return whether the turn of networks is over."""
        over = np.zeros(len(rows), bool)
        # With one bracket the first rung is only known when a trial is complete.
        knows = len(self._brackets) > 1 or self.studies.best[rows] >= 0
        values = self.table.column(self._signal, epoch)
        for (place, rung), there in self._there.items():
            mine = knows & (rung == epoch) & (self._bracket[rows, nets] == place)
            if mine.any():
                there[rows[mine], nets[mine]] = True
                found = there[rows[mine]]
                ahead = (found & (values > values[nets[mine]][:, None])).sum(1)
                over[mine] = ahead >= np.maximum(1, found.sum(1) // self._factor)
        return over


class Halving(Rule):
    """Asynchronous successive halving with promotion; with a rung 0, before any training.

    Args:
        rungs: Where networks are parked.
        first: Whether the best of a rung goes on however few have come there.
    """

    def __init__(self, rungs: tuple[Rung, ...], *, first: bool = False) -> None:
        self.rungs, self._first = rungs, first

    def begin(self, studies: Studies) -> None:
        """Forget other studies."""
        super().begin(studies)
        shape = studies.done.shape
        self.there = [np.zeros(shape, bool) for _ in self.rungs]
        self.sums = [studies.age.astype(np.float32) for _ in self.rungs]

    def measured(self, epoch: int) -> float:
        """Return what the signals of a rung cost."""
        return sum(cost(r.signals, self.table.images) for r in self.rungs if r.epoch == epoch)

    def looks(self) -> tuple[int, ...]:
        """Return all rungs."""
        return tuple(rung.epoch for rung in self.rungs)

    def reached(self, rows: Row, nets: Row, epoch: int) -> Row:
        """Return whether the turn of networks is over."""
        for place, rung in enumerate(self.rungs):
            if rung.epoch == epoch:
                self.there[place][rows, nets] = True
                self.sums[place][rows] += self.table.ahead(rung.signals, epoch)[nets]
                return np.ones(len(rows), bool)
        return np.zeros(len(rows), bool)

    def best_parked(self, place: int, rows: Row) -> tuple[Row, Row]:
        """Return the best parked network at a rung, and how many there are ahead of it."""
        sums = self.keys(place, rows)
        there = self.there[place][rows]
        parked = there & (self.studies.done[rows] == self.rungs[place].epoch)
        parked &= ~self.studies.busy[rows]
        nets = np.where(parked, sums, np.inf).argmin(1)
        index = np.arange(len(rows))
        ahead = (there & (sums < sums[index, nets][:, None])).sum(1)
        return nets, np.where(parked[index, nets], ahead, 1_000_000)

    def keys(self, place: int, rows: Row) -> Row:
        """Return what networks at a rung are ranked by, smaller is better."""
        return self.sums[place][rows]

    def next(self, rows: Row) -> Row:
        """Return what is promoted, or begins; at the end the one that is trained in any case."""
        found = self.promoted(rows)
        new = found < 0
        if new.any():
            found[new] = self.begun(rows[new])
        last = (found < 0) & (self.studies.best[rows] < 0) & ~self.studies.busy[rows].any(1)
        for place in reversed(range(len(self.rungs))):
            if last.any():
                nets, ahead = self.best_parked(place, rows[last])
                take = ahead < 1_000_000
                index = np.flatnonzero(last)[take]
                found[index] = nets[take]
                last[index] = False
        return found

    def begun(self, rows: Row) -> Row:
        """Return new networks; with a rung 0 the ones that are good enough untrained."""
        if self.rungs[0].epoch > 0:
            return self.studies.new(rows)
        found = np.full(len(rows), -1)
        while True:
            left = np.flatnonzero((found < 0) & (self.studies.started[rows] < self.studies.supply))
            if not len(left):
                return found
            nets = self.studies.new(rows[left])
            self.reached(rows[left], nets, 0)
            self.extra[rows[left]] += self.measured(0)
            best, ahead = self.best_parked(0, rows[left])
            good = ahead < (self.there[0][rows[left]].sum(1) * self.rungs[0].share).astype(int)
            found[left[good]] = best[good]

    def promoted(self, rows: Row) -> Row:
        """Return the parked networks that go on, -1 for none; of the highest rung first."""
        found = np.full(len(rows), -1)
        for place in reversed(range(len(self.rungs))):
            open_ = np.flatnonzero(found < 0)
            nets, ahead = self.best_parked(place, rows[open_])
            among = (self.there[place][rows[open_]].sum(1) * self.rungs[place].share).astype(int)
            good = ahead < np.maximum(int(self._first), among)
            found[open_[good]] = nets[good]
        return found


class Gain(Halving):
    """What has the largest expected improvement per epoch that is still to be paid."""

    def promoted(self, rows: Row) -> Row:
        """Return the parked networks with the largest gain; -1 where a new one has it."""
        found = super().promoted(rows)
        knows = np.flatnonzero(self.studies.complete[rows].sum(1) >= 3)
        if len(knows):
            found[knows] = self._by_gain(rows[knows])
        return found

    def _by_gain(self, rows: Row) -> Row:
        table, studies = self.table, self.studies
        best = table.validation[table.by_quality[studies.best[rows]]]
        following = np.repeat(table.validation[None], len(rows), 0)
        where = None
        nets, gains = np.full(len(rows), -1), np.zeros(len(rows))
        lines: list[tuple[Row, Row, Row]] = []  # from here to the end
        for place in reversed(range(len(self.rungs))):
            there = self.there[place][rows]
            count = np.maximum(1, there.sum(1))
            score = -self.sums[place][rows] / count[:, None]
            taught = there & (studies.complete[rows] if where is None else where)
            lines.insert(0, _line(score, following, taught))
            mean, variance = score, np.zeros(len(rows))
            for slope, level, noise in lines:
                mean = level[:, None] + slope[:, None] * mean
                variance = slope**2 * variance + noise
            gain = _improvement(mean, np.sqrt(variance)[:, None], best[:, None])
            gain /= table.epochs - self.rungs[place].epoch
            parked = there & ~studies.busy[rows]
            parked &= studies.done[rows] == self.rungs[place].epoch
            gain = np.where(parked, gain, -1.0)
            top = gain.argmax(1)
            value = gain[np.arange(len(rows)), top]
            nets, gains = np.where(value > gains, top, nets), np.maximum(value, gains)
            following, where = score, there
        # A new network is like any of those at the first rung.
        middle = np.where(there, mean, 0).sum(1) / count
        spread = np.where(there, (mean - middle[:, None]) ** 2, 0).sum(1) / count + variance
        new = _improvement(middle, np.sqrt(spread), best) / table.epochs
        return np.where((new >= gains) & (studies.started[rows] < studies.supply), -1, nets)


def _line(x: Row, y: Row, known: Row) -> tuple[Row, Row, Row]:
    """Return slope, level and residual variance of y on x by study, where both are known."""
    count = np.maximum(1, known.sum(1))
    x, y = np.where(known, x, 0.0), np.where(known, y, 0.0)
    mx, my = x.sum(1) / count, y.sum(1) / count
    dx, dy = np.where(known, x - mx[:, None], 0.0), np.where(known, y - my[:, None], 0.0)
    slope = np.maximum(0.0, (dx * dy).sum(1) / np.maximum(1e-12, (dx**2).sum(1)))
    noise = ((dy - slope[:, None] * dx) ** 2).sum(1) / np.maximum(1, count - 2) + 1e-8
    return slope, my - slope * mx, noise


def _improvement(mean: Row, deviation: Row, best: Row) -> Row:
    z = (mean - best) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))


class _TwoObjectives(Halving):
    """With the objectives accuracy and flatness: networks are ranked among those of their study."""

    def keys(self, place: int, rows: Row) -> Row:
        """Return what networks are ranked by; those that know too little for the front are last."""
        own = self.studies.order[rows]  # the networks of each study only: this is the slow part
        there = np.take_along_axis(self.there[place][rows], own, 1)
        sums = np.take_along_axis(self.sums[place][rows], own, 1)
        accuracy, keys, last = self._ranked(self.rungs[place], own, there, sums)
        if self.table.least is not None and self.rungs[place].by not in {"sum", "turns"}:
            best = np.where(there, accuracy, 0.0).max(1)
            least = np.array([self.table.least.beside(value) for value in best])
            keys = np.where(accuracy < least[:, None], 1e6 + last, keys)
        found = np.full((len(rows), self.table.n), np.inf)
        np.put_along_axis(found, own, keys, 1)
        return found

    @abstractmethod
    def _ranked(self, rung: Rung, own: Row, there: Row, sums: Row) -> tuple[Row, Row, Row]:
        """Return the accuracies, what networks are ranked by, and what those that are last are."""


class Several(_TwoObjectives):
    """By what is known after an epoch, as its rung says."""

    def measured(self, epoch: int) -> float:
        """Return what the signals of a rung cost, flatness of all convolutions among them."""
        beyond = any(
            r.epoch == epoch and r.by != "accuracy" and r.flatness == "kappa_all"
            for r in self.rungs
        )
        return super().measured(epoch) + (cost("flatness_all", self.table.images) if beyond else 0)

    def _ranked(self, rung: Rung, own: Row, there: Row, sums: Row) -> tuple[Row, Row, Row]:
        epoch = max(1, rung.epoch)
        accuracy = self.table.column("accuracy", epoch)[own]
        guessing = 1e6 * (accuracy <= GUESSING)
        if rung.by in {"accuracy", "sum"}:
            return accuracy, sums + guessing, sums
        lower = _better(there, sums)
        flatness = self.table.early(rung.flatness or self.table.flatness, epoch, 1)[own]
        if rung.by == "turns":
            keys = _in_turns(there, lower.sum(1), flatness) + sums % 1e-3 + guessing
            return accuracy, keys, keys
        flatter = _better(there, flatness)
        keys = lower.sum(1) + flatter.sum(1) + sums % 1e-3 + guessing
        if rung.by == "dominated":
            keys += 1e3 * (lower & flatter).sum(1)
        return accuracy, keys, sums


class Perfect(_TwoObjectives):
    """By the final values: the least that any ranking can take."""

    def _ranked(self, rung: Rung, own: Row, there: Row, sums: Row) -> tuple[Row, Row, Row]:  # noqa: ARG002
        better = _better(there, -self.table.quality[own])
        flatter = _better(there, self.table.curves.column(self.table.flatness)[own])
        keys = 1e3 * (better & flatter).sum(1) + better.sum(1)
        return self.table.validation[own], keys, keys


def _better(there: Row, values: Row) -> Row:
    """Return which networks that are there (the second axis) have a smaller value than others."""
    return there[:, :, None] & (values[:, :, None] < values[:, None])


def _in_turns(there: Row, ahead: Row, flatness: Row) -> Row:
    """Return ranks by accuracy, where every third place is for the flattest of the better half.

    Args:
        there: Which networks are there, (studies, networks).
        ahead: How many of them are ahead of one in accuracy.
        flatness: Smaller is better.
    """
    half = there & (2 * ahead < there.sum(1)[:, None])
    flatter = _better(half, flatness).sum(1)
    # The best two in accuracy come before the flattest, the third and fourth before the second.
    return np.where(half, np.minimum(ahead + ahead // 2, 3 * flatter + 1.9), 1e3 + ahead)
