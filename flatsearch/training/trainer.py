"""Training of a candidate, epoch by epoch; knows nothing of Optuna."""

from __future__ import annotations

import copy
import math
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsearch.errors import DivergedError
from flatsearch.training.computation import choose_computation
from flatsearch.training.evaluation import EVALUATION_BATCH, validate
from flatsearch.training.graphs import GraphedStep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flatsearch.data.splits import ImageData
    from flatsearch.settings import RunSettings
    from flatsearch.training.evaluation import Validation

__all__ = ["EpochResult", "Trainer", "epoch_result", "is_out_of_memory", "train"]


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave.

    Attributes:
        epoch: 1 for the first.
        train_loss: Running mean of the training cross-entropy over the epoch, in nats.
        train_accuracy: Fraction right over the epoch, on augmented images, as weights change.
        loss: Validation cross-entropy after the epoch.
        accuracy: Validation accuracy after the epoch.
        balanced_accuracy: The same, averaged over the classes.
        seconds: Training and validation time.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    loss: float
    accuracy: float
    balanced_accuracy: float
    seconds: float


def epoch_result(
    epoch: int, trained: tuple[float, float], validated: Validation, started: float
) -> EpochResult:
    """Return what an epoch gave.

    Args:
        epoch: 1 for the first.
        trained: Training loss and accuracy.
        validated: What the network does on the validation images.
        started: When it began, by `time.perf_counter`.

    Returns:
        The result.

    Raises:
        DivergedError: If a loss is NaN or infinite.
    """
    (train_loss, train_accuracy), loss = trained, validated.loss
    if not (math.isfinite(train_loss) and math.isfinite(loss)):
        raise DivergedError(
            f"training diverged in epoch {epoch}: training loss {train_loss:.3g}, validation loss"
            f" {loss:.3g}"
        )
    seconds = time.perf_counter() - started
    return EpochResult(epoch, train_loss, train_accuracy, *validated, seconds)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory is used up, on the device or on the CPU.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
        True
        >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        False
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What the CPU's allocator raises has no class of its own.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def class_weights(data: ImageData) -> Tensor:
    """Return the weight of every class in the training loss, (K,).

        w_k = N / (K n_k)

    with n_k of the N training images; 0 where there are none.
    """
    counts = torch.bincount(data.train.targets, minlength=data.num_classes).float()
    weights = counts.sum() / (len(counts) * counts)
    return torch.where(counts > 0, weights, 0.0)


