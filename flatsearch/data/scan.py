"""What is in a folder: the images, and what else there is and is left out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from flatsearch.data.images import suffixes
from flatsearch.errors import DataError

__all__ = ["Folder", "Scan", "image_files"]

# "1_mask.png" and "1_mask_2.png" beside "1.png" are what is marked in it, and no picture.
_MASK = re.compile(r"(.+?)[-_ ](mask|masks|segmentation|seg|gt|groundtruth)([-_ ]?\d+)?", re.I)
_SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
# Images that Pillow cannot read, without a package of their own.
_OTHER_IMAGES = {".heic", ".heif", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".jxl"}
_OTHER_IMAGES |= {".dcm", ".nii", ".mp4", ".mov", ".avi", ".mkv"}


@dataclass(eq=False)
class Folder:
    """What one folder holds.

    Attributes:
        path: Where it is.
        images: The files directly in it that are images.
        folders: The folders directly in it, by name.
    """

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, in one way of writing Unicode."""
        return unicodedata.normalize("NFC", self.path.name)

    @cached_property
    def count(self) -> int:
        """Number of images in and below it."""
        return len(self.images) + sum(inner.count for inner in self.folders.values())

    @property
    def holding(self) -> dict[str, Folder]:
        """The folders in it that hold images."""
        return {name: inner for name, inner in self.folders.items() if inner.count}

    @property
    def of_folders(self) -> bool:
        """Whether all its images are in folders."""
        return bool(self.holding) and not self.images

    def all_images(self) -> list[Path]:
        """Return the images in and below it."""
        deeper = [file for _, inner in sorted(self.folders.items()) for file in inner.all_images()]
        return sorted(self.images) + deeper


class Scan:
    """Everything below a folder, and what was left out.

    Args:
        root: The folder.

    Attributes:
        left_out: Counts of files by reason.
        understood: What was understood that could have been meant otherwise, in words.
    """

    def __init__(self, root: Path) -> None:
        self.left_out: Counter[str] = Counter()
        self._suffixes = suffixes()
        self._unread: Counter[Path] = Counter()
        self.understood: list[str] = []
        self.root = self._look(root, ())

    def _look(self, path: Path, above: tuple[tuple[int, int], ...]) -> Folder:
        found = Folder(path)
        try:
            status = path.stat()
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"folder {str(path)!r} cannot be read: {error.strerror}") from None
        here = (status.st_dev, status.st_ino)
        if here in above:
            self.left_out["links to a folder around them"] += 1
            return found
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
                self.left_out["hidden or of the system"] += 1
            elif _is(entry, directory=True):
                self._add(found, self._look(Path(entry.path), (*above, here)))
            elif _is(entry, directory=False):
                self._file(found, Path(entry.path))
            else:
                self.left_out["links to nothing, or no files"] += 1
        self._leave_masks(found)
        return found

    def _leave_masks(self, folder: Folder) -> None:
        stems = {file.stem for file in folder.images}
        of = ((file, _MASK.fullmatch(file.stem)) for file in folder.images)
        kept = [file for file, mask in of if mask is None or mask[1] not in stems]
        if len(kept) < len(folder.images):
            self.left_out["masks of the images beside them"] += len(folder.images) - len(kept)
            folder.images = kept

    @staticmethod
    def _add(outer: Folder, inner: Folder) -> None:
        known = outer.folders.setdefault(inner.name, inner)
        if known is not inner:  # one name, written in two ways of Unicode
            known.images += inner.images
            for deeper in inner.folders.values():
                Scan._add(known, deeper)

    def _file(self, folder: Folder, file: Path) -> None:
        ending = file.suffix.lower()
        if ending in self._suffixes or (not ending.strip(".0123456789") and _is_image(file)):
            folder.images.append(file)
            return
        self.left_out[ending or "without an ending"] += 1
        if ending in _OTHER_IMAGES:
            self._unread[file.parent] += 1

    def remarks(self) -> list[str]:
        """Return what was left out and how the folders were understood, in words."""
        counts = ", ".join(f"{n} {reason}" for reason, n in self.left_out.most_common())
        return [*([f"left out: {counts}"] if counts else []), *self.understood]

    def leave_loose(self, folder: Folder) -> None:
        """Leave out the images beside a folder's folders."""
        if folder.images:
            self.left_out[f"images beside the folders in {folder.name}"] += len(folder.images)

    def require_read(self, folder: Folder) -> None:
        """Refuse a class whose every image is of a format that is not read."""
        unread = sum(n for path, n in self._unread.items() if path.is_relative_to(folder.path))
        if unread and not folder.count:
            raise DataError(
                f"folder {str(folder.path)!r} holds {unread} images of formats that are not read"
                f" ({self.remarks()[0]}); convert them, or for .heic: pip install pillow-heif"
            )


def _is(entry: os.DirEntry[str], *, directory: bool) -> bool:
    try:
        return entry.is_dir() if directory else entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_image(file: Path) -> bool:
    """Return whether a file without an ending is an image."""
    from PIL import Image

    try:
        with Image.open(file):
            return True
    except Exception:  # a file of any kind can fail in any way
        return False


def image_files(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return all images in and below a folder, and what was left out."""
    scan = Scan(path)
    return scan.root.all_images(), tuple(scan.remarks())
