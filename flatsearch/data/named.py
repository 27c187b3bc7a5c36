"""Data sets by name: scikit-learn's digits and torchvision's classification sets."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flatsearch.data.arrays import as_labels
from flatsearch.data.datasets import read_map_style
from flatsearch.data.raw import RawData
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TORCHVISION", "data_names", "read_digits", "read_torchvision"]

_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_WITH_VAL = {**_TRAIN_TEST, "validation": {"split": "val"}}
_OLD = {"train": {"train": True}, "test": {"train": False}}
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}


@dataclass(frozen=True)
class _Set:
    """A data set of torchvision.

    Attributes:
        cls: Its class.
        splits: What the class is given for each split.
        may_flip: A mirrored image still is of its class.
        transposed: Its images lie on their sides.
        also: What the class is given for every split.
    """

    cls: str
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _OLD)
    may_flip: bool = True
    transposed: bool = False
    also: Mapping[str, Any] = field(default_factory=dict)


TORCHVISION = {
    "caltech101": _Set("Caltech101", _WHOLE),
    "caltech256": _Set("Caltech256", _WHOLE),
    "cifar10": _Set("CIFAR10"),
    "cifar100": _Set("CIFAR100"),
    "country211": _Set("Country211", {**_TRAIN_TEST, "validation": {"split": "valid"}}),
    "dtd": _Set("DTD", _WITH_VAL),
    "emnist": _Set("EMNIST", may_flip=False, transposed=True, also={"split": "balanced"}),
    "eurosat": _Set("EuroSAT", _WHOLE),
    "fashion_mnist": _Set("FashionMNIST"),
    "fgvc_aircraft": _Set("FGVCAircraft", _WITH_VAL),
    "flowers102": _Set("Flowers102", _WITH_VAL),
    "food101": _Set("Food101", _TRAIN_TEST),
    "gtsrb": _Set("GTSRB", _TRAIN_TEST, may_flip=False),
    "imagenette": _Set(
        "Imagenette",
        {"train": {"split": "train"}, "test": {"split": "val"}},
        also={"size": "160px"},
    ),
    "kmnist": _Set("KMNIST", may_flip=False),
    "mnist": _Set("MNIST", may_flip=False),
    "oxford_iiit_pet": _Set(
        "OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}
    ),
    "rendered_sst2": _Set("RenderedSST2", _WITH_VAL, may_flip=False),
    "semeion": _Set("SEMEION", _WHOLE, may_flip=False),
    "stl10": _Set("STL10", _TRAIN_TEST),
    "svhn": _Set("SVHN", _TRAIN_TEST, may_flip=False),
    "usps": _Set("USPS", may_flip=False),
}


def data_names() -> list[str]:
    """Return the data sets known by name.

    Example:
        >>> "digits" in data_names()
        True
    """
    return sorted(["digits", *TORCHVISION])


def read_digits() -> RawData:
    """Return scikit-learn's handwritten digits, 0 to 16 stretched to 0 to 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in bunch.target_names)
    return RawData({"train": (images, bunch.target)}, names, may_flip=False)


def read_torchvision(key: str, root: Path) -> RawData:
    """Read a set of torchvision; it is downloaded where it is not under the root."""
    import torchvision

    known = TORCHVISION[key]
    cls = getattr(torchvision.datasets, known.cls)
    parts, loaded = {}, None
    for split, which in known.splits.items():
        loaded = _load_or_download(cls, key, root, {**known.also, **which})
        images = getattr(loaded, "data", None)
        if isinstance(images, list) or images is None:  # of files
            parts[split] = read_map_style(loaded).parts["train"]
            continue
        listed = getattr(loaded, "targets", None)
        labels = as_labels(loaded.labels if listed is None else listed, key)
        if len(images) != len(labels):
            raise DataError(
                f"data {key!r} under {str(root)!r} is damaged: {len(images)} images,"
                f" {len(labels)} labels"
            )
        parts[split] = (images.transpose(1, 2) if known.transposed else images, labels)
    names = getattr(loaded, "classes", None) or getattr(loaded, "categories", None)
    if names is None:
        names = range(int(max(parts["train"][1])) + 1)
    return RawData(
        parts,
        tuple(name[0] if isinstance(name, tuple) else str(name) for name in names),
        known.may_flip,
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
    except FileNotFoundError:
        pass
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
