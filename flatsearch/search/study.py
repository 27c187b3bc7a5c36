"""Creating, resuming and loading a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from flatsearch.errors import SettingsError, StorageError, unknown_name
from flatsearch.record import StudyRecord, name_objectives, write_study
from flatsearch.search.factories import make_pruner, make_sampler
from flatsearch.search.liveness import fail_dead_trials
from flatsearch.settings import DEFAULT_PRUNER, PRUNER_FOR_GOOD

if TYPE_CHECKING:
    from flatsearch.search.objective import FlatnessObjective

__all__ = ["load_study", "open_study"]


def open_study(
    name: str,
    storage: optuna.storages.BaseStorage,
    objective: FlatnessObjective,
    *,
    sampler: str = "tpe",
    pruner: str | None = None,
    prune_on: str | None = None,
    counted: bool = True,
    worker: int = 0,
) -> optuna.Study:
    """Create a study, or resume the one of that name.

    Args:
        name: The study's name.
        storage: Any Optuna storage.
        objective: What will be run.
        sampler: See `make_sampler`. Its seed is derived from the settings' seed, the number of
            trials so far and the worker, so that neither a resumed study nor another worker repeats
            suggestions.
        pruner: See `make_pruner`; where None, the default one, or where the objective keeps no
            networks the one that stops trials for good.
        prune_on: See `make_pruner`.
        counted: See `make_pruner`.
        worker: Number of this worker among those that run the study.

    Returns:
        The study.

    Raises:
        SettingsError: If the study exists with other settings, which are named, or the sampler or
            pruner does not go with the objectives.
        StorageError: If the study exists but was not made by flatsearch.
    """
    settings = objective.settings
    wanted = objective.shared_settings()
    if pruner is None:
        pruner = DEFAULT_PRUNER if objective.parking.has_store else PRUNER_FOR_GOOD
    if pruner == "promote" and not objective.parking.has_store:
        raise SettingsError(
            "`pruner` 'promote' parks networks beside the artifacts, and they are kept nowhere"
        )
    study_pruner = make_pruner(pruner, settings.objectives, prune_on, counted=counted)
    n_objectives = len(settings.objectives)
    make_sampler(sampler, 0, n_objectives)
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, directions=settings.directions
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        fail_dead_trials(study)
        _check(StudyRecord(study), wanted)
    else:
        name_objectives(study, settings.objectives)
        write_study(study, settings=wanted, least=objective.least)
    sequence = np.random.SeedSequence([settings.seed, len(study.trials), worker])
    study.sampler = make_sampler(sampler, int(sequence.generate_state(1)[0]), n_objectives)
    study.pruner = study_pruner
    return study


def _check(stored: StudyRecord, wanted: dict[str, Any]) -> None:
    """Refuse a study that has other settings, or none."""
    if stored.settings is None:
        raise StorageError(
            f"{stored.owner} exists but was not made by flatsearch; choose another `study`"
        )
    stored.check_settings(wanted)


def load_study(name: str | None, storage: optuna.storages.BaseStorage) -> optuna.Study:
    """Load a study for reading.

    Args:
        name: Its name; None for the storage's only study.
        storage: Any Optuna storage.

    Returns:
        The study.

    Raises:
        StorageError: If there is no such study, or several and no name.
    """
    names = sorted(optuna.get_all_study_names(storage))
    if name is None:
        if len(names) != 1:
            what = f"name a study; the storage has: {', '.join(names)}"
            raise StorageError(what if names else "the storage has no studies yet")
        name = names[0]
    if name not in names:
        raise StorageError(unknown_name("study", name, names))
    return optuna.load_study(study_name=name, storage=storage)
