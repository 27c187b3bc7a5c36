"""An exact number of finished trials among all workers of a study, kept by its storage alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from optuna.trial import TrialState

from flatsearch.pruners.promoter import Promoter
from flatsearch.record import FINISHED, TrialRecord
from flatsearch.search.liveness import is_orphan

if TYPE_CHECKING:
    import optuna

__all__ = ["Budget", "finished_count"]


def finished_count(study: optuna.Study) -> int:
    """Return how many networks have used up a part of the budget: were trained, pruned or not."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return sum(TrialRecord(trial).counted for trial in trials)


class Budget:
    """Says whether a trial may run.

    A trial may run if the finished trials and the older running ones, which may all finish, are
    fewer than the target. One that goes on with the network of an earlier trial has been counted
    with that, and always may. Of trials that are asked for at the same moment, too many for what is
    left, the youngest wait, and go on or end when the older ones are told.

    Args:
        target: Finished trials that the study is to have.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._counts: dict[int, bool] = {}

    def state(
        self, study: optuna.Study, number: int | None = None
    ) -> Literal["run", "wait", "done"]:
        """Return what a worker does now.

        Args:
            study: The study.
            number: Of the trial that has been asked for; None before asking for one.

        Returns:
            "run", "done" if the target is reached, or "wait" for trials of other workers.
        """
        finished = older = promoted = running = 0
        for trial in study.get_trials(deepcopy=False):
            if trial.state in FINISHED:
                if trial.number not in self._counts:
                    self._counts[trial.number] = TrialRecord(trial).counted
                finished += self._counts[trial.number]
            elif trial.state == TrialState.WAITING:
                found = TrialRecord(trial)
                promoted += not found.begins
                # One that was cut off, and is to be taken up again.
                again = found.promotion is not None and found.begins
                older += again and number is not None and trial.number < number
            elif trial.state == TrialState.RUNNING and not is_orphan(trial):
                running += 1
                before = number is None or trial.number < number
                older += before and TrialRecord(trial).begins
        if finished + older < self.target or (number is None and promoted):
            return "run"
        if finished < self.target:
            return "wait"
        # What still runs may be parked, and then another network be promoted.
        promotes = number is None and running and isinstance(study.pruner, Promoter)
        return "wait" if promotes else "done"
