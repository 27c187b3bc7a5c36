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
    from collections.abc import Mapping

    import optuna

    from flatsearch.data.splits import ImageData
    from flatsearch.settings import RunSettings

__all__ = ["Standard"]


class Standard:
    """The accuracy below which a trial is on no front.

    Args:
        settings: The settings of the run.
        data: The images.

    Attributes:
        accuracy: The least at any time; None if there are no objectives but accuracies.
        metric: Which accuracy it is.
        of_study: What a new study says beyond that, beside its best trial; None where the settings
            have a fixed accuracy.
    """

    def __init__(self, settings: RunSettings, data: ImageData) -> None:
        given = settings.min_accuracy
        self.metric = settings.accuracy
        guessing = getattr(data, f"guessing_{self.metric}")()
        is_all = set(settings.objectives) <= {"accuracy", "balanced_accuracy"}
        self.accuracy = None if is_all else guessing if given is None else given
        is_fixed = self.accuracy is None or given is not None
        self.of_study = None if is_fixed else LeastAccuracy(guessing, metric=self.metric)

    def constrain(
        self, trial: optuna.Trial, metrics: Mapping[str, float], *, stopped: bool
    ) -> None:
        """Record whether a network has learnt what it must, beside the best one so far.

        Args:
            trial: The running trial.
            metrics: Its last metrics.
            stopped: Whether it was stopped: it may have come as far as the best later on.
        """
        least = self.accuracy
        if least is None:
            return
        accuracy = metrics[self.metric]
        relative = None if stopped else StudyRecord(trial.study).least
        if relative is not None:
            complete = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            others = least_accuracy(map(TrialRecord, complete), relative) or 0.0
            least = max(relative.beside(accuracy), others)
        write_constraints(trial, {MIN_ACCURACY: least - accuracy})
