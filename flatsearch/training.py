"""Brief training of one candidate, epoch by epoch; knows nothing of Optuna."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from flatsearch.errors import DivergedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flatsearch.config import RunSettings
    from flatsearch.data import ImageData, Split

__all__ = ["EpochResult", "evaluate", "is_out_of_memory", "train"]

# Images per forward pass where no gradients are needed.
_EVALUATED = 512


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave.

    Attributes:
        epoch: 1 for the first.
        train_loss: Running mean of the training cross-entropy over the epoch, in nats.
        train_accuracy: Fraction right over the epoch, on augmented images, as weights change.
        loss: Validation cross-entropy after the epoch.
        accuracy: Validation accuracy after the epoch.
        seconds: Training and validation time.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    loss: float
    accuracy: float
    seconds: float


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


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Half precision where it pays: on CUDA."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.autocast(device.type, dtype=half)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch_size: int = _EVALUATED) -> tuple[float, float]:
    """Return (mean cross-entropy, accuracy) in eval mode; leaves the model in eval mode.

    Args:
        model: On the split's device.
        split: Images and targets.
        batch_size: Images per forward pass.

    Returns:
        Loss in nats and accuracy in [0, 1].
    """
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=split.targets.device)
    right = torch.zeros((), dtype=torch.int64, device=split.targets.device)
    for x, y in split.batches(batch_size):
        with _autocast(x.device):
            logits = model(x)
        loss += F.cross_entropy(logits.float(), y, reduction="sum").double()
        right += (logits.argmax(1) == y).sum()
    return float(loss) / len(split), float(right) / len(split)


def train(
    model: nn.Module,
    data: ImageData,
    settings: RunSettings,
    *,
    seed: int,
    accumulate: int = 1,
    on_batch: Callable[[], None] | None = None,
) -> Iterator[EpochResult]:
    """Train a model and yield after every epoch.

    SGD with Nesterov momentum, weight decay and a one-cycle learning rate over all epochs
    (Smith and Topin, "Super-Convergence", arXiv 1708.07120); mixed precision on CUDA.

    Args:
        model: On the data's device; changed in place. After each yield it is in eval mode.
        data: Training and validation splits.
        settings: Epochs, batch size, learning rate, weight decay, momentum, augmentation.
        seed: Of batch order and augmentation.
        accumulate: Parts a batch is split into, whose gradients are added up: the same step with
            less memory, but for batch norm, which sees the parts.
        on_batch: Called before every batch; what it raises ends the training.

    Yields:
        One result per epoch.

    Raises:
        DivergedError: If a loss is NaN or infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    device = data.train.targets.device
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    # The last batch is kept unless it is one image, on which batch norm cannot train.
    batch_size = min(settings.batch_size, len(data.train))
    steps = len(data.train) // batch_size + (len(data.train) % batch_size > 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=settings.lr,
        total_steps=settings.epochs * steps + 1,
        cycle_momentum=False,
    )
    scaler = torch.amp.GradScaler(
        enabled=device.type == "cuda" and not torch.cuda.is_bf16_supported()
    )
    augment = data.augmentation(settings.augment)
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        model.train()
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        right = torch.zeros((), dtype=torch.int64, device=device)
        seen = 0
        for x, y in data.train.batches(batch_size, generator=generator, augment=augment):
            if on_batch is not None:
                on_batch()
            if len(y) < 2:
                continue
            optimizer.zero_grad(set_to_none=True)
            # No part of one image, on which batch norm cannot train.
            parts = min(accumulate, len(y) // 2)
            for images, targets in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
                with _autocast(device):
                    logits = model(images)
                    loss = F.cross_entropy(logits, targets)
                share = len(targets) / len(y)
                scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach().double() * len(targets)
                right += (logits.argmax(1) == targets).sum()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            seen += len(y)
        train_loss = float(loss_sum) / seen
        loss_value, accuracy = evaluate(model, data.validation, _EVALUATED // accumulate)
        if not (math.isfinite(train_loss) and math.isfinite(loss_value)):
            raise DivergedError(
                f"training diverged in epoch {epoch}: training loss {train_loss:.3g},"
                f" validation loss {loss_value:.3g}"
            )
        yield EpochResult(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=float(right) / seen,
            loss=loss_value,
            accuracy=accuracy,
            seconds=time.perf_counter() - started,
        )
