"""Data sets from an .npz file."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np

from flatsearch.data.arrays import from_arrays
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.data.raw import Array, RawData

# Names of image and label arrays in an .npz file, by split.
_NPZ_TRAIN = [
    ("train_images", "train_labels"),
    ("x_train", "y_train"),
    ("images", "labels"),
    ("x", "y"),
    ("X", "y"),
]
_NPZ_TEST = [("test_images", "test_labels"), ("x_test", "y_test")]
_NPZ_VALIDATION = [("val_images", "val_labels"), ("x_val", "y_val")]


def read_npz(path: Path, image_size: int | None) -> RawData:
    """Read a data set from an .npz file, by the usual names of its arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = "it does not exist" if not path.exists() else f"{type(error).__name__}"
        raise DataError(f"{str(path)!r} cannot be read as an .npz file: {reason}") from None
    found: dict[str, tuple[Array, Array]] = {}
    for split, options in (
        ("train", _NPZ_TRAIN),
        ("validation", _NPZ_VALIDATION),
        ("test", _NPZ_TEST),
    ):
        for images, labels in options:
            if images in arrays and labels in arrays:
                found[split] = (arrays[images], arrays[labels])
                break
    if "train" not in found:
        accepted = ", ".join(f"{images}/{labels}" for images, labels in _NPZ_TRAIN)
        raise DataError(
            f"{str(path)!r} must hold arrays named {accepted};"
            f" it holds {', '.join(arrays) or 'none'}"
        )
    return from_arrays(found, repr(str(path)), image_size)
