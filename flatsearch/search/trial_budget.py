"""An exact number of finished trials among all workers of a study, kept by its storage alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from optuna.trial import TrialState

from flatsearch.record import FINISHED, TrialRecord
from flatsearch.search.liveness import is_orphan

if TYPE_CHECKING:
    import optuna

__all__ = ["Budget", "finished_count"]


def finished_count(study: optuna.Study) -> int:
    """Return how many trials have used up a part of the budget: were trained, pruned or not."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return sum(TrialRecord(trial).finished for trial in trials)


class Budget:
    """Says whether a trial may run.

    A trial may run if the finished trials and the older running ones, which may all finish, are
    fewer than the target. Of trials that are asked for at the same moment, too many for what is
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
        finished = running = 0
        for trial in study.get_trials(deepcopy=False):
            if trial.state in FINISHED:
                if trial.number not in self._counts:
                    self._counts[trial.number] = TrialRecord(trial).finished
                finished += self._counts[trial.number]
            elif trial.state == TrialState.RUNNING and (number is None or trial.number < number):
                running += not is_orphan(trial)
        if finished >= self.target:
            return "done"
        return "run" if finished + running < self.target else "wait"
