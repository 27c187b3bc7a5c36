"""A data set as read, before it is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LARGEST_DEFAULT_SIZE", "RawData"]

LARGEST_DEFAULT_SIZE = 64


@dataclass(frozen=True)
class RawData:
    """What a source gives: images and labels by split, before anything is decided about them.

    Attributes:
        parts: (images, labels) by split: "train", and "validation" and "test" where the source has
            them. Images are an array (N, H, W), (N, H, W, C) or (N, C, H, W), or a list of what
            `flatsearch.data.images.read_image` takes. Labels are one number or text per image.
        class_names: One per class where labels are indices of them; else the classes are the
            labels of the training images.
        may_flip: A mirrored image still is of its class.
        remarks: What was left out and why, and what else the user has to know.
    """

    parts: Mapping[str, tuple[Any, Any]]
    class_names: tuple[str, ...] | None = None
    may_flip: bool = True
    remarks: tuple[str, ...] = ()
