"""Data sets by name: scikit-learn's digits and torchvision's."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatsearch.data.arrays import as_images, as_labels
from flatsearch.data.raw import RawData, resize
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["data_names"]

# torchvision's class, and whether a mirrored image still is of its class.
TORCHVISION = {
    "cifar10": ("CIFAR10", True),
    "cifar100": ("CIFAR100", True),
    "fashion_mnist": ("FashionMNIST", True),
    "kmnist": ("KMNIST", False),
    "mnist": ("MNIST", False),
    "svhn": ("SVHN", False),
}


def data_names() -> list[str]:
    """Return the data sets known by name.

    Example:
        >>> "digits" in data_names()
        True
    """
    return sorted(["digits", *TORCHVISION])


def read_digits(image_size: int | None) -> RawData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    images, note = resize(images, image_size)
    names = tuple(str(name) for name in bunch.target_names)
    return RawData((images, torch.from_numpy(bunch.target).long()), None, None, names, False, note)


def read_torchvision(key: str, root: Path, image_size: int | None) -> RawData:
    import torchvision

    class_name, may_flip = TORCHVISION[key]
    cls = getattr(torchvision.datasets, class_name)

    def part(train: bool) -> tuple[Tensor, Tensor, Any]:
        which: dict[str, Any] = {"train": train}
        if key == "svhn":
            which = {"split": "train" if train else "test"}
        loaded = _load_or_download(cls, key, root, which)
        images = as_images(loaded.data, key)
        labels = as_labels(loaded.labels if key == "svhn" else loaded.targets, key)
        count = len(getattr(loaded, "classes", np.unique(labels)))
        if len(images) != len(labels) or labels.min() < 0 or labels.max() >= count:
            raise DataError(
                f"data {key!r} under {str(root)!r} is damaged: {len(images)} images,"
                f" {len(labels)} labels from {labels.min()} to {labels.max()}, {count} classes"
            )
        return images, torch.from_numpy(labels.astype(np.int64)), loaded

    train_images, train_targets, loaded = part(train=True)
    test_images, test_targets, _ = part(train=False)
    train_images, note = resize(train_images, image_size)
    test_images, _ = resize(test_images, image_size)
    names = getattr(loaded, "classes", [str(i) for i in range(int(train_targets.max()) + 1)])
    return RawData(
        (train_images, train_targets),
        None,
        (test_images, test_targets),
        tuple(str(name) for name in names),
        may_flip,
        note,
    )


def _load_or_download(cls: Any, key: str, root: Path, which: dict[str, Any]) -> Any:
    # Standard output belongs to the caller's results; torchvision reports downloads there.
    with contextlib.redirect_stdout(sys.stderr):
        return _loaded(cls, key, root, which)


def _loaded(cls: Any, key: str, root: Path, which: dict[str, Any]) -> Any:
    try:
        return cls(root, download=False, **which)
    except RuntimeError as error:
        if "not found" not in str(error).lower():
            raise DataError(f"data {key!r} under {str(root)!r} is damaged: {error}") from None
    except (ValueError, AssertionError, EOFError, OSError) as error:
        reason = f"{type(error).__name__} {error}"
        raise DataError(f"data {key!r} under {str(root)!r} is damaged: {reason}") from None
    try:
        return cls(root, download=True, **which)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"data {key!r} is not under {str(root)!r} and could not be downloaded:"
            f" {' '.join(str(error).split())}"
        ) from None
