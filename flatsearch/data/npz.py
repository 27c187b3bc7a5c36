"""Data sets from NumPy's files: an .npz file, a folder of .npy files, or two of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flatsearch.data.raw import RawData
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["has_npy", "npy_pair", "read_npy_folder", "read_npy_pair", "read_npz"]

# Names of image and label arrays by split, as MedMNIST, Keras and others have them.
_NAMES = {
    "train": [
        ("train_images", "train_labels"),
        ("x_train", "y_train"),
        ("images", "labels"),
        ("x", "y"),
    ],
    "test": [("test_images", "test_labels"), ("x_test", "y_test")],
    "validation": [("val_images", "val_labels"), ("x_val", "y_val"), ("x_valid", "y_valid")],
}
_PAIR = re.compile(r"(?P<images>.+\.npy),(?P<labels>.+\.npy)", re.IGNORECASE)


def read_npz(path: Path) -> RawData:
    """Read a data set from an .npz file, by the usual names of its arrays."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # a damaged archive can fail in any way
        raise _unreadable(path, ".npz", error) from None
    return _by_names(arrays, path)


def has_npy(path: Path) -> bool:
    """Return whether a folder holds .npy files of the usual names."""
    usual = {images for options in _NAMES.values() for images, _ in options}
    return path.is_dir() and any(file.stem.lower() in usual for file in path.glob("*.npy"))


def read_npy_folder(path: Path) -> RawData:
    """Read a data set from a folder of .npy files, by the usual names."""
    return _by_names({file.stem: _load(file) for file in sorted(path.glob("*.npy"))}, path)


def npy_pair(reference: str) -> bool:
    """Return whether a reference is IMAGES.npy,LABELS.npy."""
    return _PAIR.fullmatch(reference) is not None


def read_npy_pair(reference: str) -> RawData:
    """Read a data set from IMAGES.npy,LABELS.npy."""
    found = _PAIR.fullmatch(reference)
    assert found is not None  # noqa: S101 - that is how it was recognised
    files = [Path(found[part].strip()).expanduser() for part in ("images", "labels")]
    return RawData({"train": (_load(files[0]), _load(files[1]))})


def _load(file: Path) -> Any:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise _unreadable(file, ".npy", error) from None


def _unreadable(path: Path, kind: str, error: Exception) -> DataError:
    reason = "it does not exist" if not path.exists() else f"{type(error).__name__}"
    if "allow_pickle" in str(error):
        reason = "it holds Python objects, which may run code; save arrays of numbers or texts"
    return DataError(f"{str(path)!r} cannot be read as an {kind} file: {reason}")


def _by_names(arrays: Mapping[str, Any], path: Path) -> RawData:
    lower = {name.lower(): array for name, array in arrays.items()}
    parts = {
        split: (lower[images], lower[labels])
        for split, options in _NAMES.items()
        for images, labels in reversed(options)
        if images in lower and labels in lower
    }
    if "train" not in parts:
        accepted = ", ".join(f"{images}/{labels}" for images, labels in _NAMES["train"])
        raise DataError(
            f"{str(path)!r} must hold arrays named {accepted};"
            f" it holds {', '.join(arrays) or 'none'}"
        )
    read = {id(array) for part in parts.values() for array in part}
    unused = [name for name, array in arrays.items() if id(array) not in read]
    return RawData(parts, remarks=(f"left out: arrays {', '.join(unused)}",) if unused else ())
