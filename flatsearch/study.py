"""Creating, resuming and loading a study."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import sqlalchemy.exc

from flatsearch import record
from flatsearch.config import DEFAULT_PRUNER, PRUNE_ON, PRUNERS, SAMPLERS, RunSettings
from flatsearch.errors import SettingsError, StorageError, unknown_name
from flatsearch.liveness import fail_dead_trials
from flatsearch.pruning import PARETO_RANK, FlatnessPruner

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatsearch.objective import FlatnessObjective

__all__ = [
    "load_study",
    "make_pruner",
    "make_sampler",
    "open_storage",
    "open_study",
]

# A worker that has not been heard of for this long is taken for dead, and its trial failed. Much
# longer than the interval: a slow machine must not lose a live trial.
_HEARTBEAT_SECONDS = 60
_GRACE_SECONDS = 300


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open an Optuna storage.

    Args:
        url: A database URL, for example "sqlite:///flatsearch.db".

    Returns:
        The storage, with heartbeats, so that trials of killed workers are noticed.

    Raises:
        StorageError: If it cannot be reached, or its driver is not installed.
    """
    shown = re.sub(r"(?<=:)[^:@/]+(?=@)", "***", url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(
                url, heartbeat_interval=_HEARTBEAT_SECONDS, grace_period=_GRACE_SECONDS
            )
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        extra = "; pip install 'flatsearch[postgres]'" if url.startswith("postgres") else ""
        raise StorageError(f"storage {shown!r} needs a driver: {_one_line(error)}{extra}") from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, ValueError) as error:
        raise StorageError(f"storage {shown!r} cannot be opened: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    """Return the cause's own words, without SQLAlchemy's link and SQL."""
    original = getattr(error, "orig", None) or error.__cause__ or error
    original = getattr(original, "orig", None) or original
    return str(original).strip().splitlines()[0] if str(original).strip() else type(error).__name__


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Return a sampler by its command-line name.

    Args:
        name: "tpe", "nsga2", "gp" or "random".
        seed: Of its random numbers.

    Returns:
        The sampler.

    Raises:
        SettingsError: If the name is not known.
    """
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=12),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    if name not in samplers:
        raise SettingsError(unknown_name("sampler", name, SAMPLERS))
    return samplers[name]()


def make_pruner(
    name: str, objectives: tuple[str, ...], prune_on: str | None = None
) -> optuna.pruners.BasePruner:
    """Return a pruner by its command-line name.

    Args:
        name: "flatness", "median", "asha", "hyperband" or "none".
        objectives: The study's objectives.
        prune_on: What the middle three judge by, from `PRUNE_ON`. Where None, the objective of a
            single-objective study, else the Pareto rank.

    Returns:
        The pruner.

    Raises:
        SettingsError: If a name is not known, or the objective says nothing about an epoch.
    """
    if name not in PRUNERS:
        raise SettingsError(unknown_name("pruner", name, PRUNERS))
    if prune_on is not None and prune_on not in PRUNE_ON:
        raise SettingsError(unknown_name("metric to prune on", prune_on, PRUNE_ON))
    if prune_on is not None and name in {"none", "flatness"}:
        raise SettingsError(f"--prune-on is for median, asha and hyperband, not for {name!r}")
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "flatness":
        return FlatnessPruner()
    rules: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": optuna.pruners.MedianPruner,
        "asha": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    rule = rules[name]()
    if prune_on is None and len(objectives) == 1:
        if objectives[0] not in {"accuracy", "flatness"}:
            raise SettingsError(
                f"pruner {name!r} learns nothing from the objective {objectives[0]}, which is the"
                f" same in every epoch; give --prune-on: {', '.join(PRUNE_ON)}"
            )
        return rule  # sees what is reported to Optuna
    if prune_on in {None, PARETO_RANK}:
        return FlatnessPruner(metric=PARETO_RANK, rule=rule)
    return FlatnessPruner(metric=prune_on, direction=PRUNE_ON[prune_on], rule=rule)


def open_study(
    name: str,
    storage: optuna.storages.BaseStorage,
    objective: FlatnessObjective,
    *,
    sampler: str = "tpe",
    pruner: str = DEFAULT_PRUNER,
    prune_on: str | None = None,
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
        pruner: See `make_pruner`.
        prune_on: See `make_pruner`.
        worker: Number of this worker among those that run the study.

    Returns:
        The study.

    Raises:
        SettingsError: If the study exists with other settings; names them.
        StorageError: If the study exists but was not made by flatsearch.
    """
    settings = objective.settings
    wanted = objective.shared_settings()
    study_pruner = make_pruner(pruner, settings.objectives, prune_on)
    make_sampler(sampler, 0)
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, directions=settings.directions
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        fail_dead_trials(study)
        _refuse_other_settings(name, record.read_settings(study), wanted)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(settings.objectives))
        record.write_settings(study, wanted)
    sequence = np.random.SeedSequence([settings.seed, len(study.trials), worker])
    study.sampler = make_sampler(sampler, int(sequence.generate_state(1)[0]))
    study.pruner = study_pruner
    return study


def _refuse_other_settings(
    name: str, stored: dict[str, Any] | None, wanted: dict[str, Any]
) -> None:
    if stored is None:
        raise StorageError(
            f"study {name!r} exists but was not made by flatsearch; choose another --study"
        )
    # A setting that is newer than the study had its default then.
    stored = {**RunSettings().to_dict(), **stored}
    different = [key for key in wanted if stored.get(key) != wanted[key]]
    # The same images may be somewhere else.
    if "data" in different and "data_fingerprint" not in different:
        different.remove("data")
    # The same name with other images is the clearer message than the fingerprint alone.
    if "data_fingerprint" in different and len(different) > 1:
        different.remove("data_fingerprint")
    if different:
        listing = ", ".join(
            f"{k}={_plain(stored.get(k))} (not {_plain(wanted[k])})" for k in different
        )
        raise SettingsError(
            f"study {name!r} exists with other settings: {listing};"
            " give the same settings to resume it, or choose another --study"
        )


def _plain(value: object) -> str:
    return ",".join(str(v) for v in value) if isinstance(value, list) else str(value)


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
