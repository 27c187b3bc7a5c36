"""Reading images by name, from a folder, from an .npz file or from arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from flatsearch.data.arrays import from_arrays
from flatsearch.data.folder import read_folder
from flatsearch.data.named import TORCHVISION, data_names, read_digits, read_torchvision
from flatsearch.data.npz import read_npz
from flatsearch.errors import DataError, unknown_name

if TYPE_CHECKING:
    from flatsearch.data.raw import Array, RawData

__all__ = ["DataSource", "read"]

DataSource: TypeAlias = "str | Path | tuple[Array, Array]"


def read(source: DataSource, image_size: int | None, root: Path) -> tuple[RawData, str]:
    """Read a data set.

    Args:
        source: See `flatsearch.data.load_data`.
        image_size: Height and width to resize to; None for the images' own, at most 64.
        root: Where torchvision's files are, or go.

    Returns:
        The images as read, and the data set's name.

    Raises:
        DataError: If the source is unknown, missing, empty or malformed.
    """
    if isinstance(source, (tuple, list)):
        if len(source) != 2:
            raise DataError(f"arrays must be a pair (images, labels) but are {len(source)} items")
        source = (source[0], source[1])
        raw = from_arrays({"train": source}, "arrays", image_size)
        return raw, "arrays"
    reference = str(source)
    key = reference.lower().replace("-", "_").replace("fashionmnist", "fashion_mnist")
    if key == "digits":
        return read_digits(image_size), "digits"
    if key in TORCHVISION:
        return read_torchvision(key, root, image_size), key
    path = Path(reference).expanduser()
    if path.is_dir():
        return read_folder(path, image_size), reference
    if path.suffix == ".npz":
        return read_npz(path, image_size), reference
    also = "; or a folder of class folders, or an .npz file"
    raise DataError(unknown_name("data", reference, data_names(), also=also))
