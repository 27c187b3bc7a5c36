"""The objective of a study: propose, admit, train and measure epoch by epoch, record, decide."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import optuna
import torch
from optuna.trial import TrialState

from flatsearch.data.loading import load_data
from flatsearch.data.splits import ImageData
from flatsearch.device import resolve_device
from flatsearch.errors import DivergedError, NonFiniteError, SettingsError, unknown_name
from flatsearch.flatness import relative_flatness
from flatsearch.networks.cost import excess, measure_cost, over_limit
from flatsearch.pruners.reporting import mark_pruned, report, should_prune
from flatsearch.record import StudyRecord, TrialRecord, write_constraints, write_study, write_trial
from flatsearch.record.constraints import LIMIT, MIN_ACCURACY
from flatsearch.search.candidates import Candidate, Candidates
from flatsearch.search.constraints import list_constraints
from flatsearch.search.control import Control
from flatsearch.search.duplicates import TrainedNetworks, take_over
from flatsearch.search.epoch_metrics import measure_all, metrics_of
from flatsearch.search.liveness import this_process
from flatsearch.search.trial_files import TrialFiles
from flatsearch.settings import RunSettings
from flatsearch.signals.compute import ProxyInput, initial_weights, measure
from flatsearch.signals.table import PROXIES
from flatsearch.spaces.registry import load_space, space_identity
from flatsearch.training.trainer import EpochResult, is_out_of_memory, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.artifacts import FileSystemArtifactStore
    from optuna.trial import FrozenTrial
    from torch import nn

    from flatsearch.data.sources import DataSource
    from flatsearch.flatness import FlatnessResult
    from flatsearch.settings import Direction
    from flatsearch.spaces.space import SearchSpace

__all__ = ["FlatnessObjective"]


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A network as a trial leaves it: with its last metrics, and whether it was not pruned."""

    model: nn.Module
    metrics: dict[str, float]
    whole: bool


