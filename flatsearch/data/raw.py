"""A data set as read, before it is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["RawData"]

Array: TypeAlias = "np.ndarray[Any, Any] | Tensor"
LARGEST_DEFAULT_SIZE = 64


@dataclass(frozen=True)
class RawData:
    """A data set as read.

    Attributes:
        train: Images (N, C, H, W) and targets (N,).
        validation: The source's own validation split, if any.
        test: The source's own test split, if any.
        class_names: One per class.
        may_flip: A mirrored image still is of its class.
        note: What was done to the images.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor] | None
    class_names: tuple[str, ...]
    may_flip: bool
    note: str = ""


def resize(images: Tensor, image_size: int | None) -> tuple[Tensor, str]:
    """Crop to a centred square and resize; return the images and what was done."""
    height, width = images.shape[2:]
    side = min(height, width)
    target = min(side, LARGEST_DEFAULT_SIZE) if image_size is None else image_size
    if (height, width) == (target, target):
        return images, ""
    from torchvision.transforms.v2 import functional

    images = functional.center_crop(images, [side, side])
    images = functional.resize(images, [target, target], antialias=True)
    return images, f"resized from {height}x{width}"
