"""Asynchronous successive halving with promotion."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from flatsearch.errors import COUNT, Range
from flatsearch.pruners.promoter import Board, Promoter, last_resort
from flatsearch.record.promotion import Promotion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record.networks import Network

__all__ = ["HalvingPromoter"]

_FACTOR = Range(above=1)


class HalvingPromoter(Promoter):
    """Asynchronous successive halving with promotion (Li et al. 2020, arXiv 1810.05934).

    Every trial is trained up to the first rung, one epoch. Of all that have come to a rung, the
    best part (1 / `factor`) goes on to the next one: at once if a trial is among them when it comes
    there, later if it turns out to be as others come. Rungs are spaced evenly on a logarithmic
    scale, by about `factor`: 1, 3 and 12 of 12 epochs. Nothing waits for anything, so that any
    number of workers is busy. At the end of a study what is among the best of its rung goes on
    until nothing is; at least one trial is trained to the end.

    While of the trials that went on for the audit more are among the best of the next rung than
    would be by chance, twice as many go on from each rung.

    Args:
        signals: See `flatsearch.pruners.promoter.Promoter`.
        factor: Of so many trials at a rung one goes on.
        most_rungs: No more rungs than that; where None, as many as the factor says.
        first: Whether the best of a rung goes on however few have come there, so that a run that is
            cut short has a result.
        **options: See `flatsearch.pruners.promoter.Promoter`.

    Example:
        >>> HalvingPromoter(epochs=12).rungs(12)
        (1, 3)
        >>> HalvingPromoter(epochs=8, factor=2).rungs(8)
        (1, 2, 4)
        >>> HalvingPromoter(epochs=100, factor=3, most_rungs=2).rungs(100)
        (1, 10)
    """

    def __init__(
        self,
        signals: Sequence[str] = ("loss", "train_loss"),
        *,
        factor: float = 4.0,
        most_rungs: int | None = None,
        first: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(signals, **options)
        _FACTOR.check("factor", factor)
        if most_rungs is not None:
            COUNT.check("most_rungs", most_rungs)
        self._factor, self._most_rungs, self._first = factor, most_rungs, first

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the numbers of epochs after which a trial's turn may be over.

        Args:
            epochs: Of a trial that is trained to the end.

        Returns:
            round(epochs^(i / k)) for i = 0, ..., k - 1, with k = log(epochs) / log(factor) rounded,
            at least 1 and at most `most_rungs`.
        """
        count = max(1, round(math.log(epochs) / math.log(self._factor)))
        count = min(count, self._most_rungs or count)
        rungs = {round(epochs ** (i / count)) for i in range(count)}
        return tuple(sorted(rungs - {epochs}))

    def share(self, n: int) -> float:  # noqa: ARG002 - the same of any number
        """Return the share of the networks at a rung that goes on from it."""
        return 1 / self._factor

    def pauses(self, board: Board, number: int, rung: int) -> bool:
        """Return whether a network is not among the best of a rung."""
        return number not in {network.number for network in self._best(board, rung)}

    def promotions(self, board: Board, *, ends: bool) -> list[Promotion]:
        """Return the best of each rung that are parked there, those of the highest rung first."""
        rungs = (*self.rungs(board.epochs), board.epochs)
        found = [
            Promotion(network.number, network.parked or rung, following)
            for rung, following in reversed(list(pairwise(rungs)))
            for network in self._best(board, rung)
            if network.parked_between(rung, following)
        ]
        return found or (last_resort(board) if ends else [])

    def _best(self, board: Board, rung: int) -> list[Network]:
        order = board.judge.order(board.networks, rung)
        share = 1.0 / self._factor
        if board.distrusts(share):
            share = min(1.0, 2.0 * share)
        return order[: max(int(self._first), int(len(order) * share))]
