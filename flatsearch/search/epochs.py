"""The training of a trial, epoch by epoch: measure, report, keep, ask the pruner."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flatsearch.device import wait_for_memory
from flatsearch.pruners.promoter import Promoter
from flatsearch.pruners.reporting import report, should_prune
from flatsearch.record import clear_steps, write_trial
from flatsearch.search.checkpoints import Checkpoint, set_random_state
from flatsearch.search.epoch_metrics import Measuring, metrics_of, metrics_of_all
from flatsearch.search.measuring import Schedule
from flatsearch.search.own_training import OwnTraining
from flatsearch.search.parking import (
    note_turn_over,
    report_again,
    steps_of,
    warn_of_unusable,
)
from flatsearch.signals.compute import ProxyInput, initial_weights, measure
from flatsearch.signals.table import PROXIES
from flatsearch.training.trainer import EpochResult, Trainer, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import optuna
    from torch import Tensor, nn

    from flatsearch.data.splits import ImageData
    from flatsearch.flatness import FlatnessResult
    from flatsearch.search.candidates import Candidate, Candidates
    from flatsearch.search.control import Control
    from flatsearch.search.own_training import TrainFunction
    from flatsearch.search.parking import Parking
    from flatsearch.search.standard import Standard
    from flatsearch.search.turns import Turns
    from flatsearch.settings import RunSettings

    _Measured = tuple[EpochResult, FlatnessResult, FlatnessResult | None, dict[str, float]]
    OnEpoch = Callable[[optuna.Trial, EpochResult, FlatnessResult], None]

__all__ = ["Epochs", "Start", "Trained"]

# How often a trial waits for others that have taken the device's memory.
_WAITS = 3


@dataclasses.dataclass(frozen=True)
class Start:
    """What a trial's training starts from.

    Attributes:
        candidate: The candidate.
        model: Its network, as it is initialised.
        network: What tells it from others.
        cost: What is known of it untrained.
        turns: Its turns at computing.
        checkpoint: Where its training goes on, if it was begun by an earlier trial.
    """

    candidate: Candidate
    model: nn.Module
    network: str
    cost: Mapping[str, float]
    turns: Turns
    checkpoint: Checkpoint | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network as a trial leaves it.

    Attributes:
        model: The network.
        metrics: Its last metrics.
        stopped: Why it was not trained to the end; empty if it was.
    """

    model: nn.Module
    metrics: Mapping[str, float]
    stopped: str = ""


