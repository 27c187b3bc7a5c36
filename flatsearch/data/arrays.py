"""Data sets from arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatsearch.data.raw import Array, RawData, resize
from flatsearch.errors import DataError


def from_arrays(
    parts: dict[str, tuple[Array, Array]], where: str, image_size: int | None
) -> RawData:
    """Check and convert image and label arrays; labels of any type become class indices."""
    labels = {split: as_labels(part[1], where) for split, part in parts.items()}
    classes = np.unique(labels["train"])
    read: dict[str, tuple[Tensor, Tensor]] = {}
    note = ""
    for split, (source, _) in parts.items():
        images = as_images(source, where)
        if len(images) != len(labels[split]):
            raise DataError(f"{where}: {len(images)} images but {len(labels[split])} labels")
        unseen = np.setdiff1d(labels[split], classes)
        if len(unseen):
            raise DataError(
                f"{where}: {split} labels {unseen[:5].tolist()} are not in the training"
            )
        images, resized = resize(images, image_size)
        note = resized if split == "train" else note
        read[split] = (images, torch.from_numpy(np.searchsorted(classes, labels[split])).long())
    return RawData(
        read["train"],
        read.get("validation"),
        read.get("test"),
        tuple(str(name) for name in classes),
        True,
        note,
    )


def as_labels(source: Any, where: str) -> np.ndarray[Any, Any]:
    """Return one label per image, (N,), of whatever type can be told apart and sorted."""
    labels = np.asarray(source.detach().cpu() if isinstance(source, Tensor) else source)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "biufSU":
        raise DataError(
            f"{where}: labels must be one number or string per image"
            f" but have shape {labels.shape}, type {labels.dtype}"
        )
    return labels


def as_images(source: Array, where: str) -> Tensor:
    """Return images (N, C, H, W) in uint8 or float32."""
    if isinstance(source, Tensor):
        images = source.detach().cpu()
    else:
        array = np.asarray(source)
        if array.dtype.kind not in "uif":
            raise DataError(f"{where}: images must be numbers but are {array.dtype}")
        # torch takes neither negative strides nor another machine's byte order.
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        if array.dtype.kind == "u" and array.dtype != np.uint8:
            array = array.astype(np.int64)  # torch has little arithmetic for wider unsigned types
        images = torch.as_tensor(array)
    if images.ndim not in {3, 4} or math.prod(images.shape) == 0:
        raise DataError(
            f"{where}: images must have shape (N, H, W), (N, H, W, C) or (N, C, H, W)"
            f" but have {tuple(images.shape)}"
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in {1, 3} and images.shape[1] not in {1, 3}:
        images = images.permute(0, 3, 1, 2)
    if images.shape[1] not in {1, 2, 3, 4}:
        raise DataError(f"{where}: images must have 1 to 4 channels but have {tuple(images.shape)}")
    if images.is_floating_point():
        if not bool(images.isfinite().all()):
            raise DataError(f"{where}: images have NaN or infinite pixels")
        return images.float().contiguous()
    if images.dtype != torch.uint8:
        images = images.float()
    return images.contiguous()
