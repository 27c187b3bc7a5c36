"""Pruners that park trials, and promote parked ones: what all of them have in common."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner

from flatsearch.errors import COUNT, Range
from flatsearch.pareto import signs
from flatsearch.pruners.audit import SIGNIFICANT, draw, tail_probability
from flatsearch.pruners.judge import Judge, check_signals
from flatsearch.pruners.metric_view import WritableTrial
from flatsearch.pruners.per_study import PerStudy
from flatsearch.record.networks import networks_of
from flatsearch.record.promotion import Promotion
from flatsearch.record.study import StudyRecord
from flatsearch.record.trial import TrialRecord
from flatsearch.record.writing import write_trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

    from flatsearch.record.networks import Network

__all__ = ["Board", "Promoter", "last_resort"]

_SHARE = Range(least=0, below=1)


@dataclass(frozen=True)
class Board:
    """All that a rule looks at: the networks of a study, and how they are compared.

    Attributes:
        networks: The networks, in the order of their first trials.
        epochs: The number of epochs of a network that is trained to the end.
        judge: What ranks them.
    """

    networks: Sequence[Network]
    epochs: int
    judge: Judge

    def distrusts(self, share: float) -> bool:
        """Return whether the audit says that networks are parked that would be among the best.

        Args:
            share: Of the networks at a rung that are the best.

        Returns:
            Whether, of those that went on for the audit, significantly more than this share was
            among the best of the next rung: more than if the rule knew nothing.
        """
        found = [n.acquitted for n in self.networks if n.acquitted is not None]
        good = sum(found)
        return good > 0 and tail_probability([share] * len(found), good) < SIGNIFICANT


class Promoter(BasePruner):
    """A pruner whose trials can go on later.

    After some epochs, the *rungs*, a trial's turn is over unless it is among the best there. An
    objective that keeps its network's state (`flatsearch.FlatnessObjective` with an artifact store
    does) is *parked* then instead of pruned; when it is among the best after all it is *promoted*:
    a new trial goes on with its network. With other objectives the trial is pruned for good.

    A subclass is one rule: `rungs`, `pauses` and `promotions`, functions of a `Board` alone.

    Args:
        signals: What trials are ranked by after an epoch, see `flatsearch.pruners.judge.Judge`.
        epochs: The number of epochs of a trial that is not stopped; where None, the setting of the
            study.
        audit: The share of the trials whose turn is over at the first rung that goes on to the next
            one all the same, to see whether the rule is right.
        keep: The number of parked networks at each rung, the best, whose training is kept; see
            `kept`.
        later: What trials are ranked by after more than one epoch; where empty, `signals`.
        in_turns: Whether with several objectives two of three places are for the most accurate, and
            the third for the best of the better half in another objective; where not, by how many
            dominate one.

    Raises:
        SettingsError: If an argument is out of range.
    """

    def __init__(
        self,
        signals: Sequence[str] = ("loss", "train_loss"),
        *,
        epochs: int | None = None,
        audit: float = 0.05,
        keep: int = 50,
        later: Sequence[str] = (),
        in_turns: bool = False,
    ) -> None:
        for names in (signals, later or signals):
            check_signals(names)
        if epochs is not None:
            COUNT.check("epochs", epochs)
        _SHARE.check("audit", audit)
        COUNT.check("keep", keep)
        self._signals, self._epochs = tuple(signals), epochs
        self._audit, self._keep = audit, keep
        self._later, self._in_turns = tuple(later), in_turns
        self._finished: PerStudy[dict[int, TrialRecord]] = PerStudy()

    @abstractmethod
    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the numbers of epochs after which a trial's turn may be over, in ascending order.

        Args:
            epochs: Of a trial that is trained to the end, which is none of them.
        """

    @abstractmethod
    def share(self, n: int) -> float:
        """Return about which share of n networks at a rung goes on from it."""

    def mean_epochs(self, epochs: int, n: int) -> float:
        """Return about how many epochs a network is trained for, on average.

        Args:
            epochs: Of a trial that is trained to the end.
            n: The number of networks; of none it is as of one.

        Example:
            >>> from flatsearch import OneRungPromoter
            >>> OneRungPromoter(promote=0.25).mean_epochs(8, 20)  # 1 + 7 / 4
            2.75
        """
        ends, n = [*self.rungs(epochs), epochs], max(1, n)
        share = min(1.0, max(self.share(n), 1 / n))
        return ends[0] + sum(share**i * (b - a) for i, (a, b) in enumerate(pairwise(ends), start=1))

    @abstractmethod
    def pauses(self, board: Board, number: int, rung: int) -> bool:
        """Return whether the turn of a network is over.

        Args:
            board: The study.
            number: The network's.
            rung: The epochs that it has been trained for.
        """

    @abstractmethod
    def promotions(self, board: Board, *, ends: bool) -> list[Promotion]:
        """Return which parked networks go on now, in this order.

        Args:
            board: The study.
            ends: Whether no new network is to come.
        """

    def board(self, study: optuna.Study) -> Board:
        """Return what the rule looks at.

        Raises:
            ValueError: If it is not known how many epochs a trial has.
        """
        known = self._finished.get(study, lambda _: {})
        trials = []
        for trial in study.get_trials(deepcopy=False):
            found = known.get(trial.number) or TrialRecord(trial)
            if trial.state.is_finished():
                known[trial.number] = found
            trials.append(found)
        objectives = tuple(study.metric_names or ())
        of_study = StudyRecord(study)
        directions = tuple(signs(study.directions).tolist())
        judge = Judge(
            self._signals, objectives, directions, of_study.least, self._later, self._in_turns
        )
        return Board(networks_of(trials), self._epochs_of(study, of_study), judge)

    def _epochs_of(self, study: optuna.Study, known: StudyRecord | None = None) -> int:
        if self._epochs is not None:
            return self._epochs
        epochs = ((known or StudyRecord(study)).settings or {}).get("epochs")
        if epochs is None:
            raise ValueError(
                f"how many epochs a trial of study {study.study_name!r} has is not on its record;"
                " give `epochs`"
            )
        return int(epochs)

    def is_rung(self, study: optuna.Study, epoch: int) -> bool:
        """Return whether a trial's turn may be over after an epoch, counted from 1."""
        return epoch in self.rungs(self._epochs_of(study))

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Return whether a trial's turn is over.

        Args:
            study: The study.
            trial: The running trial, which is judged by what it has recorded.
        """
        found = TrialRecord(trial)
        if not found.steps:
            return False
        if not isinstance(study.pruner, Promoter):
            warnings.warn(
                f"{type(self).__name__} parks nothing inside a {type(study.pruner).__name__}, and"
                " prunes for good: make it the study's own pruner",
                stacklevel=2,
            )
        epoch = max(found.steps) + 1
        promotion = found.promotion
        if not self.is_rung(study, epoch) or (promotion is not None and epoch < promotion.until):
            return False
        number = found.begun_by
        board = self.board(study)
        if not self.pauses(board, number, epoch):
            return False
        rungs = (*self.rungs(board.epochs), board.epochs)
        # A network that would go on to the end at once is compared with none that did not.
        audited = epoch == rungs[0] and rungs[1] < board.epochs
        if not audited or draw(study.study_name, number) >= self._audit:
            return True
        audit = epoch, rungs[1]
        write_trial(WritableTrial(study, trial), audit=audit)
        return False

    def next_promotions(self, study: optuna.Study, *, ends: bool = False) -> list[Promotion]:
        """Return which networks go on now, without those of which a trial runs or waits already.

        Args:
            study: The study.
            ends: Whether no new network is to come.

        Returns:
            Those whose trial was cut off (one that was never parked in place of a new one); then
            what the rule says.
        """
        board = self.board(study)
        if ends:  # none of them is there any more, to be among the best
            there = [n for n in board.networks if n.resumes is None or n.resumes.after]
            board = replace(board, networks=there)
        cut_off = [n.resumes for n in board.networks if n.resumes is not None]
        return cut_off + self.promotions(board, ends=ends)

    def kept(self, n: int) -> int:  # noqa: ARG002 - as many whatever n is, here
        """Return of how many parked networks at a rung that n have reached the training is kept."""
        return self._keep

    def wanted(self, study: optuna.Study) -> set[int]:
        """Return the networks whose training is kept, by the numbers of their first trials."""
        board = self.board(study)
        found = {n.number for n in board.networks if n.busy or n.resumes}
        for rung, following in pairwise((*self.rungs(board.epochs), board.epochs)):
            there = board.judge.order(board.networks, rung)
            parked = [n.number for n in there if n.parked_between(rung, following)]
            found |= set(parked[: self.kept(len(there))])
        return found


def last_resort(board: Board) -> list[Promotion]:
    """Return the promotion without which no network would be trained to the end.

    Args:
        board: The study, of which nothing else is left to do.

    Returns:
        The best of the parked networks that have come furthest, to the end; nothing if a network
        is trained to the end, or being trained.
    """
    parked = [n for n in board.networks if n.parked is not None]
    goes_on = (n.busy or (n.resumes is not None and n.resumes.after) for n in board.networks)
    if not parked or any(n.final is not None for n in board.networks) or any(goes_on):
        return []
    furthest = max(n.parked or 0 for n in parked)
    best = board.judge.order([n for n in parked if n.parked == furthest], furthest)
    return [Promotion(n.number, furthest, board.epochs, "last") for n in best[:1]]
