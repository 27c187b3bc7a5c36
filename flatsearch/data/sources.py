"""Reading images by name, from a folder, from an .npz file or from arrays."""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flatsearch.errors import DataError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

__all__ = ["DataSource", "RawData", "data_names", "read"]

Array: TypeAlias = "np.ndarray[Any, Any] | Tensor"
DataSource: TypeAlias = "str | Path | tuple[Array, Array]"

# torchvision's class, and whether a mirrored image still is of its class.
_TORCHVISION = {
    "cifar10": ("CIFAR10", True),
    "cifar100": ("CIFAR100", True),
    "fashion_mnist": ("FashionMNIST", True),
    "kmnist": ("KMNIST", False),
    "mnist": ("MNIST", False),
    "svhn": ("SVHN", False),
}
_LARGEST_DEFAULT_SIZE = 64
# Names of image and label arrays in an .npz file, by split.
_NPZ_TRAIN = [("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels"),
              ("x", "y"), ("X", "y")]  # fmt: skip
_NPZ_TEST = [("test_images", "test_labels"), ("x_test", "y_test")]
_NPZ_VALIDATION = [("val_images", "val_labels"), ("x_val", "y_val")]


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


def data_names() -> list[str]:
    """Return the data sets known by name.

    Example:
        >>> "digits" in data_names()
        True
    """
    return sorted(["digits", *_TORCHVISION])


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
        raw = _from_arrays({"train": source}, "arrays", image_size)
        return raw, "arrays"
    reference = str(source)
    key = reference.lower().replace("-", "_").replace("fashionmnist", "fashion_mnist")
    if key == "digits":
        return _digits(image_size), "digits"
    if key in _TORCHVISION:
        return _torchvision(key, root, image_size), key
    path = Path(reference).expanduser()
    if path.is_dir():
        return _folder(path, image_size), reference
    if path.suffix == ".npz":
        return _npz(path, image_size), reference
    also = "; or a folder of class folders, or an .npz file"
    raise DataError(unknown_name("data", reference, data_names(), also=also))


def _resize(images: Tensor, image_size: int | None) -> tuple[Tensor, str]:
    """Crop to a centred square and resize; return the images and what was done."""
    height, width = images.shape[2:]
    side = min(height, width)
    target = min(side, _LARGEST_DEFAULT_SIZE) if image_size is None else image_size
    if (height, width) == (target, target):
        return images, ""
    from torchvision.transforms.v2 import functional

    images = functional.center_crop(images, [side, side])
    images = functional.resize(images, [target, target], antialias=True)
    return images, f"resized from {height}x{width}"


def _digits(image_size: int | None) -> RawData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    images, note = _resize(images, image_size)
    names = tuple(str(name) for name in bunch.target_names)
    return RawData((images, torch.from_numpy(bunch.target).long()), None, None, names, False, note)


def _torchvision(key: str, root: Path, image_size: int | None) -> RawData:
    import torchvision

    class_name, may_flip = _TORCHVISION[key]
    cls = getattr(torchvision.datasets, class_name)

    def part(train: bool) -> tuple[Tensor, Tensor, Any]:
        which: dict[str, Any] = {"train": train}
        if key == "svhn":
            which = {"split": "train" if train else "test"}
        loaded = _load_or_download(cls, key, root, which)
        images = _as_images(loaded.data, key)
        labels = _as_labels(loaded.labels if key == "svhn" else loaded.targets, key)
        count = len(getattr(loaded, "classes", np.unique(labels)))
        if len(images) != len(labels) or labels.min() < 0 or labels.max() >= count:
            raise DataError(
                f"data {key!r} under {str(root)!r} is damaged: {len(images)} images,"
                f" {len(labels)} labels from {labels.min()} to {labels.max()}, {count} classes"
            )
        return images, torch.from_numpy(labels.astype(np.int64)), loaded

    train_images, train_targets, loaded = part(train=True)
    test_images, test_targets, _ = part(train=False)
    train_images, note = _resize(train_images, image_size)
    test_images, _ = _resize(test_images, image_size)
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


def _folder(path: Path, image_size: int | None) -> RawData:
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
    default = min(side, _LARGEST_DEFAULT_SIZE)
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


def _npz(path: Path, image_size: int | None) -> RawData:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        reason = "it does not exist" if not path.exists() else f"{type(error).__name__}"
        raise DataError(f"{str(path)!r} cannot be read as an .npz file: {reason}") from None
    found: dict[str, tuple[Array, Array]] = {}
    for split, options in (
        ("train", _NPZ_TRAIN), ("validation", _NPZ_VALIDATION), ("test", _NPZ_TEST)
    ):  # fmt: skip
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
    return _from_arrays(found, repr(str(path)), image_size)


def _from_arrays(
    parts: dict[str, tuple[Array, Array]], where: str, image_size: int | None
) -> RawData:
    """Check and convert image and label arrays; labels of any type become class indices."""
    labels = {split: _as_labels(part[1], where) for split, part in parts.items()}
    classes = np.unique(labels["train"])
    read: dict[str, tuple[Tensor, Tensor]] = {}
    note = ""
    for split, (source, _) in parts.items():
        images = _as_images(source, where)
        if len(images) != len(labels[split]):
            raise DataError(f"{where}: {len(images)} images but {len(labels[split])} labels")
        unseen = np.setdiff1d(labels[split], classes)
        if len(unseen):
            raise DataError(
                f"{where}: {split} labels {unseen[:5].tolist()} are not in the training"
            )
        images, resized = _resize(images, image_size)
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


def _as_labels(source: Any, where: str) -> np.ndarray[Any, Any]:
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


def _as_images(source: Array, where: str) -> Tensor:
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