class Trainer:
    """Trains a model epoch by epoch, and can be stopped and gone on with after each.

    SGD with Nesterov momentum, weight decay and a one-cycle learning rate over all epochs
    (Smith and Topin, "Super-Convergence", arXiv 1708.07120), with the precision and the layout in
    memory that `choose_computation` decides on. Images stay on the device as they are stored;
    batches are cut, normalised and augmented there with random numbers that are drawn there. An
    epoch waits for the device once, and its validation once more, however many batches there are.

    Args:
        model: On the data's device; changed in place.
        data: Its training split is trained on.
        settings: Epochs, batch size, learning rate, weight decay, momentum, augmentation, class
            weights, precision, memory format, CUDA graphs.
        seed: Of batch order and augmentation.
        accumulate: Parts a batch is split into, whose gradients are added up: the same step with
            less memory, but for batch norm, which sees the parts.
        label_smoothing: Share of every target that is spread over all classes (Szegedy et al. 2016,
            arXiv 1512.00567), in [0, 1).
        on_batch: Called before every batch; what it raises ends the training.
        on_step: Called after every step of the optimiser.

    Attributes:
        epochs_done: How many epochs have been trained.
        computation: How the network is computed.
        graph: The step that is replayed as a CUDA graph; None where it is not asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        settings: RunSettings,
        *,
        seed: int,
        accumulate: int = 1,
        label_smoothing: float = 0.0,
        on_batch: Callable[[], None] | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self._model, self._split, self._settings = model, data.train, settings
        self._validation = data.validation
        self._accumulate, self._smoothing = accumulate, label_smoothing
        self._weights = class_weights(data) if settings.class_weights == "balanced" else None
        self._on_batch, self._on_step = on_batch, on_step
        self._device = data.train.targets.device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._augment = data.augmentation(settings.augment)
        self.computation = choose_computation(
            model,
            data.in_channels,
            data.image_size,
            precision=settings.precision,
            memory_format=settings.memory_format,
        )
        self.computation.convert(model)
        cuda = self._device.type == "cuda"
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            # A tensor, so that a captured step reads what the schedule writes.
            lr=torch.full((), settings.lr, device=self._device) if cuda else settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
            fused=self._device.type in {"cuda", "cpu"},
        )
        # The last batch is kept unless it is one image, on which batch norm cannot train.
        self._batch_size = min(settings.batch_size, len(data.train))
        full, rest = divmod(len(data.train), self._batch_size)
        self.steps_per_epoch = full + (rest > 1)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=settings.lr,
            total_steps=settings.epochs * self.steps_per_epoch + 1,
            cycle_momentum=False,
        )
        self._scaler = self._new_scaler()
        self._sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        self.graph = self._new_graph() if cuda and settings.cuda_graphs else None
        self.epochs_done = 0

    def _new_graph(self) -> GraphedStep:
        # Not a reference to itself: what a graph holds of the device is free at once in the end.
        own = weakref.proxy(self)
        return GraphedStep(lambda x, y: own._step(x, y), self._model, lambda: own._forget_step())

    def _new_scaler(self) -> torch.amp.GradScaler:
        half = self.computation.precision == "float16"
        return torch.amp.GradScaler(self._device.type, enabled=half)

    def _forget_step(self) -> None:
        """Forget a step that was begun and not ended: the next one would be scaled twice."""
        state, self._scaler = self._scaler.state_dict(), self._new_scaler()
        self._scaler.load_state_dict(state)
        for name in ("grad_scale", "found_inf"):  # what the scaler hands to the optimiser
            vars(self._optimizer).pop(name, None)

    def epoch(self) -> tuple[float, float]:
        """Train for one epoch.

        Returns:
            Running means over the epoch, on augmented images, as weights change: the loss (with
            label smoothing, if any) in nats, and the accuracy. NaN if training has diverged.
        """
        self._model.train()
        self._sums.zero_()
        seen = 0
        batches = self._split.batches(
            self._batch_size, generator=self._generator, augment=self._augment
        )
        for x, y in batches:
            if self._on_batch is not None:
                self._on_batch()
            if len(y) < 2:
                continue
            (self.graph or self._step)(self.computation.lay_out(x), y)
            self._schedule.step()
            if self._on_step is not None:
                self._on_step()
            seen += len(y)
        self.epochs_done += 1
        loss, right = self._sums.tolist()
        return loss / seen, right / seen

    def _step(self, x: Tensor, y: Tensor) -> None:
        """Take one step, and add what it did to the sums of the epoch."""
        self._optimizer.zero_grad(set_to_none=True)
        # No part of one image, on which batch norm cannot train.
        parts = min(self._accumulate, len(y) // 2)
        for images, targets in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            with self.computation.autocast(self._device):
                logits = self._model(images)
                loss = F.cross_entropy(
                    logits, targets, self._weights, label_smoothing=self._smoothing
                )
            share = len(targets) / len(y)
            self._scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            self._sums[0] += loss.detach().double() * len(targets)
            self._sums[1] += (logits.argmax(1) == targets).sum()
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def results(self) -> Iterator[EpochResult]:
        """Train to the last epoch, and validate the model after every one.

        Yields:
            One result per epoch that is left. After each the model is in eval mode.

        Raises:
            DivergedError: If a loss is NaN or infinite.
        """
        while self.epochs_done < self._settings.epochs:
            started = time.perf_counter()
            trained = self.epoch()
            batch_size = EVALUATION_BATCH // self._accumulate
            validated = validate(self._model, self._validation, batch_size, self.computation)
            yield epoch_result(self.epochs_done, trained, validated, started)

    def facts(self) -> dict[str, str]:
        """Return how the network is computed, and why its steps are not replayed as a graph."""
        failure = self.graph.failure if self.graph is not None else ""
        return self.computation.to_dict() | ({"plain_steps": failure} if failure else {})

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the model that is needed to go on after this epoch."""
        return {
            "epochs_done": self.epochs_done,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called; the model's own state is loaded apart."""
        self.epochs_done = state["epochs_done"]
        rates = [group["lr"] for group in self._optimizer.param_groups]
        # What is loaded stays as it is: steps change an optimiser's tensors in place.
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        # The rate is a tensor or a number as this device needs it, wherever the state was saved.
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            value = float(group["lr"])
            group["lr"] = rate.fill_(value) if isinstance(rate, Tensor) else value
        if self.graph is not None:  # a captured step goes on with the tensors of before
            self.graph = self._new_graph()
        self._schedule.load_state_dict(state["schedule"])
        if state["scaler"]:  # empty where it was not needed
            self._scaler.load_state_dict(state["scaler"])
        generator = state["generator"].cpu()
        if len(generator) != len(self._generator.get_state()):
            # Of a version that drew its numbers on the CPU: it goes on with them.
            self._generator = torch.Generator()
        self._generator.set_state(generator)


def train(
    model: nn.Module,
    data: ImageData,
    settings: RunSettings,
    *,
    seed: int,
    accumulate: int = 1,
    on_batch: Callable[[], None] | None = None,
) -> Iterator[EpochResult]:
    """Train a model with a `Trainer`, and validate it after every epoch.

    Args:
        model: On the data's device; changed in place. After each yield it is in eval mode.
        data: Training and validation splits.
        settings: See `Trainer`.
        seed: See `Trainer`.
        accumulate: See `Trainer`.
        on_batch: See `Trainer`.

    Yields:
        One result per epoch.

    Raises:
        DivergedError: If a loss is NaN or infinite.
    """
    trainer = Trainer(model, data, settings, seed=seed, accumulate=accumulate, on_batch=on_batch)
    yield from trainer.results()
