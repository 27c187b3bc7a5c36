"""A training loop of the user's, in the place of flatsearch's own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flatsearch.errors import UsageError
from flatsearch.training.evaluation import validate
from flatsearch.training.trainer import epoch_result

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from torch import nn

    from flatsearch.data.splits import ImageData
    from flatsearch.settings import RunSettings
    from flatsearch.training.trainer import EpochResult

    TrainFunction = Callable[
        [nn.Module, ImageData, RunSettings, int], Generator[tuple[float, float], None, None]
    ]

__all__ = ["OwnTraining"]


class OwnTraining:
    """Runs a function that trains a network and yields after every epoch.

    The function is called as `train(model, data, settings, seed)` with a fresh network on the
    device of the data. It trains on `data.train` for `settings.epochs` epochs, with whatever
    optimiser, loss and augmentation it likes, and yields after each the mean training loss and
    accuracy. Between two epochs the network is validated, measured and judged by the pruner; if
    that ends the trial, the function is closed where it stands, as any generator is.

    Args:
        train: The function.
        model: The network; changed in place.
        data: The images.
        settings: Of the candidate, with its recipe.
        seed: What everything random of this candidate is to be drawn from.
        check: Called after every epoch; what it raises ends the training.

    Attributes:
        epochs_done: How many epochs have been trained.
    """

    def __init__(
        self,
        train: TrainFunction,
        model: nn.Module,
        data: ImageData,
        settings: RunSettings,
        *,
        seed: int,
        check: Callable[[], None],
    ) -> None:
        self._model, self._data, self._settings, self._check = model, data, settings, check
        self._epochs = train(model, data, settings, seed)
        self.epochs_done = 0

    def results(self) -> Iterator[EpochResult]:
        """Train to the last epoch, and validate the model after every one.

        Yields:
            One result per epoch. After each the model is in eval mode.

        Raises:
            DivergedError: If a loss is NaN or infinite.
            UsageError: If the function ends too early, or yields something else.
        """
        try:
            while self.epochs_done < self._settings.epochs:
                started = time.perf_counter()
                self._model.train()
                trained = self._next()
                self._check()
                self.epochs_done += 1
                validated = validate(self._model, self._data.validation)
                yield epoch_result(self.epochs_done, trained, validated, started)
        finally:
            self._epochs.close()

    def _next(self) -> tuple[float, float]:
        try:
            loss, accuracy = next(self._epochs)
            return float(loss), float(accuracy)
        except StopIteration:
            raise UsageError(
                f"`train` must yield after each of {self._settings.epochs} epochs but ended after"
                f" {self.epochs_done}"
            ) from None
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"`train` must yield (training loss, training accuracy) after every epoch: {error}"
            ) from error
