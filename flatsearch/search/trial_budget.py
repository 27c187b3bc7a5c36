"""An exact number of finished trials among all workers of a study, kept by its storage alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from optuna.trial import TrialState

from flatsearch.pruners.per_study import NewlyFinished
from flatsearch.pruners.promoter import Promoter
from flatsearch.record import TrialRecord
from flatsearch.search.liveness import is_orphan

if TYPE_CHECKING:
    from collections.abc import Iterable

    import optuna
    from optuna.trial import FrozenTrial

__all__ = ["Budget", "count_finished", "finished_count"]


def finished_count(study: optuna.Study) -> int:
    """Return how many networks have used up a part of the budget: were trained, pruned or not."""
    return count_finished(study.get_trials(deepcopy=False))


def count_finished(trials: Iterable[FrozenTrial]) -> int:
    """Return the same of a study's trials, which have been read."""
    return len({trial.begun_by for trial in map(TrialRecord, trials) if trial.trained})


class Budget:
    """Says whether a trial may run.

    A trial may run if the networks that were trained, and those of the older running trials, which
    may all finish, are fewer than the target. One that goes on with the network of an earlier trial
    has been counted with that, and always may. Of trials that are asked for at the same moment, too
    many for what is left, the youngest wait, and go on or end when the older ones are told. They
    do not wait for what is in the queue itself, which nobody would take then.

    Args:
        target: Finished trials that the study is to have.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._finished = NewlyFinished()
        self._trained: set[int] = set()  # networks, by the numbers of their first trials

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
        trained, older, cut_off = self._trained, set(), set()
        promoted = running = False
        trials = study.get_trials(deepcopy=False)
        ended = self._finished.take(trials)
        for trial in (*ended, *(trials[n] for n in sorted(self._finished.unfinished))):
            found = TrialRecord(trial)
            if found.trained:
                trained.add(found.begun_by)
            if trial.state.is_finished():
                continue
            if trial.state == TrialState.WAITING:
                promoted |= not found.begins
                # One that was cut off, and is to be taken up again.
                if found.promotion is not None and number is not None and trial.number < number:
                    cut_off.add(found.begun_by)
            elif not is_orphan(trial):
                running = True
                if number is None or trial.number < number:
                    older.add(found.begun_by)
        if len(trained | older | cut_off) < self.target or (number is None and promoted):
            return "run"
        if len(trained) < self.target and not cut_off - trained - older:
            return "wait"
        # What still runs may be parked, and then another network be promoted.
        promotes = number is None and running and isinstance(study.pruner, Promoter)
        return "wait" if promotes else "done"
