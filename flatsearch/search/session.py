"""A run, from its settings and options to finished trials; and how another worker joins it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from flatsearch import __version__
from flatsearch.data.loading import load_data
from flatsearch.device import resolve_device
from flatsearch.errors import DataError, SpaceError, UsageError
from flatsearch.pruners.promoter import Promoter
from flatsearch.record import StudyRecord, write_study
from flatsearch.search.factories import make_pruner
from flatsearch.search.loop import run_study
from flatsearch.search.objective import FlatnessObjective
from flatsearch.search.storage import artifact_store, open_storage
from flatsearch.search.study import open_study
from flatsearch.search.trial_budget import finished_count
from flatsearch.settings import (
    DEFAULT_PRUNER,
    DEFAULT_TRIALS,
    PRUNER_FOR_GOOD,
    RunOptions,
    RunSettings,
)
from flatsearch.spaces.registry import load_space

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna.trial import FrozenTrial

    from flatsearch.data.splits import ImageData
    from flatsearch.flatness import FlatnessResult
    from flatsearch.training.trainer import EpochResult

    OnEpoch = Callable[[optuna.Trial, EpochResult, FlatnessResult], None]

__all__ = ["Session", "joined_options"]


@dataclass(frozen=True)
class Session:
    """A study that is open to be run.

    Attributes:
        study: The study.
        objective: Its objective, with the data.
        options: How it is run.
        finished: Finished trials that it has.
        target: Finished trials that it is to have.
    """

    study: optuna.Study
    objective: FlatnessObjective
    options: RunOptions
    finished: int
    target: int

    @property
    def n_trials(self) -> int:
        """Trials to go."""
        return max(0, self.target - self.finished)

    @property
    def has_work(self) -> bool:
        """Whether there are trials to go, or parked ones that go on."""
        pruner = self.study.pruner
        return self.n_trials > 0 or (
            isinstance(pruner, Promoter) and bool(pruner.next_promotions(self.study, ends=True))
        )

    @classmethod
    def start(
        cls, settings: RunSettings, options: RunOptions, on_epoch: OnEpoch | None = None
    ) -> Session:
        """Create a study, or resume it, and store how it is run.

        Args:
            settings: What its trials share.
            options: How it is run.
            on_epoch: See `FlatnessObjective`.

        Returns:
            The session.

        Raises:
            UsageError: If something about it cannot be; before data are read or a study is made,
                where that can be known.
        """
        load_space(options.space)
        resolve_device(options.device)
        make_pruner(options.pruner or PRUNER_FOR_GOOD, settings.objectives, options.prune_on)
        artifact_store(options.artifacts)
        objective = _objective(settings, options, on_epoch)
        objective.check()
        # Last, so that a start that fails leaves no database behind.
        storage = open_storage(options.storage)
        if options.pruner is None:
            options = _with_pruner(options, storage)
        study = _open(options.study_name, storage, objective, options)
        finished = finished_count(study)
        target = max(finished, DEFAULT_TRIALS)
        if options.trials is not None:
            target = finished + options.trials
        run = {**options.for_workers(), "target": target, "version": __version__}
        write_study(study, run=run)
        return cls(study, objective, options, finished, target)

    @classmethod
    def join(
        cls,
        name: str,
        settings: RunSettings,
        options: RunOptions,
        *,
        worker: int,
        on_epoch: OnEpoch | None = None,
        data: ImageData | None = None,
    ) -> Session:
        """Join a run that was started elsewhere.

        Args:
            name: The study's name.
            settings: What its trials share.
            options: From `joined_options`.
            worker: A number that no other worker has.
            on_epoch: See `FlatnessObjective`.
            data: The images, if they have been read.

        Returns:
            The session.

        Raises:
            UsageError: If anything is not as the study has it; says what.
        """
        try:
            objective = _objective(settings, options, on_epoch, data)
        except DataError as error:
            raise UsageError(
                f"{error}; where are they on this machine? give `data` or `data_root`"
            ) from None
        study = _open(name, open_storage(options.storage), objective, options, worker)
        target = (StudyRecord(study).run or {})["target"]
        return cls(study, objective, options, finished_count(study), target)

    def run(self, on_trial: Callable[[optuna.Study, FrozenTrial], None]) -> str:
        """Run trials in this process until the study has what it is to have.

        Args:
            on_trial: Called with (study, trial) after every trial.

        Returns:
            Why it ended early, if it did; see `run_study`.
        """
        if self.options.artifacts != "none":
            Path(self.options.artifacts).mkdir(parents=True, exist_ok=True)
        return run_study(
            self.study,
            self.objective,
            target=self.target,
            timeout=self.options.timeout,
            max_failures=self.options.max_failures,
            on_trial=on_trial,
        )


def joined_options(study: optuna.Study, here: Mapping[str, Any]) -> tuple[RunSettings, RunOptions]:
    """Return settings and options for a worker that joins the run of a study.

    Args:
        study: The study.
        here: Options that are other ones for this worker.

    Returns:
        The settings, and the options of the run with those of this worker.

    Raises:
        UsageError: If the study has not been run by flatsearch, is run by another version, or its
            search space or data are not where they are said to be.
    """
    known = StudyRecord(study)
    run = known.run
    if run is None or known.settings is None:
        raise UsageError(
            f"study {study.study_name!r} has not been run by flatsearch; start it with"
            " 'flatsearch run'"
        )
    version = run.get("version", __version__)
    if version != __version__:
        raise UsageError(
            f"study {study.study_name!r} is run by flatsearch {version}, and this is {__version__}:"
            f" trials may not be comparable; pip install flatsearch=={version}"
        )
    settings, options = known.run_settings(), RunOptions.from_dict({**run, **here})
    try:
        load_space(options.space)
    except SpaceError as error:
        raise UsageError(f"{error}; where is it on this machine? give `space`") from None
    return settings, options


def _with_pruner(options: RunOptions, storage: optuna.storages.BaseStorage) -> RunOptions:
    """Return options with the pruner that the study has been run with, or the default one."""
    default = PRUNER_FOR_GOOD if options.artifacts == "none" else DEFAULT_PRUNER
    known: dict[str, Any] = {"pruner": default}
    if options.study_name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=options.study_name, storage=storage)
        # Where that was not stored yet, it was the default of then.
        known = StudyRecord(study).run or {}
    prune_on = options.prune_on or known.get("prune_on")
    return replace(options, pruner=known.get("pruner", PRUNER_FOR_GOOD), prune_on=prune_on)


def _objective(
    settings: RunSettings,
    options: RunOptions,
    on_epoch: OnEpoch | None,
    data: ImageData | None = None,
) -> FlatnessObjective:
    """Read the data, unless they are given, and return the objective."""
    return FlatnessObjective(
        options.space,
        data
        or load_data(
            options.data,
            root=options.data_root,
            memory=options.data_memory,
            **settings.data_options(),
        ),
        settings=settings,
        device=options.device,
        prune_mode=options.how_to_prune,
        artifact_store=artifact_store(options.artifacts),
        on_epoch=on_epoch,
    )


def _open(
    name: str,
    storage: optuna.storages.BaseStorage,
    objective: FlatnessObjective,
    options: RunOptions,
    worker: int = 0,
) -> optuna.Study:
    return open_study(
        name,
        storage,
        objective,
        sampler=options.sampler,
        pruner=options.pruner,
        prune_on=options.prune_on,
        counted=options.timeout is None,
        worker=worker,
    )