class _UnusableError(Exception):
    """A checkpoint is not of the network that is to go on.

    Args:
        error: What went wrong with it.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Epochs:
    """Trains and measures candidates.

    Args:
        data: The images.
        settings: The settings of the run.
        candidates: What builds a candidate's network, once more if memory runs out.
        parking: What keeps networks in training.
        standard: What a network must have learnt.
        on_epoch: A function that is called with (trial, result, flatness result) after every epoch.
        train: What trains a network in the place of `Trainer`; see `OwnTraining`.
    """

    def __init__(
        self,
        data: ImageData,
        settings: RunSettings,
        candidates: Candidates,
        parking: Parking,
        standard: Standard,
        on_epoch: OnEpoch | None,
        train: TrainFunction | None = None,
    ) -> None:
        self._data, self._settings, self._candidates = data, settings, candidates
        self._standard = standard
        self._parking, self._on_epoch, self._train_function = parking, on_epoch, train
        self._every_epoch = [n for n in settings.signals if PROXIES[n].first == "epoch"]
        self._probe = data.probe.tensors()
        self._device = self._probe[1].device
        self._schedule = Schedule.of(settings, data)

    def train(self, trial: optuna.Trial, start: Start, control: Control) -> Trained:
        """Train and measure; once more if memory runs out.

        Where other processes had taken the device's memory, they are waited for; else every batch
        is cut in two halves.

        Returns:
            What the trial leaves.

        Raises:
            MemoryError: If memory runs out nevertheless.
            RuntimeError: The same, as torch says it.
        """
        accumulate = 1 if start.checkpoint is None else start.checkpoint.state.get("accumulate", 1)
        waits = _WAITS
        while True:
            try:
                return self._train(trial, start, control, accumulate)
            except _UnusableError as error:
                warn_of_unusable(trial, error.error)
                reason = None
            except (RuntimeError, MemoryError) as error:
                own = self._train_function is not None
                if not is_out_of_memory(error) or accumulate > 1 or own:
                    raise
                reason = str(error)
            # Outside of the handlers: the tracebacks there keep tensors alive.
            if reason is None:
                start = self._anew(trial, start, None)
                continue
            start.model.zero_grad()
            if waits and wait_for_memory(self._device, control.check):
                waits -= 1
            else:
                write_trial(trial, retried=reason)
                accumulate = 2
            kept = self._parking.load(trial, start.network, self._device)
            start = self._anew(trial, start, kept)

    def _anew(self, trial: optuna.Trial, start: Start, checkpoint: Checkpoint | None) -> Start:
        """Return what a network is trained once more from: a checkpoint, or its beginning."""
        if checkpoint is None:
            clear_steps(trial)
        with start.turns.take():
            model = self._candidates.build(start.candidate)
        return dataclasses.replace(start, model=model, checkpoint=checkpoint)

    def _train(
        self, trial: optuna.Trial, start: Start, control: Control, accumulate: int
    ) -> Trained:
        model, settings = start.model, start.candidate.settings
        # Objectives that no epoch changes: a pruner that ranks by all objectives needs them too.
        fixed = {name: start.cost[name] for name in settings.objectives if name in start.cost}
        with start.turns.take():
            trainer = self._trainer(start, control, accumulate)
            initial = initial_weights(model) if self._every_epoch else {}
        keeps = self._parking.keeps(trial.study)
        name = self._parking.begin(trial) if keeps else ""
        metrics: Mapping[str, float] = {}
        if start.checkpoint is not None:
            metrics = self._go_on(trial, start, trainer, start.checkpoint)
            # Its process may have ended before it was decided how it goes on.
            if reason := self._stops(trial, trainer.epochs_done, metrics, keeps=keeps):
                return Trained(model, metrics, reason)
        began = trainer.epochs_done + 1
        facts: dict[str, Any] = {"schedule": self._schedule.to_dict()}
        for epoch, flatness, every, metrics in self._measured(start, trainer, initial):
            if every is not None:
                facts["layers"] = {n: one.relative_flatness for n, one in every.layers.items()}
            if epoch.epoch == began:
                facts["measured"] = next(iter(flatness.layers))
                if self._train_function is None:
                    facts["computation"] = trainer.facts()
            if facts:
                write_trial(trial, **facts)
                facts = {}
            report(trial, epoch.epoch - 1, **metrics, **fixed, train_seconds=epoch.seconds)
            if self._on_epoch is not None:
                self._on_epoch(trial, epoch, flatness)
            if epoch.epoch == settings.epochs:
                break
            if keeps:
                self._parking.save(name, self._checkpoint(trial, start, trainer, accumulate))
            control.check_time(epoch.epoch)
            if reason := self._stops(trial, epoch.epoch, metrics, keeps=keeps):
                return Trained(model, metrics, reason)
        return Trained(model, metrics)

    def _trainer(self, start: Start, control: Control, accumulate: int) -> Trainer:
        """Return what trains a candidate."""
        settings, seed, check = start.candidate.settings, start.candidate.seed, control.check
        if self._train_function is not None:
            # It stands for a trainer but for its state, which is never asked for: nothing is kept.
            return OwnTraining(  # type: ignore[return-value]
                self._train_function, start.model, self._data, settings, seed=seed, check=check
            )
        return Trainer(
            start.model,
            self._data,
            settings,
            seed=seed,
            accumulate=accumulate,
            on_batch=check,
        )

    def _measured(
        self, start: Start, trainer: Trainer, initial: Mapping[str, Tensor]
    ) -> Iterator[_Measured]:
        """Train and measure, a turn an epoch."""
        model, settings = start.model, start.candidate.settings
        measuring = Measuring(model, self._probe, settings, self._schedule)
        results = trainer.results()
        while True:
            with start.turns.take():
                epoch = next(results, None)
                if epoch is None:
                    return
                one, every = measuring.one(), measuring.every(epoch.epoch)
                metrics = metrics_of(epoch, one, settings.accuracy)
                metrics |= measure(self._every_epoch, ProxyInput(model, *self._probe, initial))
                metrics |= {} if every is None else metrics_of_all(every)
            yield epoch, one, every, metrics

    def _stops(
        self, trial: optuna.Trial, epoch: int, metrics: Mapping[str, float], *, keeps: bool
    ) -> str:
        """Ask the pruner whether a trial's turn is over; return what is said of it then."""
        if epoch == self._settings.epochs:
            return ""
        pruner, least = trial.study.pruner, self._standard.accuracy
        if (
            least is not None
            and isinstance(pruner, Promoter)
            and pruner.is_rung(trial.study, epoch)
        ):
            # One that has learnt nothing is perfectly flat: the best of its rung, but for this.
            write_trial(trial, guesses=metrics[self._standard.metric] < least)
        if not should_prune(trial):
            return ""
        return note_turn_over(trial, epoch, parked=keeps)

    def _checkpoint(
        self, trial: optuna.Trial, start: Start, trainer: Trainer, accumulate: int
    ) -> Checkpoint:
        state = {
            "model": start.model.state_dict(),
            "trainer": trainer.state_dict(),
            "random": start.turns.random,
            "accumulate": accumulate,
        }
        cost = dict(start.cost)
        return Checkpoint(start.network, trainer.epochs_done, state, steps_of(trial), cost)

    def _go_on(
        self, trial: optuna.Trial, start: Start, trainer: Trainer, checkpoint: Checkpoint
    ) -> Mapping[str, float]:
        """Go on where an earlier trial was.

        Returns:
            The metrics after its last epoch.

        Raises:
            _UnusableError: If the checkpoint is not of such a network.
        """
        try:
            with start.turns.take():
                start.model.load_state_dict(checkpoint.state["model"])
                start.model.eval()
                trainer.load_state_dict(checkpoint.state["trainer"])
                set_random_state(checkpoint.state["random"], self._device)
        except Exception as error:  # what is not as it should be can fail in any way
            if is_out_of_memory(error):
                raise
            raise _UnusableError(error) from error
        report_again(trial, checkpoint)
        checkpoint.state.clear()  # as large as the network, and not needed any more
        last = checkpoint.steps[checkpoint.epochs - 1]
        return {name: value for name, value in last.items() if name != "train_seconds"}
