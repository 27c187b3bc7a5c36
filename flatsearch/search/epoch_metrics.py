"""What is measured of a network after an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness import relative_flatness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from flatsearch.flatness import FlatnessResult
    from flatsearch.training.trainer import EpochResult

__all__ = ["measure_all", "metrics_of"]

# All convolutions together take a backward pass per class; this many images times classes are about
# a thousand images of training.
_IMAGES_BY_CLASSES = 1280
_LEAST_IMAGES = 16


def metrics_of(epoch: EpochResult, flatness: FlatnessResult) -> dict[str, float]:
    """Return an epoch's metrics by the names under which they are recorded.

    Args:
        epoch: The result of training and validation.
        flatness: The flatness of one convolution after it.

    Returns:
        The metrics.
    """
    return {
        "accuracy": epoch.accuracy,
        "flatness": flatness.relative_flatness,
        "flatness_standard_error": flatness.standard_error,
        "hessian_trace": flatness.hessian_trace,
        "noise_loss": flatness.noise_loss(),
        "loss": epoch.loss,
        "probe_loss": flatness.loss,
        "train_loss": epoch.train_loss,
        "train_accuracy": epoch.train_accuracy,
    }


def measure_all(
    model: nn.Module, probe: tuple[Tensor, Tensor], num_classes: int, *, needed: bool = False
) -> tuple[dict[str, float], Mapping[str, float]]:
    """Measure all convolutions together.

    Args:
        model: The network.
        probe: Images and targets; the first of them are taken, fewer with more classes.
        num_classes: The number of classes.
        needed: Whether one of the metrics is an objective.

    Returns:
        The metrics, and the relative flatness of every convolution by name; both are empty if one
        of the convolutions is not covered. (The last one is, or the trial would have failed.)

    Raises:
        UnsupportedModelError: If one of the convolutions is not covered, but the metrics are
            needed.
    """
    few = max(_LEAST_IMAGES, _IMAGES_BY_CLASSES // num_classes)
    try:
        every = relative_flatness(model, (probe[0][:few], probe[1][:few]), layers="all")
    except UnsupportedModelError:
        if needed:
            raise
        return {}, {}
    metrics = {
        "flatness_all": every.relative_flatness,
        "hessian_trace_all": every.hessian_trace,
        "noise_loss_all": every.noise_loss(),
    }
    return metrics, {name: layer.relative_flatness for name, layer in every.layers.items()}
