"""Images that do not fit into memory: decoded once into a file, from which batches are read.

The file holds pixels only, those of all splits of the source one after the other, so that every
seed and every study of the same images shares it. It is called by what the source is: paths, sizes
and times of change, or, where a source has none of these, the pixels. Another file is made of a
source that has changed. It appears when it is complete; whoever makes the same one at the same time
makes an equal one. It may be deleted at any time.

Threads read ahead of the training rather than the processes of a `DataLoader`: nothing is decoded
any more, reading leaves Python's lock to others, and there are no processes to be started, to draw
random numbers, or to need more shared memory than a container has.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatsearch.data.images import ImageItems
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flatsearch.data.images import Item
    from flatsearch.data.preparing import Images

__all__ = ["StoredImages", "free_memory", "in_chunks", "n_bytes", "read_ahead", "store"]

_log = logging.getLogger(__name__)
# As many images are read at once, with at most so many values, which take eight bytes in sums.
_CHUNK = 1024
_VALUES = 1 << 22
# Changes where the same files are read as other pixels.
_VERSION = 1
# A file that has not been written to for so many seconds is nobody's.
_ABANDONED = 3600
_READERS = 2
_AHEAD = 4
# Lets pages of the file go, which otherwise count as memory of this process while any is free.
_LET_GO = getattr(mmap, "MADV_DONTNEED", None)


class StoredImages:
    """Images in a file, of which those that are asked for are read.

    `images[index]` reads those at a slice or at indices (n,), into (n, C, H, W).

    Args:
        file: Pixels of images, without anything else.
        shape: (C, H, W) of an image.
        dtype: The type of the pixels.
        rows: Which images of the file these are, (N,).
    """

    # Not that of any split's targets: batches are moved.
    device = None

    def __init__(
        self, file: Path, shape: tuple[int, ...], dtype: torch.dtype, rows: Tensor
    ) -> None:
        self._file, self._of_one, self.dtype, self._rows = file, shape, dtype, rows

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredImages, (self._file, self._of_one, self.dtype, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        """The shape of all images together."""
        return torch.Size((len(self), *self._of_one))

    def take(self, index: Tensor) -> StoredImages:
        """Return the images at indices, unread."""
        return StoredImages(self._file, self._of_one, self.dtype, self._rows[index])

    def joined(self, other: StoredImages) -> StoredImages:
        """Return these images and others of the same file, unread."""
        rows = torch.cat([self._rows, other._rows])
        return StoredImages(self._file, self._of_one, self.dtype, rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        buffer, pixels = self._mapped
        read = pixels.index_select(0, self._rows[index])
        if _LET_GO is not None:
            buffer.madvise(_LET_GO)
        return read

    @cached_property
    def _mapped(self) -> tuple[mmap.mmap, Tensor]:
        with self._file.open("rb") as opened:
            buffer = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        return buffer, torch.frombuffer(buffer, dtype=self.dtype).view(-1, *self._of_one)


def free_memory() -> int:
    """Return the bytes of memory that are free, of the machine or of the container."""
    import psutil

    free: int = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return free


def n_bytes(images: Iterable[Any]) -> int:
    """Return how many bytes the pixels of images take in memory."""
    return sum(prod(part.shape) * part.dtype.itemsize for part in images)


def read_ahead(read: Callable[[Any], Tensor], indices: Iterable[Any]) -> Iterator[Tensor]:
    """Yield what is read at indices, in their order; the next ones are read in the meantime."""
    with ThreadPoolExecutor(_READERS) as pool:
        coming: deque[Any] = deque()
        for index in indices:
            coming.append(pool.submit(read, index))
            if len(coming) > _AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def store(parts: Mapping[str, Images], folder: Path, where: str) -> dict[str, StoredImages]:
    """Read images into a file, unless they are in one already.

    Args:
        parts: Unread images by split, of one form.
        folder: Where the file is, or goes.
        where: What messages call the data.

    Returns:
        The images by split.

    Raises:
        DataError: If images cannot be read, or there is no room for the file.
    """
    first, key = next(iter(parts.values())), _key(parts)
    size, file = n_bytes(parts.values()), folder / f"{key}.pixels"
    if key is None or not file.is_file() or file.stat().st_size != size:
        _log.warning("%s: all images are read once, into a file in %s", where, folder)
        file = _write(parts, folder, size, key, where)
    shape, ends, stored = tuple(first.shape[1:]), 0, {}
    for split, images in parts.items():
        start, ends = ends, ends + len(images)
        stored[split] = StoredImages(file, shape, first.dtype, torch.arange(start, ends))
    return stored


def _write(
    parts: Mapping[str, Images], folder: Path, size: int, key: str | None, where: str
) -> Path:
    """Write images into a file that appears when it is complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.part"):
            if time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise DataError(
                f"{where}: {size:,} bytes of pixels are more than `data_memory`, and there is no"
                f" room for them in {str(folder)!r} either: {free:,} bytes are free; give a smaller"
                " `image_size`, or `data_root` on another disk"
            )
        digest = hashlib.blake2b(digest_size=12)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
            try:
                for pixels in chain.from_iterable(map(in_chunks, parts.values())):
                    part.write(memoryview(pixels.numpy()).cast("B"))
                    digest.update(pixels.numpy())
                part.close()
                file = folder / f"{key or digest.hexdigest()}.pixels"
                Path(part.name).replace(file)
            except BaseException:
                part.close()
                Path(part.name).unlink()
                raise
    except OSError as error:
        raise DataError(f"{where}: cannot be stored in {str(folder)!r}: {error}") from None
    return file


def in_chunks(images: Any) -> Iterator[Any]:
    """Yield images as tensors (n, C, H, W) of a size that fits into any memory, in their order."""
    size = max(1, min(_CHUNK, _VALUES // prod(images.shape[1:])))
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _key(parts: Mapping[str, Images]) -> str | None:
    """Return what tells a source from every other; None where only its pixels do."""
    digest = hashlib.blake2b(digest_size=12)
    for images in parts.values():
        if not isinstance(images, ImageItems):
            return None
        digest.update(f"{_VERSION} {images.form} {len(images)}".encode())
        for item in images.items:
            known = _identity(item)
            if known is None:
                return None
            digest.update(known.encode() + b"\n")
    return digest.hexdigest()


def _identity(item: Item) -> str | None:
    """Return what tells whether an image is still the same, as far as that is known unread."""
    if isinstance(item, Mapping):
        item = item["bytes"] or item["path"]
    if isinstance(item, bytes):
        return hashlib.blake2b(item).hexdigest()
    if isinstance(item, (str, Path)):
        found = Path(item).stat()
        return f"{os.path.abspath(item)} {found.st_size} {found.st_mtime_ns}"  # noqa: PTH100
    return getattr(item, "identity", None)
