"""A short training for all, and a long one for the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatsearch.errors import COUNT
from flatsearch.pruners.promoter import Board, Promoter, last_resort
from flatsearch.record.promotion import Promotion

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OneRungPromoter"]


class OneRungPromoter(Promoter):
    """Park every trial after the same number of epochs; promote the best when all are there.

    Egele et al. ("Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?", 2023,
    arXiv 2307.15422) found it hard to beat. It needs to be known when all are there:
    `flatsearch run` knows; in a loop of one's own `n_trials` says so.

    Args:
        signals: See `flatsearch.pruners.promoter.Promoter`.
        rung: The number of epochs for all.
        promote: The number of trials that are trained to the end.
        n_trials: The number of trials after which the best are promoted; where None, when the run
            ends.
        **options: See `flatsearch.pruners.promoter.Promoter`.

    Raises:
        SettingsError: If an argument is out of range.
    """

    def __init__(
        self,
        signals: Sequence[str] = ("loss", "train_loss"),
        *,
        rung: int = 1,
        promote: int = 5,
        n_trials: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(signals, **options)
        for name, value in (("rung", rung), ("promote", promote)):
            COUNT.check(name, value)
        if n_trials is not None:
            COUNT.check("n_trials", n_trials)
        self._rung, self._promote, self._n_trials = rung, promote, n_trials

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the one number of epochs after which a trial's turn is over."""
        return (self._rung,) if self._rung < epochs else ()

    def pauses(self, board: Board, number: int, rung: int) -> bool:  # noqa: ARG002 - for any trial
        """Return that a trial's turn is over."""
        return True

    def promotions(self, board: Board, *, ends: bool) -> list[Promotion]:
        """Return the best, once all are parked."""
        there = board.judge.order(board.networks, self._rung)
        if self._n_trials is not None and len(there) >= self._n_trials:
            ends = True
        if not ends:
            return []
        found = [
            Promotion(network.number, self._rung, board.epochs)
            for network in there[: self._promote]
            if network.parked == self._rung
        ]
        return found or last_resort(board)
