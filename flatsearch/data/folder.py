"""Data sets from a folder of images."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatsearch.data.raw import LARGEST_DEFAULT_SIZE, RawData
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

__all__ = ["read_image"]


def read_folder(path: Path, image_size: int | None) -> RawData:
    """Read FOLDER/CLASS/*.png, or FOLDER/{train,val,test}/CLASS/*.png."""
    names = {
        "train": ("train", "training"),
        "validation": ("val", "valid", "validation"),
        "test": ("test",),
    }
    parts = {
        split: next((path / n for n in options if (path / n).is_dir()), None)
        for split, options in names.items()
    }
    if parts["train"] is None:
        known = {name for options in names.values() for name in options}
        inside = {entry.name for entry in path.iterdir() if entry.is_dir()}
        if inside and inside <= known:
            raise DataError(f"folder {str(path)!r} has {', '.join(sorted(inside))} but no train")
        parts = {"train": path, "validation": None, "test": None}
    folders = {split: folder for split, folder in parts.items() if folder is not None}
    listed = {split: _list_images(folder) for split, folder in folders.items()}
    class_names = listed["train"][0]
    for split, (classes, _) in listed.items():
        if classes != class_names:
            raise DataError(
                f"{str(folders[split])!r} has classes {', '.join(classes)}"
                f" but the training folder has {', '.join(class_names)}"
            )
    gray, size, note = _survey([file for file, _ in listed["train"][1]], image_size)
    read = {
        split: (
            torch.stack([read_image(file, gray, size) for file, _ in samples]),
            torch.tensor([target for _, target in samples]),
        )
        for split, (_, samples) in listed.items()
    }
    return RawData(read["train"], read.get("validation"), read.get("test"), class_names, True, note)


def _list_images(folder: Path) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    from torchvision.datasets import ImageFolder

    class VisibleFolder(ImageFolder):  # type: ignore[misc]
        """Leaves out hidden folders, such as those of editors and notebooks."""

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            """Return the class folders' names, and their indices."""
            entries = Path(directory).iterdir()
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
            if not names:
                raise FileNotFoundError("there are no folders in it")
            return names, {name: index for index, name in enumerate(names)}

    try:
        found = VisibleFolder(str(folder))
    except FileNotFoundError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"folder {str(folder)!r} must hold one folder of PNG or JPEG images per class: {reason}"
        ) from None
    return tuple(found.classes), found.samples


def _survey(files: list[str], image_size: int | None) -> tuple[bool, int, str]:
    """Return whether all images are gray, the size to use, and a note on resizing."""
    sizes, gray = set(), True
    for file in files:
        with _opened(file) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"image {file!r} has more than 8 bits per channel (mode {image.mode});"
                    " convert the images, or give them as an .npz file"
                )
            sizes.add(image.size)
            gray = gray and image.mode in {"L", "1"}
    side = statistics.median_low(min(size) for size in sizes)
    default = min(side, LARGEST_DEFAULT_SIZE)
    target = default if image_size is None else image_size
    if sizes == {(target, target)}:
        return gray, target, ""
    width, height = next(iter(sizes))
    given = f"{height}x{width}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    return gray, target, f"resized from {given}"


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Image.Image]:
    """Open an image; one that cannot be read, now or later, is named."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError) as error:
        raise DataError(f"image {file!r} cannot be read: {error}") from None


def read_image(file: str, gray: bool, size: int) -> Tensor:
    """Return one image file's pixels (C, size, size), uint8: resized, its middle square.

    Args:
        file: Anything Pillow reads.
        gray: One channel instead of three.
        size: Height and width.

    Returns:
        The pixels.

    Raises:
        DataError: If the file cannot be read.
    """
    from torchvision.transforms.v2 import functional

    with _opened(file) as image:
        loaded = image.convert("L" if gray else "RGB")
    if loaded.size != (size, size):
        loaded = functional.resize(loaded, [size], antialias=True)
        loaded = functional.center_crop(loaded, [size, size])
    return functional.pil_to_tensor(loaded)
