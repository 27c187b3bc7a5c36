"""Creating, resuming and running a study."""

from __future__ import annotations

import re
import signal
import threading
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import sqlalchemy.exc
import torch
from optuna.trial import TrialState

from flatsearch import record
from flatsearch.config import PRUNE_ON, PRUNERS, SAMPLERS, RunSettings
from flatsearch.errors import FlatsearchError, SettingsError, StorageError, unknown_name
from flatsearch.liveness import fail_dead_trials
from flatsearch.pruning import PARETO_RANK, FlatnessPruner
from flatsearch.registry import space_identity
from flatsearch.spacecard import count_architectures

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from flatsearch.objective import FlatnessObjective
    from flatsearch.space import SearchSpace

__all__ = [
    "Interrupted",
    "finished_count",
    "load_study",
    "make_pruner",
    "make_sampler",
    "open_storage",
    "open_study",
    "run_study",
    "shared_settings",
]

# A worker that has not been heard of for this long is taken for dead, and its trial failed. Much
# longer than the interval: a slow machine must not lose a live trial.
_HEARTBEAT_SECONDS = 60
_GRACE_SECONDS = 300
# This many failed trials in a row mean that something is wrong with more than a candidate.
_MAX_FAILURES = 3
# This many candidates in a row that cost no training (over a limit, or networks that were trained
# before) mean that there is nothing more to find.
_MAX_IDLE = 200
# Proposals that others are training cost nothing; a worker that has no others does not spin.
_TWIN_SECONDS = 0.2
# After this many that were tried before it is worth counting whether all were.
_MAX_REPEATS_COUNTED = 20
_MOST_COUNTED = 2_000
# After this many in a row that were trained before, the next is drawn at random: samplers keep
# proposing what they hold best.
_MAX_REPEATS = 3


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal; finished trials are stored, none is left running.

    Attributes:
        signum: The signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


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
        name: "none", "flatness", "median", "asha" or "hyperband".
        objectives: The study's objectives.
        prune_on: What the last three judge by, from `PRUNE_ON`. Where None, the objective of a
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


def shared_settings(objective: FlatnessObjective) -> dict[str, Any]:
    """Return what all trials of a study must share, as JSON types."""
    space, content = space_identity(objective.space_reference)
    return {
        "space": space,
        "space_file": content,
        "data": objective.data.name,
        "data_fingerprint": objective.data.fingerprint(),
        **objective.settings.to_dict(),
    }


def open_study(
    name: str,
    storage: optuna.storages.BaseStorage,
    objective: FlatnessObjective,
    *,
    sampler: str = "tpe",
    pruner: str = "none",
    prune_on: str | None = None,
) -> optuna.Study:
    """Create a study, or resume the one of that name.

    Args:
        name: The study's name.
        storage: Any Optuna storage.
        objective: What will be run.
        sampler: See `make_sampler`. Its seed is derived from the settings' seed and the number
            of trials so far, so that a resumed study does not repeat its suggestions.
        pruner: See `make_pruner`.
        prune_on: See `make_pruner`.

    Returns:
        The study.

    Raises:
        SettingsError: If the study exists with other settings; names them.
        StorageError: If the study exists but was not made by flatsearch.
    """
    settings = objective.settings
    wanted = shared_settings(objective)
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
    sequence = np.random.SeedSequence([settings.seed, len(study.trials)])
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


def finished_count(study: optuna.Study) -> int:
    """Return how many trials have used up a part of the budget: were trained, pruned or not."""
    trials = study.get_trials(deepcopy=False, states=record.FINISHED)
    return sum(record.is_finished(trial) for trial in trials)


