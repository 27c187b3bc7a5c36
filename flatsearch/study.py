"""Creating, resuming and running a study."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import sqlalchemy.exc
import torch
from optuna.trial import TrialState

from flatsearch import record
from flatsearch.config import PRUNERS, SAMPLERS
from flatsearch.errors import FlatsearchError, SettingsError, StorageError, unknown_name
from flatsearch.pruning import FlatnessPruner
from flatsearch.registry import space_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from flatsearch.objective import FlatnessObjective

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
# Candidates over a limit in a row after which none is expected to keep it.
_MAX_REFUSED = 200


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


def make_pruner(name: str, objectives: tuple[str, ...]) -> optuna.pruners.BasePruner:
    """Return a pruner by its command-line name.

    Args:
        name: "none", "flatness", "median" or "hyperband".
        objectives: The study's objectives.

    Returns:
        The pruner.

    Raises:
        SettingsError: If the name is not known, or the pruner needs a single objective that is
            reported every epoch.
    """
    if name not in PRUNERS:
        raise SettingsError(unknown_name("pruner", name, PRUNERS))
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "flatness":
        return FlatnessPruner()
    if len(objectives) > 1 or objectives[0] not in {"accuracy", "flatness"}:
        raise SettingsError(
            f"pruner {name!r} needs the single objective accuracy or flatness but got"
            f" {', '.join(objectives)}; use flatness or none"
        )
    return optuna.pruners.MedianPruner() if name == "median" else optuna.pruners.HyperbandPruner()


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
) -> optuna.Study:
    """Create a study, or resume the one of that name.

    Args:
        name: The study's name.
        storage: Any Optuna storage.
        objective: What will be run.
        sampler: See `make_sampler`. Its seed is derived from the settings' seed and the number
            of trials so far, so that a resumed study does not repeat its suggestions.
        pruner: See `make_pruner`.

    Returns:
        The study.

    Raises:
        SettingsError: If the study exists with other settings; names them.
        StorageError: If the study exists but was not made by flatsearch.
    """
    settings = objective.settings
    wanted = shared_settings(objective)
    study_pruner = make_pruner(pruner, settings.objectives)
    make_sampler(sampler, 0)
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, directions=settings.directions
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
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


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Turn SIGINT and SIGTERM into `Interrupted`, but only where a trial is sure to be closed.

    Optuna fails a trial whose objective is interrupted. Between two trials, while one is being
    asked for or told, an exception would leave it running for ever; a signal that comes there
    waits for the next objective.

    Yields:
        A context manager to run the objective in.

    Raises:
        Interrupted: If a signal has come.
    """
    received: list[int] = []
    inside = False

    def handle(signum: int, _: FrameType | None) -> None:
        received.append(signum)
        if inside:
            raise Interrupted(signum)

    @contextlib.contextmanager
    def interruptible() -> Iterator[None]:
        nonlocal inside
        inside = True
        try:
            if received:
                raise Interrupted(received[0])
            yield
        finally:
            inside = False

    if threading.current_thread() is not threading.main_thread():
        yield contextlib.nullcontext  # signals reach the main thread only
        return
    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruptible
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])


@dataclass
class _Tally:
    """How a run is going: trials that count, and in a row those that fail or are over a limit."""

    wanted: int
    finished: int = 0
    failures: int = 0
    refused: int = 0

    def count(self, trial: optuna.trial.FrozenTrial) -> None:
        if record.is_finished(trial):
            self.finished, self.failures, self.refused = self.finished + 1, 0, 0
        elif trial.state in record.FINISHED:
            self.refused += 1
        elif trial.state == TrialState.FAIL:
            self.failures += 1

    @property
    def stuck(self) -> bool:
        return self.failures >= _MAX_FAILURES or self.refused >= _MAX_REFUSED


def run_study(
    study: optuna.Study,
    objective: FlatnessObjective,
    *,
    n_trials: int,
    timeout: float | None = None,
    on_trial: Callable[[optuna.Study, optuna.trial.FrozenTrial], None] | None = None,
) -> None:
    """Run trials until enough are finished.

    Args:
        study: From `open_study`.
        objective: The objective.
        n_trials: New finished (complete or pruned) trials; failed ones and candidates over a
            limit do not count.
        timeout: Seconds after which no new trial is started.
        on_trial: Called with (study, trial) after every trial.

    Raises:
        Interrupted: On SIGINT or SIGTERM; the running trial is marked as failed.
        FlatsearchError: If trials fail several times in a row, or no candidate keeps the limits.
    """
    tally = _Tally(n_trials)

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        tally.count(trial)
        if on_trial is not None:
            on_trial(study, trial)
        if tally.finished >= tally.wanted or tally.stuck:
            study.stop()

    error: list[str] = []

    with _signals() as interruptible:

        def guarded(trial: optuna.Trial) -> float | tuple[float, ...]:
            with interruptible():
                try:
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

        study.optimize(guarded, timeout=timeout, callbacks=[after], catch=(Exception,))
    if tally.refused >= _MAX_REFUSED:
        limits = ", ".join(f"{k} {v:g}" for k, v in objective.settings.limits.items())
        raise FlatsearchError(
            f"{tally.refused} candidates in a row are over the limits ({limits}); raise them, or"
            " take a space with smaller networks"
        )
    if tally.failures >= _MAX_FAILURES:
        raise FlatsearchError(
            f"{tally.failures} trials failed in a row; the last one with {error[-1]}"
        )