class FlatnessObjective:
    """An Optuna objective that trains a candidate and measures its relative flatness.

    Every epoch is recorded with validation accuracy and loss, running training loss, flatness,
    Hessian trace, the rise of the loss under 10% weight noise, seconds and the `signals` that the
    settings ask for; the study's pruner is asked after each. A candidate whose training diverges is
    pruned, with the reason in the record, so that samplers learn to avoid it. A candidate that is
    the same network as an earlier one (and has the same recipe) takes over its result, unless the
    settings ask to train it again. One that runs out of memory is trained once more with every
    batch in two halves.

    Args:
        space: A search space, or its name.
        data: The images: loaded, or anything `flatsearch.load_data` takes.
        objectives: Names of the values to return, from `flatsearch.settings.OBJECTIVES`.
        epochs: Epochs per candidate.
        settings: Every other setting; `objectives` and `epochs` override its own.
        device: Where to train; see `flatsearch.device.resolve_device`.
        prune_mode: "hard" ends a pruned trial as Optuna's PRUNED. "soft" ends it as complete, with
            the values it has reached and a violated constraint, for samplers that ignore pruned
            trials (NSGA-II, NSGA-III, GP, CMA-ES).
        artifact_store: Where to save every completed candidate's weights; not saved if None.
        on_epoch: A function that is called with (trial, result, flatness result) after every epoch.

    Attributes:
        directions: Optuna's directions, for `optuna.create_study`.
        metric_names: Names of the returned values, for `study.set_metric_names`.

    Raises:
        SettingsError: If a setting is out of range.

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
    ) -> None:
        settings = settings or RunSettings()
        if objectives is not None:
            settings = dataclasses.replace(settings, objectives=tuple(objectives))
        if epochs is not None:
            settings = dataclasses.replace(settings, epochs=epochs)
        self.settings = settings
        if isinstance(space, str):
            self.space_reference, self.space = space, load_space(space)
        else:
            self.space_reference = f"{type(space).__module__}:{type(space).__qualname__}"
            self.space = space
        if prune_mode not in {"hard", "soft"}:
            raise SettingsError(unknown_name("prune mode", str(prune_mode), ("hard", "soft")))
        self._soft = prune_mode == "soft"
        self.device = resolve_device(device)
        if not isinstance(data, ImageData):
            data = load_data(data, **settings.data_options())
        self.data = data.to(self.device)
        self._candidates = Candidates(self.space, self.data, settings)
        self._files: TrialFiles | None = None
        if artifact_store is not None:
            self._files = TrialFiles(artifact_store, data, self.space_reference)
        self._untrained = [n for n in settings.signals if PROXIES[n].first == "untrained"]
        self._every_epoch = [n for n in settings.signals if PROXIES[n].first == "epoch"]
        self._on_epoch = on_epoch
        self._probe = self.data.probe.tensors()
        # A network that is to be trained again does not wait for others that train it.
        patience = {} if settings.duplicates == "reuse" else {"patience": 0.0}
        self._trained = TrainedNetworks(**patience)
        self._introduced: WeakSet[optuna.Study] = WeakSet()

    @property
    def directions(self) -> list[Direction]:
        """Optuna's directions, in the order of the returned values."""
        return self.settings.directions

    @property
    def metric_names(self) -> list[str]:
        """Names of the returned values."""
        return list(self.settings.objectives)

    def shared_settings(self) -> dict[str, Any]:
        """Return what all trials of a study must share, as JSON types."""
        space, content = space_identity(self.space_reference)
        return {
            "space": space,
            "space_file": content,
            "data": self.data.name,
            "data_fingerprint": self.data.fingerprint(),
            **self.settings.to_dict(),
        }

    def check(self) -> None:
        """Build and measure a random candidate, untrained, so that a broken space shows early.

        Raises:
            SpaceError: If the space fails or breaks its contract; names the class and method.
        """
        self._candidates.check()

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Train and measure one candidate; see `run`."""
        return self.run(trial, Control())

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
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            try:
                values = self._run(trial, control)
            except (DivergedError, NonFiniteError) as error:
                write_trial(trial, failure=str(error), diverged=True)
                raise optuna.TrialPruned(str(error)) from error
            finally:
                list_constraints(trial)
        return values[0] if len(values) == 1 else values

    def _run(self, trial: optuna.Trial, control: Control) -> tuple[float, ...]:
        candidate = self._propose(trial)
        earlier = self._find_earlier(trial, candidate, control)
        if earlier is not None:
            return self._take_over(trial, earlier)
        model = self._candidates.build(candidate)
        cost = self._admit(trial, model)
        trained = self._train(trial, candidate, model, control, cost)
        return self._record(trial, candidate, trained, cost)

    def _propose(self, trial: optuna.Trial) -> Candidate:
        """Ask for a candidate, and record it before anything can go wrong with it."""
        if trial.study not in self._introduced:
            # The study may have been made without `open_study`.
            self._introduced.add(trial.study)
            known = StudyRecord(trial.study)
            if known.settings is None:
                write_study(trial.study, settings=self.shared_settings())
            if known.validation_images is None:
                write_study(trial.study, validation_images=len(self.data.validation))
        write_trial(trial, worker=this_process())
        candidate = self._candidates.propose(trial)
        write_trial(trial, architecture=candidate.architecture, recipe=candidate.recipe or None)
        return candidate

    def _find_earlier(
        self, trial: optuna.Trial, candidate: Candidate, control: Control
    ) -> FrozenTrial | None:
        """Return the earlier trial whose result this one takes over, if any."""
        key = self._candidates.key(candidate)
        write_trial(trial, network=key)
        earlier = self._trained.find(trial.study, trial.number, key, control.check)
        if earlier is not None and self.settings.duplicates == "retrain":
            write_trial(trial, retrain_of=earlier.number)
            return None
        return earlier

    def _take_over(self, trial: optuna.Trial, earlier: FrozenTrial) -> tuple[float, ...]:
        """End a trial as the earlier one of the same network did."""
        take_over(trial, earlier)
        same = f"the same network as trial {earlier.number}"
        if earlier.state == TrialState.RUNNING:
            # It has no result yet. A pruned trial would tell the sampler that this region is bad;
            # one that fails tells nothing, and NaN is how an objective fails without an exception.
            write_trial(trial, failure=f"{same}, which is being trained")
            return (math.nan,) * len(self.metric_names)
        if earlier.state == TrialState.PRUNED:
            raise _pruned(trial, f"{same}: {TrialRecord(earlier).failure or 'pruned'}")
        return tuple(earlier.values)

    def _admit(self, trial: optuna.Trial, model: nn.Module) -> dict[str, float | int]:
        """Record what is known of a candidate untrained; one over a limit goes no further."""
        limits = self.settings.limits
        cost = measure_cost(
            model, self.data.in_channels, self.data.image_size, {*limits, *self.metric_names}
        )
        write_trial(trial, metrics=cost)
        over = excess(cost, limits)
        write_constraints(trial, {f"{LIMIT}{name}": value for name, value in over.items()})
        if reason := over_limit(cost, limits):
            raise _pruned(trial, reason)
        known = {**cost, **measure(self._untrained, ProxyInput(model, *self._probe))}
        write_trial(trial, metrics=known)
        return known

    def _train(
        self,
        trial: optuna.Trial,
        candidate: Candidate,
        model: nn.Module,
        control: Control,
        cost: dict[str, float | int],
    ) -> _Trained:
        """Train and measure, once more with every batch in two halves if memory runs out."""
        try:
            return self._train_once(trial, candidate, model, control, cost)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error)
        # Outside of the handler: the traceback there keeps tensors alive.
        write_trial(trial, retried=reason)
        model.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        again = self._candidates.build(candidate)
        return self._train_once(trial, candidate, again, control, cost, accumulate=2)

    def _train_once(
        self,
        trial: optuna.Trial,
        candidate: Candidate,
        model: nn.Module,
        control: Control,
        cost: dict[str, float | int],
        accumulate: int = 1,
    ) -> _Trained:
        settings = candidate.settings
        # Objectives that no epoch changes: a pruner that ranks by all objectives needs them too.
        fixed = {name: cost[name] for name in self.metric_names if name in cost}
        metrics: dict[str, float] = {}
        initial = initial_weights(model) if self._every_epoch else {}
        for epoch in train(
            model,
            self.data,
            settings,
            seed=candidate.seed,
            accumulate=accumulate,
            on_batch=control.check,
        ):
            flatness = relative_flatness(model, self._probe, settings.layer)
            if epoch.epoch == 1:
                write_trial(trial, measured=next(iter(flatness.layers)))
            metrics = metrics_of(epoch, flatness)
            metrics |= measure(self._every_epoch, ProxyInput(model, *self._probe, initial))
            if settings.measures_all(epoch.epoch):
                every, layers = measure_all(
                    model, self._probe, self.data.num_classes, needed=settings.needs_all
                )
                write_trial(trial, layers=layers or None)
                metrics |= every
            report(trial, epoch.epoch - 1, **metrics, **fixed, train_seconds=epoch.seconds)
            if self._on_epoch is not None:
                self._on_epoch(trial, epoch, flatness)
            if epoch.epoch == settings.epochs:
                break
            control.check_time(epoch.epoch)
            if should_prune(trial):
                reason = f"pruned after epoch {epoch.epoch}"
                write_trial(trial, stopped=reason)
                if not self._soft:
                    raise optuna.TrialPruned(reason)
                return _Trained(model, metrics, whole=False)
        return _Trained(model, metrics, whole=True)

    def _record(
        self,
        trial: optuna.Trial,
        candidate: Candidate,
        trained: _Trained,
        cost: dict[str, float | int],
    ) -> tuple[float, ...]:
        """Record what a trial ends with, and return its objective values."""
        write_trial(trial, metrics=trained.metrics)
        if self._soft:
            mark_pruned(trial, pruned=not trained.whole)
        if set(self.metric_names) != {"accuracy"}:
            least = self.settings.min_accuracy
            least = self.data.guessing_accuracy() if least is None else least
            write_constraints(trial, {MIN_ACCURACY: least - trained.metrics["accuracy"]})
        found = {**cost, **trained.metrics}
        values = tuple(float(found[name]) for name in self.metric_names)
        if self._files is not None and trained.whole:
            self._files.save(trial, trained.model, candidate.architecture, values)
        return values


def _pruned(trial: optuna.Trial, reason: str) -> optuna.TrialPruned:
    write_trial(trial, failure=reason)
    return optuna.TrialPruned(reason)
