"""One image, as people have it, as pixels: the only reader, for training and predicting alike.

An image is a file, its bytes, a Pillow image or an array. It is turned as its camera says, what is
transparent becomes white, and its middle square is resized. Eight bits a channel become gray or
RGB; deeper images keep their values and are never mixed with others.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flatsearch.data.values import plain
from flatsearch.errors import DataError

__all__ = [
    "Form",
    "Header",
    "ImageItems",
    "Item",
    "headers",
    "name_of",
    "read_image",
    "resized",
    "suffixes",
]

# A file, its bytes, what Hugging Face stores of either, a Pillow image, an array, or what gives one
# of these when it is called.
Item: TypeAlias = "str | Path | bytes | Mapping[str, Any] | Image.Image | np.ndarray[Any, Any] | Tensor | Callable[[], Any]"  # noqa: E501

# Shown on this: what most icons and drawings are made for.
_GROUND = 255
# Formats that Pillow names but only reads with other programs, or that are no pictures.
_NOT_READ = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_SIDEWAYS = {5, 6, 7, 8}
_MOST_NAMED = 20


@dataclass(frozen=True)
class Form:
    """What images become.

    Attributes:
        channels: 1 for gray, 3 for RGB; of float arrays any number.
        pixels: "uint8" for 0 to 255; "uint16", "int32" or "float32" for the values as stored.
        size: Height and width.
    """

    channels: int
    pixels: str
    size: int


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are read.

    Attributes:
        name: What messages call it.
        size: Height and width, as it is shown.
        channels: 1 for gray, 3 for coloured; of float arrays any number.
        pixels: As in `Form`.
        transparent: It has an alpha channel or a transparent colour.
        frames: It is animated or has pages, of which the first is read.
        narrowed: It is stored with 16 bits a channel, of which the upper eight are read.
    """

    name: str
    size: tuple[int, int]
    channels: int
    pixels: str
    transparent: bool = False
    frames: bool = False
    narrowed: bool = False


class ImageItems:
    """Images that are read when they are asked for, all in one form.

    `images[index]` reads those at a slice or at indices, (n, C, size, size), by threads.

    Args:
        items: The images.
        form: What they become.
    """

    def __init__(self, items: Sequence[Item], form: Form) -> None:
        self.items = items
        self.form = form

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of all images together."""
        return (len(self), self.form.channels, self.form.size, self.form.size)

    @property
    def dtype(self) -> torch.dtype:
        """The type of their pixels."""
        return torch.uint8 if self.form.pixels == "uint8" else torch.float32

    def take(self, index: Sequence[int] | np.ndarray[Any, Any]) -> ImageItems:
        """Return the images at indices, still unread."""
        return ImageItems([self.items[i] for i in index], self.form)

    def __getitem__(self, index: slice | Sequence[int]) -> Tensor:
        some = self.items[index] if isinstance(index, slice) else self.take(index).items
        return torch.stack(_all_read(ImageItems(some, self.form).tried()))

    def tried(self) -> list[Tensor | DataError]:
        """Return every image, or why it cannot be read."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda item: _or_error(read_image, item, self.form), self.items))


def _or_error(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except DataError as error:
        return error


def _all_read(read: Sequence[Any]) -> list[Any]:
    """Return what was read, or raise one error that names every image that was not."""
    errors = [str(found) for found in read if isinstance(found, DataError)]
    if errors:
        more = f"; and {len(errors) - _MOST_NAMED} more" if len(errors) > _MOST_NAMED else ""
        raise DataError("; ".join(errors[:_MOST_NAMED]) + more)
    return list(read)


def headers(items: Sequence[Item]) -> list[Header]:
    """Return what is known of images; an error names every one that cannot be read."""
    with ThreadPoolExecutor(4) as pool:
        numbers = range(len(items))
        return _all_read(list(pool.map(partial(_or_error, _header), items, numbers)))


def suffixes() -> set[str]:
    """Return the endings of files that are read as images, in small letters.

    Example:
        >>> {".jpg", ".png", ".webp"} <= suffixes(), ".mpg" in suffixes()
        (True, False)
    """
    with contextlib.suppress(ImportError):  # the format of phones' photos, where it is installed
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    read = {name for name in Image.OPEN if name not in _NOT_READ}
    return {ending for ending, name in Image.registered_extensions().items() if name in read}


def _header(item: Item, number: int) -> Header:
    """Return what is known of an image before its pixels are read.

    Raises:
        DataError: If it cannot be read; names it.
    """
    with _opened(item, number) as (name, image):
        if isinstance(image, Tensor):
            return Header(name, (image.shape[1], image.shape[2]), len(image), "float32")
        width, height = image.size
        if image.format != "TIFF" and _orientation(image) in _SIDEWAYS:  # there Pillow has done so
            width, height = height, width
        tiles = getattr(image, "tile", None) or [(None,) * 4]
        return Header(
            name,
            (height, width),
            1 if _pixels(image) != "uint8" or image.mode in {"1", "L", "LA", "La"} else 3,
            _pixels(image),
            image.has_transparency_data,
            # The other pictures of a phone's photo are smaller or deeper copies.
            getattr(image, "is_animated", False) and image.format != "MPO",
            _pixels(image) == "uint8" and ";16" in str(tiles[0][3]),
        )


def read_image(item: Item, form: Form) -> Tensor:
    """Return one image's pixels: upright, on white, its middle square, resized.

    Args:
        item: A file, its bytes, a Pillow image or an array.
        form: What it becomes.

    Returns:
        The pixels (C, size, size), uint8, or float32 for deeper ones.

    Raises:
        DataError: If it cannot be read, or its pixels are of another kind; names it.
    """
    size = (form.size, form.size)
    with _opened(item) as (name, image):
        if isinstance(image, Tensor):
            if form.pixels != "float32" or len(image) != form.channels:
                raise DataError(_other(name, f"{len(image)} channels of float32", form))
            return _finite(name, resized(image[None], form.size)[0])
        if _pixels(image) != form.pixels:
            raise DataError(_other(name, _pixels(image), form))
        if image is not item:  # a JPEG file is decoded at a half to an eighth, if that is enough
            image.draft(image.mode, (2 * form.size, 2 * form.size))
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if form.pixels != "uint8":
            values = torch.from_numpy(np.asarray(image).astype(np.float32))
            return _finite(name, resized(values[None, None], form.size)[0])
        image = _on_ground(image, "L" if form.channels == 1 else "RGB")
        if image.size != size:
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(image))
        return values[None] if form.channels == 1 else values.permute(2, 0, 1).contiguous()


