"""The one loop: suggest, build, train, measure, record, prune."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import optuna
import torch

from flatsearch import record
from flatsearch.data.loading import load_data
from flatsearch.data.splits import ImageData
from flatsearch.device import resolve_device
from flatsearch.errors import (
    DivergedError,
    NonFiniteError,
    OutOfTimeError,
    SettingsError,
    SpaceError,
    UnsupportedModelError,
    unknown_name,
)
from flatsearch.export.card import ModelCard
from flatsearch.export.checkpoint import save_model
from flatsearch.flatness import relative_flatness
from flatsearch.networks.cost import excess, measure_cost, over_limit
from flatsearch.networks.identity import network_key
from flatsearch.pareto import is_best
from flatsearch.pruners.reporting import mark_pruned, report, should_prune
from flatsearch.search import pictures
from flatsearch.search.duplicates import TrainedNetworks
from flatsearch.search.liveness import this_process
from flatsearch.search.recipe import suggest_recipe
from flatsearch.settings import Direction, RunSettings
from flatsearch.spaces.registry import load_space, space_identity
from flatsearch.spaces.space import (
    Architecture,
    OnceTrial,
    SearchSpace,
    build_model,
    suggest_checked,
)
from flatsearch.training.trainer import EpochResult, is_out_of_memory, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.artifacts import FileSystemArtifactStore

    from flatsearch.data.sources import DataSource
    from flatsearch.flatness import FlatnessResult

__all__ = ["FlatnessObjective"]

# Candidates that `check` tries.
_CHECKS = 5
# All convolutions together take a backward pass per class; this many images times classes are about
# a thousand images of training.
_IMAGES_BY_CLASSES = 1280
_LEAST_IMAGES = 16


class FlatnessObjective:
    """An Optuna objective that trains a candidate and measures its relative flatness.

    Every epoch is recorded with validation accuracy and loss, running training loss, flatness,
    Hessian trace and seconds; the study's pruner is asked after each. A candidate whose training
    diverges is pruned, with the reason in the attribute "failure", so that samplers learn to
    avoid it. A candidate that is the same network as an earlier one (and has the same recipe)
    takes over its result, unless the settings ask to train it again. One that runs out of memory is
    trained once more with every batch in two halves.

    Args:
        space: A search space, or its name.
        data: The images: loaded, or anything `flatsearch.load_data` takes.
        objectives: Names of the values to return, from `flatsearch.settings.OBJECTIVES`.
        epochs: Epochs per candidate.
        settings: Every other setting; `objectives` and `epochs` override its own.
        device: Where to train; see `resolve_device`.
        prune_mode: "hard" ends a pruned trial as Optuna's PRUNED. "soft" ends it as complete, with
            the values it has reached and a violated constraint, for samplers that ignore pruned
            trials (NSGA-II, NSGA-III, GP, CMA-ES).
        artifact_store: Where to save every completed candidate's weights; not saved if None.
        on_epoch: Called with (trial, result, flatness result) after every epoch.

    Attributes:
        directions: For `optuna.create_study`.
        metric_names: For `study.set_metric_names`.
        on_batch: Called before every training batch; what it raises ends the trial. None.
        deadline: When to end a trial at its next epoch, by `time.monotonic`. None.

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
        self._artifact_store = artifact_store
        self._on_epoch = on_epoch
        self._probe = self.data.probe.tensors()
        self._trained = TrainedNetworks()
        self._introduced: set[str] = set()
        self.on_batch: Callable[[], None] | None = None
        self.deadline: float | None = None

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

    def _introduce(self, study: optuna.Study) -> None:
        """Store the settings with a study that was made without `open_study`."""
        if study.study_name in self._introduced:
            return
        self._introduced.add(study.study_name)
        if record.read_settings(study) is None:
            record.write_settings(study, self.shared_settings())

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Train and measure one candidate.

        Args:
            trial: From Optuna.

        Returns:
            The objective values, in the order of `metric_names`; NaN, which fails the trial, for
            the same network as one that is being trained.

        Raises:
            OutOfTimeError: If the deadline has passed.
            TrialPruned: If the pruner says so, training diverges, the candidate is over a limit,
                or it is the same as one that was pruned.
        """
        seed = self._trial_seed(trial.number)
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            try:
                values = self._run(trial, seed)
            except (DivergedError, NonFiniteError) as error:
                raise self._pruned(trial, str(error)) from error
            finally:
                record.mirror_constraints(trial)
        return values[0] if len(values) == 1 else values

    @staticmethod
    def _pruned(trial: optuna.Trial, reason: str) -> optuna.TrialPruned:
        record.write_failure(trial, reason)
        return optuna.TrialPruned(reason)

    def _trial_seed(self, number: int) -> int:
        """Derive a seed from the study's seed and the trial's number: its own, and repeatable."""
        sequence = np.random.SeedSequence([self.settings.seed, number])
        return int(sequence.generate_state(1)[0])

    def _build(self, architecture: Architecture, *, check: bool = True) -> torch.nn.Module:
        return build_model(
            self.space,
            architecture,
            in_channels=self.data.in_channels,
            num_classes=self.data.num_classes,
            image_size=self.data.image_size,
            check=check,
        )

    def check(self) -> None:
        """Build and measure a random candidate, untrained, so that a broken space shows early.

        A space some of whose candidates fail is no reason to refuse it: a few are tried.

        Raises:
            SpaceError: If the space fails or breaks its contract; names the class and method.
        """
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        first: SpaceError | None = None
        for _ in range(_CHECKS):
            try:
                return self._check(study.ask())
            except optuna.TrialPruned:  # noqa: PERF203 - not worth a function of its own
                continue
            except SpaceError as error:
                first = first or error
        raise first or SpaceError(f"{type(self.space).__name__}.suggest prunes every candidate")

    def _check(self, trial: optuna.Trial) -> None:
        architecture, _, _ = self._suggest(trial)
        with torch.random.fork_rng(devices=[]):
            model = self._build(architecture).to(self.device)
        inputs, targets = self._probe
        try:
            relative_flatness(model, (inputs[:8], targets[:8]))
        except (NonFiniteError, UnsupportedModelError) as error:
            raise SpaceError(
                f"{type(self.space).__name__}.build returned a model whose flatness cannot be"
                f" measured: {error}"
            ) from error

    def _suggest(self, trial: optuna.Trial) -> tuple[Architecture, RunSettings, dict[str, Any]]:
        """Return the architecture, how to train it, and what of that was suggested."""
        once: Any = OnceTrial(trial)
        architecture = suggest_checked(self.space, once)
        if not self.settings.tune_recipe:
            return architecture, self.settings, {}
        may_flip = self.data.may_flip
        settings, recipe = suggest_recipe(self.space, once, self.settings, may_flip=may_flip)
        if "batch_size" in recipe:
            # A batch has no more images than there are: the same training, the same key.
            recipe["batch_size"] = min(settings.batch_size, len(self.data.train))
        return architecture, settings, recipe

    def _run(self, trial: optuna.Trial, seed: int) -> tuple[float, ...]:
        self._introduce(trial.study)
        record.write_worker(trial, this_process())
        architecture, settings, recipe = self._suggest(trial)
        record.write_architecture(trial, architecture)
        if recipe:
            record.write_recipe(trial, recipe)
        key = self._key(architecture, recipe)
        record.write_network(trial, key)
        reuse = settings.duplicates == "reuse"
        trained = self._trained if reuse else TrainedNetworks(patience=0)
        earlier = trained.find(trial.study, trial.number, key, self.on_batch)
        if earlier is not None:
            if reuse:
                return self._reuse(trial, earlier)
            record.write_repeat(trial, earlier.number)
        model = self._build(architecture, check=False).to(self.device)
        size = self._measure_cost(trial, model)
        try:
            metrics, whole = self._train(trial, model, settings, seed, size)
            again = ""
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            again = str(error)
        if again:  # outside of the handler: the traceback there keeps tensors alive
            record.write_retry(trial, again)
            del model
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            torch.manual_seed(seed)
            model = self._build(architecture, check=False).to(self.device)
            metrics, whole = self._train(trial, model, settings, seed, size, accumulate=2)
        record.write_final(trial, metrics)
        if self._soft:
            mark_pruned(trial, pruned=not whole)
        if set(self.metric_names) != {"accuracy"}:
            least = settings.min_accuracy
            least = self.data.guessing_accuracy() if least is None else least
            record.write_minimum(trial, metrics["accuracy"], least)
        values = tuple(float({**size, **metrics}[name]) for name in self.metric_names)
        if self._artifact_store is not None and whole:
            self._save(trial, model, architecture)
            if self._is_notable(trial, values):
                self._save_pictures(trial, model, architecture)
        return values

    def _key(self, architecture: Architecture, recipe: dict[str, Any]) -> str:
        """Return what tells a candidate from others: its network and its recipe."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self._build(architecture)
        network = network_key(model, self.data.in_channels, self.data.image_size)
        suffix = json.dumps(recipe, sort_keys=True) if recipe else ""
        return (network or architecture.key) + suffix

    def _reuse(self, trial: optuna.Trial, earlier: optuna.trial.FrozenTrial) -> tuple[float, ...]:
        """End a trial as the earlier one of the same network did."""
        record.write_reuse(trial, earlier)
        same = f"the same network as trial {earlier.number}"
        if earlier.state == optuna.trial.TrialState.RUNNING:
            # It has no result yet. A pruned trial would tell the sampler that this region is bad;
            # one that fails tells nothing, and NaN is how an objective fails without an exception.
            record.write_failure(trial, f"{same}, which is being trained")
            return (math.nan,) * len(self.metric_names)
        if earlier.state == optuna.trial.TrialState.PRUNED:
            reason = record.read_trial(earlier).failure or "pruned"
            raise self._pruned(trial, f"{same}: {reason}")
        return tuple(earlier.values)

    def _measure_cost(self, trial: optuna.Trial, model: torch.nn.Module) -> dict[str, float | int]:
        """Record what a candidate costs; it goes no further if that is too much."""
        limits = self.settings.limits
        size = measure_cost(
            model, self.data.in_channels, self.data.image_size, {*limits, *self.metric_names}
        )
        record.write_final(trial, size)
        record.write_limits(trial, excess(size, limits))
        if reason := over_limit(size, limits):
            raise self._pruned(trial, reason)
        return size

    def _train(
        self,
        trial: optuna.Trial,
        model: torch.nn.Module,
        settings: RunSettings,
        seed: int,
        size: dict[str, float | int],
        accumulate: int = 1,
    ) -> tuple[dict[str, float], bool]:
        """Train and measure; return the last epoch's metrics, and whether it was not pruned."""
        metrics: dict[str, float] = {}
        # Objectives that no epoch changes: a pruner that ranks by all objectives needs them too.
        fixed = {name: size[name] for name in self.metric_names if name in size}
        epochs = train(
            model, self.data, settings,
            seed=seed, accumulate=accumulate, on_batch=self.on_batch,
        )  # fmt: skip
        for epoch in epochs:
            flatness = relative_flatness(model, self._probe)
            metrics = {
                "accuracy": epoch.accuracy,
                "flatness": flatness.relative_flatness,
                "flatness_standard_error": flatness.standard_error,
                "hessian_trace": flatness.hessian_trace,
                "loss": epoch.loss,
                "probe_loss": flatness.loss,
                "train_loss": epoch.train_loss,
                "train_accuracy": epoch.train_accuracy,
            }
            if settings.measures_all(epoch.epoch):
                metrics |= self._measure_all(trial, model)
            report(trial, epoch.epoch - 1, **metrics, **fixed, train_seconds=epoch.seconds)
            if self._on_epoch is not None:
                self._on_epoch(trial, epoch, flatness)
            if epoch.epoch == settings.epochs:
                break
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise OutOfTimeError(f"the time was up after epoch {epoch.epoch}")
            if should_prune(trial):
                reason = f"pruned after epoch {epoch.epoch}"
                if not self._soft:
                    raise optuna.TrialPruned(reason)
                record.write_failure(trial, reason)
                return metrics, False
        return metrics, True

    def _measure_all(self, trial: optuna.Trial, model: torch.nn.Module) -> dict[str, float]:
        """Measure all convolutions together, and record the value of each."""
        inputs, targets = self._probe
        few = max(_LEAST_IMAGES, _IMAGES_BY_CLASSES // self.data.num_classes)
        try:
            every = relative_flatness(model, (inputs[:few], targets[:few]), layers="all")
        except UnsupportedModelError:
            # One of the convolutions is not covered; the last one is, or the trial has failed.
            return {}
        record.write_layers(
            trial, {name: layer.relative_flatness for name, layer in every.layers.items()}
        )
        return {
            "flatness_all": every.relative_flatness,
            "hessian_trace_all": every.hessian_trace,
        }

    def _save(
        self, trial: optuna.Trial, model: torch.nn.Module, architecture: Architecture
    ) -> None:
        """Upload the trained weights, before the trial is told as complete."""
        card = ModelCard.of(self.data, self.space_reference, architecture)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"trial-{trial.number}.pt"
            save_model(model, card, path)
            record.write_artifact(trial, self._upload(trial, path, "application/octet-stream"))

    def _upload(self, trial: optuna.Trial, path: Path, mimetype: str) -> str:
        return optuna.artifacts.upload_artifact(
            artifact_store=self._artifact_store,  # type: ignore[arg-type]
            file_path=str(path),
            study_or_trial=trial,
            mimetype=mimetype,
        )

    def _is_notable(self, trial: optuna.Trial, values: tuple[float, ...]) -> bool:
        """Return whether a trial is on the front, or the best, as it ends."""
        if not record.is_feasible(trial):
            return False
        complete = trial.study.get_trials(
            deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)
        )
        signs = np.array([1.0 if d == "maximize" else -1.0 for d in self.directions])
        others = [other.values for other in complete if record.is_feasible(other)]
        points = np.array(others).reshape(-1, len(signs)) * signs
        return is_best(points, np.ones(len(points)), np.array(values) * signs, None)

    def _save_pictures(
        self, trial: optuna.Trial, model: torch.nn.Module, architecture: Architecture
    ) -> None:
        """Upload what there is to look at; artifacts cannot be added once a trial has ended."""
        name = f"trial {trial.number}: {self.space_reference} on {self.data.name}"
        with tempfile.TemporaryDirectory() as folder:
            files = [(Path(folder) / "architecture.json", "application/json")]
            files[0][0].write_text(architecture.to_json() + "\n")
            if pictures.is_available():
                network, curves = Path(folder) / "network.png", Path(folder) / "curves.png"
                size = self.data.in_channels, self.data.image_size
                try:
                    pictures.draw_network(model, *size, network, name)
                    pictures.draw_curves(record.read_steps(trial.user_attrs), curves, name)
                    files += [(network, "image/png"), (curves, "image/png")]
                except Exception as error:
                    # A layer of a kind that cannot be drawn is no reason to lose a trained network.
                    warnings.warn(f"{name} could not be drawn: {error!r}", stacklevel=2)
            for path, mimetype in files:
                self._upload(trial, path, mimetype)
