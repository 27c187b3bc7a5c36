"""What a network must have learnt: one that has learnt nothing is perfectly flat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from flatsearch.record import (
    LeastAccuracy,
    StudyRecord,
    TrialRecord,
    least_accuracy,
    write_constraints,
)
from flatsearch.record.constraints import MIN_ACCURACY

if TYPE_CHECKING:
    import optuna

    from flatsearch.settings import RunSettings

__all__ = ["Standard"]


class Standard:
    """The accuracy below which a trial is on no front.

    Args:
        settings: The settings of the run.
        guessing: The accuracy of guessing.

    Attributes:
        accuracy: The least at any time; None if accuracy is the only objective.
        of_study: What a new study says beyond that, beside its best trial; None where the settings
            have a fixed accuracy.
    """

    def __init__(self, settings: RunSettings, guessing: float) -> None:
        given = settings.min_accuracy
        is_all = set(settings.objectives) == {"accuracy"}
        self.accuracy = None if is_all else guessing if given is None else given
        is_fixed = self.accuracy is None or given is not None
        self.of_study = None if is_fixed else LeastAccuracy(guessing)

    def constrain(self, trial: optuna.Trial, accuracy: float, *, stopped: bool) -> None:
        """Record whether a network has learnt what it must, beside the best one so far.

        Args:
            trial: The running trial.
            accuracy: Its validation accuracy.
            stopped: Whether it was stopped: it may have come as far as the best later on.
        """
        least = self.accuracy
        if least is None:
            return
        relative = None if stopped else StudyRecord(trial.study).least
        if relative is not None:
            complete = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            others = least_accuracy(map(TrialRecord, complete), relative) or 0.0
            least = max(relative.beside(accuracy), others)
        write_constraints(trial, {MIN_ACCURACY: least - accuracy})
