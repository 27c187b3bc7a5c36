"""Images and labels as arrays."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatsearch.data.images import resized
from flatsearch.data.values import is_missing, plain
from flatsearch.errors import DataError

__all__ = ["ArrayImages", "as_images", "as_labels", "is_array"]


def is_array(images: Any) -> bool:
    """Return whether images are one array of numbers, rather than a list of images."""
    return isinstance(images, Tensor) or (
        isinstance(images, np.ndarray) and (images.ndim > 1 or images.dtype.kind in "buif")
    )


def as_labels(source: Any, where: str) -> np.ndarray[Any, Any]:
    """Return one label per image, (N,), of whatever type can be told apart and sorted."""
    labels = np.asarray(plain(source, f"{where}: labels"))
    if isinstance(source, (list, tuple)) and labels.dtype.kind in "SU" and labels.ndim == 1:
        labels = np.array(source, dtype=object)  # before NumPy made texts of None and NaN
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "OSU" and labels.ndim == 1:
        missing = sum(map(is_missing, labels))
        if missing:
            raise DataError(f"{where}: {missing} of {len(labels)} labels are missing")
        if all(isinstance(label, str) for label in labels):
            labels = labels.astype(str)
        elif all(isinstance(label, bytes) for label in labels):
            labels = np.asarray([label.decode(errors="backslashreplace") for label in labels])
        elif all(isinstance(label, (int, float, np.number)) for label in labels):
            labels = np.asarray(labels.tolist())
    if labels.ndim != 1 or labels.dtype.kind not in "biufU":
        hint = "; of one-hot rows give labels.argmax(1)" if labels.ndim == 2 else ""
        kinds = {type(label).__name__ for label in labels} if labels.ndim == 1 else ()
        raise DataError(
            f"{where}: labels must be one number or string per image but have shape"
            f" {labels.shape}, type {' and '.join(sorted(kinds)) or labels.dtype}{hint}"
        )
    return _whole(labels, where) if labels.dtype.kind == "f" else labels


def _whole(labels: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
    """Return whole numbers as integers; fractions are values and no classes."""
    missing = int((~np.isfinite(labels)).sum())
    if missing:
        raise DataError(f"{where}: {missing} of {len(labels)} labels are missing or infinite")
    fractions = labels[labels != np.round(labels)]
    if len(fractions):
        raise DataError(
            f"{where}: labels must be classes but {len(fractions)} of {len(labels)} are fractions"
            f" ({fractions[0]:g}, ...); of classes that are called so give texts"
        )
    return labels.astype(np.int64)


def as_images(source: Any, where: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return images (N, C, H, W) in uint8 or float32; messages name the shape of all, if given."""
    source = plain(source, f"{where}: images")
    if isinstance(source, Tensor):
        images = source
    else:
        array = np.asarray(source)
        if array.dtype.kind not in "buif":
            raise DataError(f"{where}: images must be numbers but are {array.dtype}")
        # torch takes neither negative strides nor another machine's byte order.
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        if not array.flags.writeable:  # of a file that is mapped into memory, say
            array = array.copy()
        if array.dtype.kind == "u" and array.dtype != np.uint8:
            array = array.astype(np.int64)  # torch has little arithmetic for wider unsigned types
        images = torch.as_tensor(array)
    shape = tuple(shape or images.shape)
    if images.ndim not in {3, 4} or math.prod(images.shape) == 0:
        raise DataError(
            f"{where}: images must have shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
            f" but have {shape}"
        )
    if images.ndim == 3:
        images = images[:, None]
    elif _channels_last(*images.shape[1:]):
        images = images.permute(0, 3, 1, 2)
    elif images.shape[1] not in {1, 2, 3, 4} and images.shape[2] != images.shape[3]:
        raise DataError(
            f"{where}: which of {shape} are the channels cannot be told; images of more than 4"
            " channels must be squares"
        )
    if images.dtype == torch.bool:  # black and white, as in a file of one bit a pixel
        images = images.to(torch.uint8) * 255
    if images.dtype != torch.uint8:
        images = images.float()  # in which numbers of float64 may be infinite
        if not bool(images.isfinite().all()):
            raise DataError(f"{where}: images have NaN or infinite pixels")
    return images.contiguous()


def _channels_last(first: int, second: int, third: int) -> bool:
    """Return whether the sizes of an image are (H, W, C) rather than (C, H, W)."""
    if third in {1, 3}:
        return first not in {1, 3}
    return first == second != third and first not in {1, 2, 3, 4}


class ArrayImages:
    """Images of one array, brought into the one form when they are asked for.

    `images[slice]` reads those at a slice, (n, C, size, size).

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W).
        where: What messages call the data.
    """

    def __init__(self, array: Any, where: str) -> None:
        self._array, self._where = array, where
        self._rows: np.ndarray[Any, Any] | None = None
        one = array[:1] if array.ndim in {3, 4} and math.prod(array.shape) else array
        first = as_images(one, where, tuple(array.shape))
        self.dtype = first.dtype
        self.stored_size = tuple(first.shape[2:])
        self._channels, self._size = first.shape[1], min(self.stored_size)

    def __len__(self) -> int:
        return len(self._array if self._rows is None else self._rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of all images together."""
        return (len(self), self._channels, self._size, self._size)

    def sized(self, size: int) -> ArrayImages:
        """Return the images, as yet unread, resized to a height and width."""
        changed = copy.copy(self)
        changed._size = size
        return changed

    def take(self, index: np.ndarray[Any, Any]) -> ArrayImages:
        """Return the images at indices, as yet unread."""
        changed = copy.copy(self)
        changed._rows = index if self._rows is None else self._rows[index]
        return changed

    def __getitem__(self, index: slice) -> Tensor:
        rows = index if self._rows is None else self._rows[index]
        return resized(as_images(self._array[rows], self._where), self._size)