def resized(images: Tensor, size: int) -> Tensor:
    """Return the middle squares of images (N, C, H, W), resized."""
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    from torchvision.transforms.v2 import functional

    side = min(height, width)
    images = functional.center_crop(images, [side, side])
    return functional.resize(images, [size, size], antialias=True)


def _orientation(image: Image.Image) -> Any:
    # A PNG file that has no orientation in its header is not read to its end to look for one.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except SyntaxError:  # Pillow's, of what cannot be understood
        return 1
    return found if found in range(2, 9) else 1


def _finite(name: str, values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise DataError(f"image {name} has NaN or infinite pixels")
    return values


def _other(name: str, given: str, form: Form) -> str:
    plural = "" if form.channels == 1 else "s"
    return (
        f"image {name} has pixels of {given}, but {form.channels} channel{plural} of {form.pixels}"
        " are needed: convert it as the training images were made"
    )


def _on_ground(image: Image.Image, mode: str) -> Image.Image:
    """Return an image of 8 bits a channel in a mode, without transparency."""
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        ground = Image.new("RGBA", image.size, (_GROUND,) * 4)
        image = Image.alpha_composite(ground, image).convert("RGB")
    elif image.mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
    return image.convert(mode)


def _pixels(image: Image.Image) -> str:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in {"PNG", "PPM"}):
        return "uint16"
    return {"I": "int32", "F": "float32"}.get(image.mode, "uint8")


@contextlib.contextmanager
def _opened(item: Item, number: int | None = None) -> Iterator[tuple[str, Image.Image | Tensor]]:
    """Yield an image's name and the image; one that cannot be read, now or later, is named."""
    name = name_of(item, number)
    try:
        while callable(item):
            item = item()
        if isinstance(item, Mapping):
            item = item["bytes"] or item["path"]
        if isinstance(item, (str, Path, bytes)):
            with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
                yield name, image
        elif isinstance(item, Image.Image):
            yield name, item
        else:
            yield name, _array(item, name)
    except DataError:
        raise
    except Exception as error:  # a damaged file can fail in any way, a bomb in its own
        reason = " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            reason = "it is empty" if _size(item) == 0 else "it is no image that Pillow knows"
        raise DataError(f"image {name} cannot be read: {reason or type(error).__name__}") from None


def _array(item: Any, name: str) -> Image.Image | Tensor:
    """Return an array (H, W), (H, W, C) or (C, H, W) as a Pillow image, or as (C, H, W)."""
    values = np.asarray(plain(item, f"pixels of image {name}"))
    if values.dtype == bool:  # black and white, as in a file of one bit a pixel
        values = values.astype(np.uint8) * 255
    if values.ndim == 3 and values.shape[0] in {1, 3} and values.shape[2] not in {1, 3}:
        values = values.transpose(1, 2, 0)
    if values.dtype.kind not in "uif" or values.ndim not in {2, 3} or values.size == 0:
        raise DataError(
            f"image {name} must be a file, its bytes, a Pillow image or an array (H, W), (H, W, C)"
            f" or (C, H, W) of numbers but is {type(item).__name__} {values.shape} {values.dtype}"
        )
    values = values.reshape(*values.shape[:2], -1)
    if values.dtype == np.uint8 and values.shape[2] in {1, 3, 4}:
        return Image.fromarray(
            np.ascontiguousarray(values.squeeze(2) if values.shape[2] == 1 else values)
        )
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))


def name_of(item: Item, number: int | None = None) -> str:
    """Return what messages call an image; one of many that has no name has a number."""
    if isinstance(item, Mapping):
        item = item.get("path") or item.get("bytes") or b""
    if isinstance(item, (str, Path)):
        return repr(str(item))
    known = getattr(item, "filename", None) or getattr(item, "name", None)
    which = "" if number is None else f"{number} "
    return repr(str(known)) if known else f"{which}({type(item).__name__})"


def _size(item: Any) -> int | None:
    if isinstance(item, bytes):
        return len(item)
    return Path(item).stat().st_size if isinstance(item, (str, Path)) else None