class _Signals:
    """Turns SIGINT and SIGTERM into `Interrupted` where it is safe.

    An exception that is raised wherever the program happens to be can be swallowed by a callback
    or leave a trial running for ever. The first signal is therefore only noted; training asks
    before every batch, and the loop between trials. A second one inside a trial is raised at once.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.inside = False
        self._previous: dict[int, Any] = {}

    def _handle(self, signum: int, _: FrameType | None) -> None:
        self.received.append(signum)
        if self.inside and len(self.received) > 1:
            raise Interrupted(signum)

    def check(self) -> None:
        if self.received:
            raise Interrupted(self.received[0])

    def __enter__(self) -> _Signals:
        # Signals reach the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@dataclass
class _Tally:
    """How a run is going: trials that count, and in a row those that fail or cost no training."""

    wanted: int
    finished: int = 0
    failures: int = 0
    refused: int = 0
    repeats: int = 0
    exhausted: int | None = None

    def count(self, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state == TrialState.FAIL:
            # The twin of a trial that is running says nothing about either.
            self.failures += not record.is_reuse(trial)
            return
        self.failures = 0
        if record.is_finished(trial):
            self.finished += 1
            self.refused = self.repeats = 0
        elif record.is_reuse(trial) and not record.is_over_limit(trial):
            self.repeats += 1
        else:
            self.refused += 1

    @property
    def idle(self) -> bool:
        return self.refused + self.repeats >= _MAX_IDLE

    @property
    def stuck(self) -> bool:
        return self.failures >= _MAX_FAILURES or self.idle or self.exhausted is not None


def run_study(
    study: optuna.Study,
    objective: FlatnessObjective,
    *,
    n_trials: int,
    timeout: float | None = None,
    on_trial: Callable[[optuna.Study, optuna.trial.FrozenTrial], None] | None = None,
) -> str:
    """Run trials until enough are finished, or there is nothing left to train.

    Args:
        study: From `open_study`.
        objective: The objective.
        n_trials: New finished (complete or pruned) trials; those that fail, are over a limit or
            take over the result of an earlier trial do not count.
        timeout: Seconds after which no new trial is started.
        on_trial: Called with (study, trial) after every trial.

    Returns:
        Why it ended early, if it did: the space is exhausted. Else an empty string.

    Raises:
        Interrupted: On SIGINT or SIGTERM; a trial that is being trained is marked as failed.
        FlatsearchError: If trials fail several times in a row, or no candidate keeps the limits.
    """
    tally = _Tally(n_trials)
    sampler = study.sampler
    sequence = np.random.SeedSequence([objective.settings.seed, len(study.trials), 1])
    at_random = optuna.samplers.RandomSampler(seed=int(sequence.generate_state(1)[0]))

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        tally.count(trial)
        twin = trial.state == TrialState.FAIL and record.is_reuse(trial)
        study.sampler = at_random if twin or tally.repeats >= _MAX_REPEATS else sampler
        if twin:
            time.sleep(_TWIN_SECONDS)
        if on_trial is not None:
            on_trial(study, trial)
        if tally.repeats == _MAX_REPEATS_COUNTED:
            tally.exhausted = _all_tried(study, objective.space)
        if tally.finished >= tally.wanted or tally.stuck or signals.received:
            study.stop()

    error: list[str] = []

    def guarded(trial: optuna.Trial) -> float | tuple[float, ...]:
        signals.inside = True
        try:
            signals.check()
            return objective(trial)
        except optuna.TrialPruned:
            raise
        except KeyboardInterrupt:
            record.write_failure(trial, "interrupted")
            raise
        except Exception as caught:
            error.append(f"{type(caught).__name__}: {' '.join(str(caught).split())}")
            record.write_failure(trial, error[-1])
            if isinstance(caught, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            raise
        finally:
            signals.inside = False

    with _Signals() as signals:
        objective.on_batch = signals.check
        try:
            study.optimize(guarded, timeout=timeout, callbacks=[after], catch=(Exception,))
        finally:
            study.sampler = sampler
            objective.on_batch = None
    signals.check()
    if tally.idle and tally.refused:
        raise FlatsearchError(_none_fits(tally, objective.settings))
    if tally.failures >= _MAX_FAILURES:
        raise FlatsearchError(
            f"{tally.failures} trials failed in a row; the last one with {error[-1]}"
        )
    return _exhausted(tally)


def _exhausted(tally: _Tally) -> str:
    """Say that there is nothing left to train, if so."""
    if tally.exhausted is not None:
        return f"all {tally.exhausted} architectures of the space have been tried"
    if not tally.idle:
        return ""
    return (
        f"the last {tally.repeats} candidates are networks that were tried before: the space"
        " seems to be exhausted"
    )


def _all_tried(study: optuna.Study, space: SearchSpace) -> int | None:
    """Return the number of a space's architectures if a study has tried them all, else None."""
    trials = [record.read_trial(t) for t in study.get_trials(deepcopy=False)]
    tried = {t.architecture for t in trials if t.state in {"COMPLETE", "PRUNED"} and not t.recipe}
    count = count_architectures(space, most=_MOST_COUNTED)
    return count if count is not None and len(tried) >= count else None


def _none_fits(tally: _Tally, settings: RunSettings) -> str:
    """Say that candidates are over the limits, and what to do."""
    limits = ", ".join(f"{name} {limit:g}" for name, limit in settings.limits.items())
    before = f", or were tried before ({tally.repeats} of them)" if tally.repeats else ""
    return (
        f"{tally.refused + tally.repeats} candidates in a row are over the limits"
        f" ({limits}){before}; raise them, or take a space with smaller networks"
    )
