"""A study meets an objective: whether they suit, and what the record says from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from flatsearch.errors import SettingsError
from flatsearch.record import StudyRecord, name_objectives, write_study

if TYPE_CHECKING:
    import optuna

    from flatsearch.search.objective import FlatnessObjective

__all__ = ["Introduction"]


class Introduction:
    """Introduces studies, which may have been made without `open_study`, to an objective.

    Args:
        objective: The objective.
    """

    def __init__(self, objective: FlatnessObjective) -> None:
        self._objective = objective
        self._known: WeakSet[optuna.Study] = WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the studies that are known: copies know none."""
        return {"_objective": self._objective}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _known=WeakSet())

    def check(self, study: optuna.Study) -> None:
        """Refuse a study that does not suit, the first time; else write what is not on its record.

        Raises:
            SettingsError: If directions, names or settings differ; says how.
        """
        if study in self._known:
            return
        objective = self._objective
        found = [direction.name.lower() for direction in study.directions]
        if found != objective.directions:
            named = zip(objective.directions, objective.metric_names, strict=True)
            wanted = ", ".join(f"{direction} ({name})" for direction, name in named)
            raise SettingsError(
                f"the study's directions are {', '.join(found)} but the objective's are {wanted};"
                " give optuna.create_study directions=objective.directions"
            )
        names = study.metric_names
        if names is not None and names != objective.metric_names:
            raise SettingsError(
                f"the study's metric names are {', '.join(names)} but the objective's are"
                f" {', '.join(objective.metric_names)}; leave study.set_metric_names to it"
            )
        # Pruners and samplers find values by the names.
        name_objectives(study, objective.metric_names)
        record, settings = StudyRecord(study), objective.shared_settings()
        if record.settings is None:
            write_study(study, settings=settings, least=objective.least)
        else:
            record.check_settings(settings)
        if record.validation_images is None:
            write_study(study, validation_images=len(objective.data.validation))
        self._known.add(study)
