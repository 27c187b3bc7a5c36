"""Which of several finished networks is taken: the one place where that is decided.

By their mean loss on validation images that none of them was trained on, the lowest first. Whether
flatness ranks finished networks better is an open question; relative flatness and `noise_loss` are
shown beside the loss, and decide nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsearch.errors import NonFiniteError, UnsupportedModelError
from flatsearch.flatness import relative_flatness
from flatsearch.training.evaluation import EVALUATION_BATCH, per_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from flatsearch.data.splits import ImageData
    from flatsearch.flatness import FlatnessResult

__all__ = ["CRITERION", "Finished", "look_at", "rank"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

CRITERION = "the lowest validation loss"


@dataclass(frozen=True)
class Finished:
    """What a finished network may be judged by: nothing of the test split.

    Attributes:
        losses: Its loss on every validation image, (N,).
        hits: Whether it is right there, (N,).
        flatness: The flatness of one convolution on the probe, as in the search; None if that is
            not covered.
    """

    losses: _Array
    hits: _Array
    flatness: FlatnessResult | None

    def score(self) -> float:
        """Return what networks are ranked by, smaller is better: `CRITERION`."""
        return float(self.losses.mean())


def rank(networks: Sequence[Finished]) -> list[int]:
    """Return the indices of networks, the best first; of equal ones in their order."""
    return sorted(range(len(networks)), key=lambda i: networks[i].score())


def look_at(model: nn.Module, data: ImageData, layer: str) -> Finished:
    """Return what a finished network may be judged by; the test split is not read."""
    found = per_image(model, data.validation.batches(EVALUATION_BATCH))
    assert found is not None  # noqa: S101 - a validation split has images
    losses, hits = (numbers.cpu().numpy() for numbers in found)
    flatness = None
    with contextlib.suppress(NonFiniteError, UnsupportedModelError):
        flatness = relative_flatness(model, data.probe.tensors(), layer)
    return Finished(losses, hits, flatness)
