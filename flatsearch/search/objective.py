"""The objective of a study: propose, admit, train and measure epoch by epoch, record, decide."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import TrialState

from flatsearch.data.loading import load_data
from flatsearch.data.splits import ImageData
from flatsearch.device import resolve_device
from flatsearch.errors import DivergedError, NonFiniteError, SettingsError, unknown_name
from flatsearch.export.formats import require_onnx
from flatsearch.networks.cost import over_limit
from flatsearch.pruners.reporting import mark_pruned
from flatsearch.record import (
    FINISHED,
    LeastAccuracy,
    TrialRecord,
    write_trial,
)
from flatsearch.search.candidates import Candidate, Candidates
from flatsearch.search.constraints import list_constraints
from flatsearch.search.control import Control
from flatsearch.search.duplicates import TrainedNetworks, take_over
from flatsearch.search.epochs import Epochs, Start, Trained
from flatsearch.search.introduction import Introduction
from flatsearch.search.liveness import note_worker
from flatsearch.search.parking import Parking, goes_on_already
from flatsearch.search.standard import Standard
from flatsearch.search.trial_files import TrialFiles
from flatsearch.search.turns import Turns
from flatsearch.settings import RunSettings
from flatsearch.spaces.registry import load_space, space_identity
from flatsearch.training.memory import freed_memory_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.artifacts import FileSystemArtifactStore
    from optuna.trial import BaseTrial, FrozenTrial

    from flatsearch.data.sources import DataSource
    from flatsearch.flatness import FlatnessResult
    from flatsearch.search.own_training import TrainFunction
    from flatsearch.settings import Direction
    from flatsearch.spaces.space import SearchSpace
    from flatsearch.training.trainer import EpochResult

__all__ = ["FlatnessObjective"]


class FlatnessObjective:
    """An Optuna objective that trains a candidate and measures its relative flatness.

    Every epoch is recorded with validation accuracy and loss, running training loss, flatness,
    Hessian trace, the rise of the loss under 10% weight noise, seconds and the `signals` that the
    settings ask for; the study's pruner is asked after each. A candidate whose training diverges is
    pruned, with the reason in the record, so that samplers learn to avoid it. A candidate that is
    the same network as an earlier one (and has the same recipe) takes over its result, unless the
    settings ask to train it again. One that runs out of memory is trained once more with every
    batch in two halves.

    With a pruner that promotes (`flatsearch.HalvingPromoter`) and an artifact store, a trial whose
    turn is over is parked: its network's training is kept, and may go on in another trial.

    Args:
        space: A search space, or its name.
        data: The images: loaded, or anything `flatsearch.load_data` takes.
        objectives: Names of the values to return, from `flatsearch.settings.OBJECTIVES`; or one.
        epochs: Epochs per candidate.
        settings: Every other setting; `objectives` and `epochs` override its own.
        device: Where to train; see `flatsearch.device.resolve_device`.
        prune_mode: "hard" ends a pruned trial as Optuna's PRUNED. "soft" ends it as complete, with
            the values it has reached and a violated constraint, for samplers that ignore pruned
            trials (NSGA-II, NSGA-III, GP, CMA-ES).
        artifact_store: Where to save every completed candidate's weights; not saved if None.
        on_epoch: A function that is called with (trial, result, flatness result) after every epoch.
        train: A training loop of your own, `train(model, data, settings, seed)`, that yields (mean
            training loss, training accuracy) after every epoch; see
            `flatsearch.search.own_training.OwnTraining`. Everything else stays as it is: limits,
            duplicates, validation, measuring, pruning and the record. Parking is left out.

    Attributes:
        directions: Optuna's directions, for `optuna.create_study`.
        metric_names: Names of the returned values, for `study.set_metric_names`.

    Raises:
        SettingsError: If a setting is out of range.
        UsageError: If a package is missing that an objective needs.

    Example:
        >>> objective = FlatnessObjective("resnet_small", "digits", epochs=1)
        >>> objective.metric_names, objective.directions
        (['accuracy', 'flatness'], ['maximize', 'minimize'])
    """

    def __init__(
        self,
        space: SearchSpace | str,
        data: ImageData | DataSource,
        objectives: Sequence[str] | None = None,
        epochs: int | None = None,
        *,
        settings: RunSettings | None = None,
        device: str = "auto",
        prune_mode: Literal["hard", "soft"] = "hard",
        artifact_store: FileSystemArtifactStore | None = None,
        on_epoch: Callable[[optuna.Trial, EpochResult, FlatnessResult], None] | None = None,
        train: TrainFunction | None = None,
    ) -> None:
        settings = settings or RunSettings()
        if objectives is not None:
            # A text names one, or several with commas.
            named: Any = objectives if isinstance(objectives, str) else tuple(objectives)
            settings = dataclasses.replace(settings, objectives=named)
        if epochs is not None:
            settings = dataclasses.replace(settings, epochs=epochs)
        if {"onnx_latency", "onnx_memory"} & {*settings.objectives, *settings.limits}:
            require_onnx()
        if isinstance(space, str):
            self.space_reference, self.space = space, load_space(space)
        else:
            own = f"{type(space).__module__}:{type(space).__qualname__}"
            self.space_reference = getattr(space, "reference", own)
            self.space = space
        if settings.normalisation is None:
            wanted = getattr(self.space, "normalisation", None)
            settings = dataclasses.replace(settings, normalisation=wanted)
        self.settings = settings
        if prune_mode not in {"hard", "soft"}:
            raise SettingsError(unknown_name("prune mode", str(prune_mode), ("hard", "soft")))
        self._soft = prune_mode == "soft"
        self.device = resolve_device(device)
        if not isinstance(data, ImageData):
            data = load_data(data, **settings.data_options())
        data = data.normalised(settings.normalisation)
        self.data = data.to(self.device)
        self._candidates = Candidates(self.space, self.data, settings)
        self._files: TrialFiles | None = None
        if artifact_store is not None:
            self._files = TrialFiles(artifact_store, data, self.space_reference)
        self._train_name = None if train is None else _name_of(train)
        # A training of the user's has no state that could be kept.
        self.parking = Parking(artifact_store if train is None else None)
        self._standard = Standard(settings, self.data)
        self._epochs = Epochs(
            self.data, settings, self._candidates, self.parking, self._standard, on_epoch, train
        )
        # A network that is to be trained again does not wait for others that train it.
        patience = {} if settings.duplicates == "reuse" else {"patience": 0.0}
        self._trained = TrainedNetworks(**patience)
        # Of the trial whose seed counts, in the place of the one that is run.
        self._number: int | None = None
        self._introduction = Introduction(self)

    @property
    def directions(self) -> list[Direction]:
        """Optuna's directions, in the order of the returned values."""
        return self.settings.directions

    @property
    def metric_names(self) -> list[str]:
        """Names of the returned values."""
        return list(self.settings.objectives)

    @property
    def least(self) -> LeastAccuracy | None:
        """What a trial of a new study must have learnt to be on the front."""
        return self._standard.of_study

    @cached_property
    def _fingerprint(self) -> str:
        return self.data.fingerprint()  # of all images, which takes time

    def shared_settings(self) -> dict[str, Any]:
        """Return what all trials of a study must share, as JSON types."""
        space, content = space_identity(self.space_reference)
        return {
            "space": space,
            "space_file": content,
            "data": self.data.name,
            "data_fingerprint": self._fingerprint,
            **self.settings.to_dict(),
            **({} if self._train_name is None else {"train": self._train_name}),
        }

    def check(self) -> None:
        """Build and measure a random candidate, untrained, so that a broken space shows early.

        Raises:
            SpaceError: If the space fails or breaks its contract; names the class and method.
        """
        self._candidates.check()

    def __call__(self, trial: BaseTrial) -> float | tuple[float, ...]:
        """Train and measure one candidate; see `run`.

        Args:
            trial: The trial that Optuna asks for; or one of no study (`FixedTrial`,
                `study.best_trial`), which is trained to the end with the seed of its number, and
                of which nothing but the record is kept.

        Returns:
            The objective values.
        """
        if isinstance(trial, optuna.Trial):
            return self.run(trial, Control())
        self._candidates.propose(trial)  # a FixedTrial knows its parameters only then
        study = optuna.create_study(directions=self.directions, pruner=optuna.pruners.NopPruner())
        study.enqueue_trial(trial.params)
        alone, twin = copy.copy(self), study.ask()
        alone._files, alone._number = None, TrialRecord(trial).begun_by
        try:
            return alone.run(twin, Control())
        finally:
            for key, value in twin.user_attrs.items():
                trial.set_user_attr(key, value)

    def run(self, trial: optuna.Trial, control: Control) -> float | tuple[float, ...]:
        """Train and measure one candidate.

        Args:
            trial: The trial that Optuna asks for.
            control: What may end it from outside.

        Returns:
            The objective values, in the order of `metric_names`; NaN, which fails the trial, for
            the same network as one that is being trained.

        Raises:
            OutOfTimeError: If the deadline has passed.
            TrialPruned: If the pruner says so, training diverges, the candidate is over a limit,
                or it is the same as one that was pruned.
        """
        try:
            with freed_memory_kept(self.device):
                values = self._run(trial, control)
        except (DivergedError, NonFiniteError) as error:
            write_trial(trial, diverged=True)
            values = _pruned(trial, str(error))
        finally:
            list_constraints(trial)
        self.parking.promote(trial.study)
        if isinstance(values, str):
            raise optuna.TrialPruned(values)
        return values[0] if len(values) == 1 else values

    def _run(self, trial: optuna.Trial, control: Control) -> tuple[float, ...] | str:
        """Return the objective values, or why the trial is pruned."""
        promotion = TrialRecord(trial).promotion
        if promotion is not None:
            other = goes_on_already(trial, promotion)
            if other is not None:
                return self._fail(trial, f"trial {other} goes on with the same network", late=True)
        candidate = self._propose(trial)
        turns = Turns(self.device)
        with turns.take():
            key = self._candidates.key(candidate)
        write_trial(trial, network=key)
        if TrialRecord(trial).begins:
            earlier = self._find_earlier(trial, key, control)
            if earlier is not None:
                return self._take_over(trial, earlier)
        with turns.take():
            model = self._candidates.build(candidate)
        checkpoint = self.parking.load(trial, key, self.device)
        with turns.take():
            known = None if checkpoint is None else checkpoint.fixed
            cost = self._candidates.cost(trial, model, known)
        if reason := over_limit(cost, self.settings.limits):
            return _pruned(trial, reason)
        start = Start(candidate, model, key, cost, turns, checkpoint)
        trained = self._epochs.train(trial, start, control)
        if trained.stopped and not self._soft:
            if TrialRecord(trial).parked is not None:
                # Samplers see what is parked as complete.
                self._standard.constrain(trial, trained.metrics, stopped=True)
            return trained.stopped
        return self._record(trial, start, trained)

    def _propose(self, trial: optuna.Trial) -> Candidate:
        """Ask for a candidate, and record it before anything can go wrong with it."""
        self._introduction.check(trial.study)
        note_worker(trial)
        candidate = self._candidates.propose(
            trial, TrialRecord(trial).begun_by if self._number is None else self._number
        )
        write_trial(trial, architecture=candidate.architecture, recipe=candidate.recipe or None)
        return candidate

    def _find_earlier(self, trial: optuna.Trial, key: str, control: Control) -> FrozenTrial | None:
        """Return the earlier trial whose result this one takes over, if any."""
        earlier = self._trained.find(trial.study, trial.number, key, control.check)
        if earlier is not None and self.settings.duplicates == "retrain":
            write_trial(trial, retrain_of=earlier.number)
            return None
        return earlier

    def _take_over(self, trial: optuna.Trial, earlier: FrozenTrial) -> tuple[float, ...] | str:
        """End a trial as the earlier one of the same network did."""
        take_over(trial, earlier)
        same = f"the same network as trial {earlier.number}"
        if earlier.state not in FINISHED:
            # It has no result yet. A pruned trial would tell the sampler that this region is bad;
            # one that fails tells nothing.
            return self._fail(trial, f"{same}, which is being trained")
        if earlier.state == TrialState.PRUNED:
            return _pruned(trial, f"{same}: {TrialRecord(earlier).failure or 'pruned'}")
        return tuple(earlier.values)

    def _fail(self, trial: optuna.Trial, reason: str, *, late: bool = False) -> tuple[float, ...]:
        """Return NaN, by which a trial fails without an exception."""
        write_trial(trial, failure=reason, late=late or None)
        return (math.nan,) * len(self.metric_names)

    def _record(self, trial: optuna.Trial, start: Start, trained: Trained) -> tuple[float, ...]:
        """Record what a trial ends with, and return its objective values."""
        write_trial(trial, metrics=trained.metrics)
        if self._soft:
            mark_pruned(trial, pruned=bool(trained.stopped))
        self._standard.constrain(trial, trained.metrics, stopped=bool(trained.stopped))
        found = {**start.cost, **trained.metrics}
        values = tuple(float(found[name]) for name in self.metric_names)
        if self._files is not None and not trained.stopped:
            self._files.save(trial, trained.model, start.candidate.architecture, values)
        return values


def _name_of(function: Callable[..., Any]) -> str:
    """Return the name by which a study knows a training loop."""
    function = getattr(function, "func", function)  # of functools.partial
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


def _pruned(trial: optuna.Trial, reason: str) -> str:
    write_trial(trial, failure=reason)
    return reason
