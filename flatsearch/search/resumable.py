"""Objectives of one's own whose trials can be parked, and go on later."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import optuna
import torch

from flatsearch.errors import COUNT, SettingsError
from flatsearch.pruners.reporting import report, should_prune
from flatsearch.record import TrialRecord, name_objectives, write_trial
from flatsearch.search.checkpoints import Checkpoint
from flatsearch.search.liveness import note_worker
from flatsearch.search.parking import (
    Parking,
    goes_on_already,
    note_turn_over,
    report_again,
    steps_of,
    warn_of_unusable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna.artifacts import FileSystemArtifactStore

__all__ = ["Resumable", "ResumableObjective"]

_CPU = torch.device("cpu")


class Resumable(Protocol):
    """A training that can stop after any epoch and go on in another process."""

    def epoch(self) -> Mapping[str, float]:
        """Train for one epoch, and return what is to be recorded of it, by name."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on: tensors, numbers, texts, lists and dictionaries."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""


class ResumableObjective:
    """An objective of your own that parks and promotes under a pruner such as `HalvingPromoter`.

    Under any other pruner it prunes as usual.

    Args:
        start: A function that returns a trial's training, not begun yet. It suggests all
            parameters; a trial that goes on with an earlier one has the same.
        epochs: The number of epochs of a trial that is not stopped.
        objectives: The names of the metrics whose last values are the objective values.
        artifact_store: Where trainings are kept; None for nowhere, and trials are pruned for good.

    Attributes:
        metric_names: The names of the objectives, for `study.set_metric_names`.
        parking: What keeps the trainings.

    Raises:
        SettingsError: If there is no epoch or no objective.
    """

    def __init__(
        self,
        start: Callable[[optuna.Trial], Resumable],
        epochs: int,
        objectives: Sequence[str],
        *,
        artifact_store: FileSystemArtifactStore | None = None,
    ) -> None:
        COUNT.check("epochs", epochs)
        if isinstance(objectives, str) or not objectives:
            raise SettingsError(f"`objectives` must be names of metrics but got {objectives!r}")
        self._start, self._epochs = start, epochs
        self.metric_names = list(objectives)
        self.parking = Parking(artifact_store)

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Train as long as the pruner says.

        Args:
            trial: The trial that Optuna asks for; or one of no study (`FixedTrial`,
                `study.best_trial`), which is trained to the end.

        Returns:
            The objective values; NaN, which fails the trial, for one that comes too late.

        Raises:
            TrialPruned: If its turn is over.
        """
        metrics: Mapping[str, float] = {}
        if not isinstance(trial, optuna.Trial):  # of no study: nothing is pruned or kept
            training = self._start(trial)
            for step in range(self._epochs):
                metrics = training.epoch()
                report(trial, step, **metrics)
            return self._values(metrics)
        name_objectives(trial.study, self.metric_names)
        promotion = TrialRecord(trial).promotion
        if promotion is not None and (other := goes_on_already(trial, promotion)) is not None:
            reason = f"trial {other} goes on with the same network"
            write_trial(trial, failure=reason, late=True)
            metrics = dict.fromkeys(self.metric_names, math.nan)
            stopped = ""
        else:
            metrics, stopped = self._train(trial)
        self.parking.promote(trial.study)
        if stopped:
            raise optuna.TrialPruned(stopped)
        return self._values(metrics)

    def _values(self, metrics: Mapping[str, float]) -> float | tuple[float, ...]:
        values = tuple(float(metrics[name]) for name in self.metric_names)
        return values[0] if len(values) == 1 else values

    def _train(self, trial: optuna.Trial) -> tuple[Mapping[str, float], str]:
        """Return the last metrics, and why the training was stopped, if it was."""
        note_worker(trial)
        training = self._start(trial)
        keeps = self.parking.keeps(trial.study)
        name = self.parking.begin(trial) if keeps else ""
        checkpoint = self.parking.load(trial, "", _CPU)
        metrics: Mapping[str, float] = {}
        done = 0
        if checkpoint is not None:
            try:
                training.load_state_dict(checkpoint.state)
            except Exception as error:  # what is not as it should be can fail in any way
                warn_of_unusable(trial, error)
                training, checkpoint = self._start(trial), None
        if checkpoint is not None:
            report_again(trial, checkpoint)
            done = checkpoint.epochs
            metrics = checkpoint.steps[done - 1]
            checkpoint = None  # as large as the training
        while not self._is_over(trial, done):
            if done >= self._epochs:
                return metrics, ""
            metrics = training.epoch()
            report(trial, done, **metrics)
            done += 1
            if keeps and done < self._epochs:
                state = training.state_dict()
                self.parking.save(name, Checkpoint("", done, state, steps_of(trial), {}))
        return metrics, note_turn_over(trial, done, parked=keeps)

    def _is_over(self, trial: optuna.Trial, done: int) -> bool:
        return 0 < done < self._epochs and should_prune(trial)
