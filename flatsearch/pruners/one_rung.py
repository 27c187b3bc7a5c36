"""A short training for all, and a long one for the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatsearch.errors import COUNT, Range
from flatsearch.pruners.promoter import Board, Promoter, last_resort
from flatsearch.record.promotion import Promotion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.record.networks import Network

__all__ = ["OneRungPromoter"]

_SHARE = Range(above=0, below=1)


class OneRungPromoter(Promoter):
    """Park every trial after the same number of epochs; promote the best when all are there.

    Egele et al. ("Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?", 2023,
    arXiv 2307.15422) found it hard to beat, and so did the replays of this project. It needs to be
    known when all are there: `flatsearch run` knows; in a loop of one's own `n_trials` or
    `flatsearch.finish` says so. Where nobody can know, promote at once.

    Args:
        signals: See `flatsearch.pruners.promoter.Promoter`; one that no trial records says nothing.
        rung: The number of epochs for all.
        promote: The number of trials that are trained to the end; below 1 their share of all, at
            least one.
        at_once: Whether a trial goes on as soon as it is among the best so far, the first always.
        n_trials: The number of trials after which the best are promoted; where None, when the run
            ends.
        **options: See `flatsearch.pruners.promoter.Promoter`.

    Raises:
        SettingsError: If an argument is out of range.
    """

    def __init__(
        self,
        signals: Sequence[str] = ("loss", "parameters"),
        *,
        rung: int = 1,
        promote: float = 0.125,
        at_once: bool = False,
        n_trials: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(signals, **options)
        COUNT.check("rung", rung)
        (_SHARE if promote < 1 else COUNT).check("promote", promote)
        if n_trials is not None:
            COUNT.check("n_trials", n_trials)
        self._rung, self._promote = rung, promote
        self._at_once, self._n_trials = at_once, n_trials

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the one number of epochs after which a trial's turn is over."""
        return (self._rung,) if self._rung < epochs else ()

    def share(self, n: int) -> float:
        """Return the share of n networks that is trained to the end."""
        return self._count(n) / n

    def kept(self, n: int) -> int:
        """Return `keep`, or twice as many as would go on now: who does is decided at the end.

        The best of all are among the best of those that are there first, but not in order.
        """
        return max(self._keep, 0 if self._at_once else 2 * self._count(n))

    def pauses(self, board: Board, number: int, rung: int) -> bool:  # noqa: ARG002 - there is one
        """Return whether a trial's turn is over: every trial's, unless it may go on at once."""
        best = self._best(board) if self._at_once else []
        return number not in {network.number for network in best}

    def promotions(self, board: Board, *, ends: bool) -> list[Promotion]:
        """Return the best, once all are parked or at once."""
        there = sum(self._rung - 1 in network.steps for network in board.networks)
        if self._n_trials is not None and there >= self._n_trials:
            ends = True
        if not (ends or self._at_once):
            return []
        found = [
            Promotion(network.number, network.parked, board.epochs)
            for network in self._best(board, ends=ends)
            if network.parked is not None
        ]
        return found or (last_resort(board) if ends else [])

    def _best(self, board: Board, *, ends: bool = False) -> list[Network]:
        """Return the best networks of the rung: one at least, so that a short run has a result."""
        there = board.judge.order(board.networks, self._rung)
        return there[: self._count(len(there), ends=ends)]

    def _count(self, n: int, *, ends: bool = True) -> int:
        """Return how many of n networks are trained to the end; rounded down until it ends."""
        if self._promote >= 1:
            return int(self._promote)
        share = self._promote * n
        return max(1, round(share) if ends else int(share))
