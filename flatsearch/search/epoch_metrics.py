"""What is measured of a network after an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness import FlatnessMeter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatsearch.flatness import FlatnessResult
    from flatsearch.search.measuring import Schedule
    from flatsearch.settings import RunSettings
    from flatsearch.training.trainer import EpochResult

__all__ = ["Measuring", "metrics_of", "metrics_of_all"]


def metrics_of(epoch: EpochResult, flatness: FlatnessResult, accuracy: str) -> dict[str, float]:
    """Return an epoch's metrics by the names under which they are recorded.

    Args:
        epoch: The result of training and validation.
        flatness: The flatness of one convolution after it.
        accuracy: The accuracy that counts; the plain one is recorded, too.

    Returns:
        The metrics.
    """
    return {
        "accuracy": epoch.accuracy,
        accuracy: getattr(epoch, accuracy),
        "flatness": flatness.relative_flatness,
        "flatness_standard_error": flatness.standard_error,
        "hessian_trace": flatness.hessian_trace,
        "noise_loss": flatness.noise_loss(),
        "loss": epoch.loss,
        "probe_loss": flatness.loss,
        "train_loss": epoch.train_loss,
        "train_accuracy": epoch.train_accuracy,
    }


def metrics_of_all(every: FlatnessResult) -> dict[str, float]:
    """Return the metrics of all convolutions together."""
    return {
        "flatness_all": every.relative_flatness,
        "hessian_trace_all": every.hessian_trace,
        "noise_loss_all": every.noise_loss(),
    }


class Measuring:
    """Measures one candidate while it is trained.

    Args:
        model: The network.
        probe: Images and targets; the first of them are taken.
        settings: The settings of the run.
        schedule: On how many images, and after which epochs.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: tuple[Tensor, Tensor],
        settings: RunSettings,
        schedule: Schedule,
    ) -> None:
        self._probe, self._schedule, self._settings = probe, schedule, settings
        self._one = FlatnessMeter(model, settings.layer)
        self._all = FlatnessMeter(model, "all")

    def one(self) -> FlatnessResult:
        """Return the flatness of one convolution."""
        return self._one(self._first(self._schedule.images))

    def every(self, epoch: int) -> FlatnessResult | None:
        """Return that of all convolutions; None if it is not its turn, or one is not covered.

        Raises:
            UnsupportedModelError: If one of them is not covered, but an objective is of all.
        """
        if epoch not in self._schedule.epochs_of_all:
            return None
        try:
            return self._all(self._first(self._schedule.images_of_all))
        except UnsupportedModelError:
            # The last one is covered, or the trial would have failed.
            if self._settings.needs_all:
                raise
            return None

    def _first(self, count: int) -> tuple[Tensor, Tensor]:
        return self._probe[0][:count], self._probe[1][:count]
