"""What a source gives in one form: targets, and images of one size, type and number of channels."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flatsearch.data.arrays import ArrayImages, as_labels, is_array
from flatsearch.data.images import Form, ImageItems, headers
from flatsearch.data.raw import LARGEST_DEFAULT_SIZE
from flatsearch.data.tables import is_frame
from flatsearch.data.values import plain
from flatsearch.errors import IMAGE_SIZE, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsearch.data.images import Header
    from flatsearch.data.raw import RawData

__all__ = ["Images", "Prepared", "prepare"]

# An image that is longer than this many times its width is hardly shown by its middle.
_OBLONG = 3
SPLITS = ("train", "validation", "test")
# Images that are read when they are asked for.
Images: TypeAlias = ArrayImages | ImageItems


@dataclass(frozen=True)
class Prepared:
    """A data set in one form.

    Attributes:
        parts: Images (N, C, H, W) and targets (N,) by split.
        class_names: One per class.
        pixels: See `Form`.
        note: What was done to the images; may be empty.
    """

    parts: dict[str, tuple[Images, Tensor]]
    class_names: tuple[str, ...]
    pixels: str
    note: str


def prepare(raw: RawData, image_size: int | None, where: str) -> Prepared:
    """Bring what a source gives into one form; that of the training images decides.

    Args:
        raw: What the source gives.
        image_size: Height and width; None for the median of the images, at most 64.
        where: What messages call the data.

    Returns:
        The data set.

    Raises:
        DataError: If it cannot be.
    """
    if "train" not in raw.parts:
        there = f"{', '.join(raw.parts)} but no train" if raw.parts else "no images with labels"
        raise DataError(f"{where} has {there}")
    targets, names = _targets(raw, where)
    sources = {
        split: _countable(raw.parts[split][0], where) for split in SPLITS if split in raw.parts
    }
    for split, source in sources.items():
        if len(source) != len(targets[split]):
            raise DataError(f"{where}: {len(source)} images but {len(targets[split])} labels")
    images: Mapping[str, Images]
    if all(is_array(source) for source in sources.values()):
        images, pixels, note = _of_arrays(sources, image_size, where)
    else:
        images, pixels, note = _of_items(sources, image_size, where, targets["train"], names)
    parts = {split: (images[split], targets[split]) for split in images}
    return Prepared(parts, names, pixels, note)


def _countable(images: Any, where: str) -> Any:
    """Return images that have a length, if they do; of a pandas table its only column."""
    if is_frame(images):
        if images.shape[1] != 1:
            raise DataError(
                f"{where}: images are a table of {images.shape}; of a pixel a column give"
                " `table.to_numpy().reshape(-1, height, width)`"
            )
        return list(images.iloc[:, 0])
    images = plain(images, f"{where}: images")
    if not hasattr(images, "__len__") or getattr(images, "ndim", 1) == 0:
        raise DataError(f"{where}: images must be an array or a list, not {type(images).__name__}")
    return images


def _targets(raw: RawData, where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    labels = {split: as_labels(part[1], where) for split, part in raw.parts.items()}
    train, names = labels["train"], raw.class_names
    if names is not None:
        for split, found in labels.items():
            if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= len(names):
                raise DataError(
                    f"{where}: {split} labels must be from 0 to {len(names) - 1}, for"
                    f" {len(names)} classes, but go from {found.min()} to {found.max()}"
                )
        return {s: torch.from_numpy(found.astype(np.int64)) for s, found in labels.items()}, names
    classes = np.unique(train)
    for split, found in labels.items():
        unseen = np.setdiff1d(found, classes)
        if len(unseen):
            raise DataError(
                f"{where}: {split} labels {unseen[:5].tolist()} are not in the training"
            )
    targets = {s: torch.from_numpy(np.searchsorted(classes, n)).long() for s, n in labels.items()}
    return targets, tuple(str(name) for name in classes)


def _of_arrays(
    sources: Mapping[str, Any], image_size: int | None, where: str
) -> tuple[dict[str, ArrayImages], str, str]:
    images = {split: ArrayImages(source, where) for split, source in sources.items()}
    sizes = {part.stored_size for part in images.values()}
    size = _size(min(images["train"].stored_size), image_size, where)
    dtype = str(images["train"].dtype).removeprefix("torch.")
    return {s: part.sized(size) for s, part in images.items()}, dtype, _size_note(sizes, size)


def _of_items(
    sources: Mapping[str, Any],
    image_size: int | None,
    where: str,
    targets: Tensor,
    class_names: tuple[str, ...],
) -> tuple[dict[str, ImageItems], str, str]:
    items = {split: list(source) for split, source in sources.items()}
    everything = headers([item for some in items.values() for item in some])
    train = everything[: len(items["train"])]  # they come first
    side = statistics.median_low(min(header.size) for header in train)
    size = _size(side, image_size, where)
    channels = max(header.channels for header in train)
    form = Form(channels, train[0].pixels, size)
    _require_one_kind(everything)
    notes = [_size_note({header.size for header in everything}, size)]
    for count, what in (
        (
            sum(max(header.size) > _OBLONG * min(header.size) for header in everything),
            f"over {_OBLONG} times as long as wide, their middle squares read",
        ),
        (sum(header.transparent for header in everything), "with transparency, shown on white"),
        (sum(header.frames for header in everything), "with several frames, the first one read"),
        (sum(header.narrowed for header in everything), "of 16 bits a channel, read with 8"),
        (
            sum(header.channels > channels for header in everything),
            "in colour, read as gray like the training images",
        ),
    ):
        if count:
            notes.append(f"{count} {what}")
    notes.append(_gray_classes(train, targets, class_names))
    note = "; ".join(filter(None, notes))
    return {split: ImageItems(some, form) for split, some in items.items()}, form.pixels, note


def _gray_classes(train: list[Header], targets: Tensor, class_names: tuple[str, ...]) -> str:
    """Say which classes can be told by being gray or not, whatever they show."""
    kinds: dict[int, set[bool]] = {}
    for header, target in zip(train, targets.tolist(), strict=True):
        kinds.setdefault(target, set()).add(header.channels == 1)
    if {frozenset(kind) for kind in kinds.values()} != {frozenset({True}), frozenset({False})}:
        return ""
    gray = [class_names[target] for target, kind in sorted(kinds.items()) if kind == {True}]
    return f"all images of {_some(gray)} are gray and all others in colour, which tells them apart"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _size(side: int, image_size: int | None, where: str) -> int:
    """Return the height and width that images become; refuse those that show nothing."""
    least = int(IMAGE_SIZE.least or 1)
    if side < least:
        raise DataError(
            f"{where}: the shorter side of the median image is {side}, but must be at least {least}"
        )
    return min(side, LARGEST_DEFAULT_SIZE) if image_size is None else image_size


def _require_one_kind(everything: list[Header]) -> None:
    """Refuse images whose pixels are of different kinds."""
    (kind, count), *others = Counter(header.pixels for header in everything).most_common()
    if others:
        odd = [header for header in everything if header.pixels != kind]
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise DataError(
            f"image {', '.join(header.name for header in odd[:3])}{more}: pixels of"
            f" {odd[0].pixels}, but {count} other images have {kind}; convert them, so that all"
            " have as many bits per channel"
        )


def _size_note(sizes: set[tuple[int, ...]], size: int) -> str:
    """Say from which sizes images are resized; nothing if they are not.

    Args:
        sizes: Every (height, width) of an image.
        size: Height and width that they become.

    Returns:
        A phrase.

    Example:
        >>> _size_note({(8, 8), (80, 64)}, 64)
        'resized to 64x64, middle squares, from 2 sizes between 8x8 and 80x64'
    """
    if sizes == {(size, size)}:
        return ""
    ordered = sorted(sizes, key=lambda s: (s[0] * s[1], s))
    first, last = (f"{height}x{width}" for height, width in (ordered[0], ordered[-1]))
    squares = "" if all(height == width for height, width in sizes) else ", middle squares,"
    given = first if len(sizes) == 1 else f"{len(sizes)} sizes between {first} and {last}"
    return f"resized to {size}x{size}{squares} from {given}"
