"""A folder of images as people have it: which files are images, of which class, in which split.

Class folders, with or without split folders above or below them, also inside of folders that hold
nothing else. A folder is a split if it is called so and holds class folders; a class may have any
name. What could be read in two ways is refused.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flatsearch.data.images import suffixes
from flatsearch.data.raw import RawData
from flatsearch.errors import DataError

__all__ = ["image_files", "read_folder", "split_named"]

_SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
# "train", "Training_set", "seg_train", "test-images", "images.test", "train1".
_SPLIT_NAME = re.compile(
    rf"(?P<before>.*[-_. ])??(?P<word>{'|'.join(_SPLIT_OF)})"
    r"(?P<after>[-_. ]?(\d+|set|data|dataset|split|folder|img|imgs|image|images))?",
    re.IGNORECASE,
)
_WORDS = "|".join(_SPLIT_OF)
# "train_cats", "cats-test".
_SPLIT_AND_CLASS = re.compile(
    rf"(?P<first>{_WORDS})[-_. ](?P<after>.+)|(?P<before>.+)[-_. ](?P<last>{_WORDS})",
    re.IGNORECASE,
)
# "1_mask.png" and "1_mask_2.png" beside "1.png" are what is marked in it, and no picture.
_MASK = re.compile(r"(.+?)[-_ ](mask|masks|segmentation|seg|gt|groundtruth)([-_ ]?\d+)?", re.I)
_SYSTEM = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
# Images that Pillow cannot read, without a package of their own.
_OTHER_IMAGES = {".heic", ".heif", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".jxl"}


def split_named(name: str) -> str | None:
    """Return the split that a name stands for by itself.

    Example:
        >>> [split_named(name) for name in ("Training", "val", "TEST_images", "trainer")]
        ['train', 'validation', 'test', None]
    """
    found = _SPLIT_NAME.fullmatch(name)
    return _SPLIT_OF[found["word"].lower()] if found and not found["before"] else None


@dataclass(eq=False)
class _Folder:
    """What one folder holds."""

    path: Path
    images: list[Path] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return unicodedata.normalize("NFC", self.path.name)

    @cached_property
    def count(self) -> int:
        return len(self.images) + sum(inner.count for inner in self.folders.values())

    @property
    def holding(self) -> dict[str, _Folder]:
        """The folders in it that hold images."""
        return {name: inner for name, inner in self.folders.items() if inner.count}

    @property
    def of_folders(self) -> bool:
        """Whether all its images are in folders."""
        return bool(self.holding) and not self.images

    def all_images(self) -> list[Path]:
        deeper = [file for _, inner in sorted(self.folders.items()) for file in inner.all_images()]
        return sorted(self.images) + deeper


class _Scan:
    """Everything below a folder, and what was left out.

    Args:
        root: The folder.

    Attributes:
        left_out: Counts of files by reason.
    """

    def __init__(self, root: Path) -> None:
        self.left_out: Counter[str] = Counter()
        self._suffixes = suffixes()
        self._unread: Counter[Path] = Counter()
        self._understood: list[str] = []
        self.root = self._look(root, ())

    def _look(self, path: Path, above: tuple[tuple[int, int], ...]) -> _Folder:
        found = _Folder(path)
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

    def _leave_masks(self, folder: _Folder) -> None:
        stems = {file.stem for file in folder.images}
        of = ((file, _MASK.fullmatch(file.stem)) for file in folder.images)
        kept = [file for file, mask in of if mask is None or mask[1] not in stems]
        if len(kept) < len(folder.images):
            self.left_out["masks of the images beside them"] += len(folder.images) - len(kept)
            folder.images = kept

    @staticmethod
    def _add(outer: _Folder, inner: _Folder) -> None:
        known = outer.folders.setdefault(inner.name, inner)
        if known is not inner:  # one name, written in two ways of Unicode
            known.images += inner.images
            for deeper in inner.folders.values():
                _Scan._add(known, deeper)

    def _file(self, folder: _Folder, file: Path) -> None:
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
        return [*([f"left out: {counts}"] if counts else []), *self._understood]

    def unwrapped(self, folder: _Folder) -> _Folder:
        """Return the folder that a folder is about which holds nothing else."""
        while len(folder.holding) == 1:
            (inner,) = folder.holding.values()
            if not inner.of_folders:
                break
            self._leave_loose(folder)
            folder = inner
        return folder

    def splits(self, folder: _Folder) -> dict[str, _Folder] | None:
        """Return the split folders in a folder; None if its folders are classes."""
        groups: dict[str, list[tuple[str, _Folder]]] = {}
        for name, inner in folder.holding.items():
            if found := _SPLIT_NAME.fullmatch(name):
                split = _SPLIT_OF[found["word"].lower()]
                groups.setdefault((found["before"] or "").lower(), []).append((split, inner))
        for before, group in sorted(groups.items()):
            splits = {split: inner for split, inner in group if inner.of_folders}
            others = [inner for inner in folder.holding.values() if inner not in splits.values()]
            alone = len(group) == len(folder.holding)
            unique = len({split for split, _ in group}) == len(group)
            sure = "train" in splits and unique and (alone or len(splits) > 1)
            if not sure and (before or not (splits or (alone and len(group) > 1))):
                continue  # classes that are called like splits
            if not sure:
                names = ", ".join(sorted(inner.name for _, inner in group))
                why = "other folders are beside them, or two are of one split"
                if "train" not in {split for split, _ in group}:
                    why = f"it has {names} but no train"
                elif "train" not in splits:
                    why = f"{names} hold no class folders"
                raise DataError(
                    f"folder {str(folder.path)!r} has {_seen(folder)}: splits must be 'train', and"
                    f" 'val' and 'test' if there are any, with a folder for every class, but {why}"
                )
            for other in others:
                named = any(other is inner for _, inner in group)
                why = "which has no class folders" if named else "which is no split"
                self.left_out[f"in {other.name}, {why}"] += other.count
            self._leave_loose(folder)
            return splits
        return None

    def splits_of_classes(self, folder: _Folder) -> dict[str, dict[str, list[Path]]] | None:
        """Return files by split and class where every class folder holds the splits."""
        found: dict[str, dict[str, list[Path]]] = {}
        without = []
        for name, inner in folder.holding.items():
            named = {split_named(deeper): files for deeper, files in inner.holding.items()}
            if not inner.of_folders or None in named or len(named) < len(inner.holding):
                without.append(name)
            for split, files in named.items():
                found.setdefault(split or "", {})[name] = files.all_images()
        found.pop("", None)
        if "train" not in found:
            return None
        if without:
            raise DataError(
                f"folder {str(folder.path)!r} has split folders in some class folders but not, or"
                f" not only, in {', '.join(without)}"
            )
        self._understood.append("splits are the folders in the class folders")
        return found

    def splits_in_names(self, folder: _Folder) -> dict[str, dict[str, list[Path]]] | None:
        """Return files by split and class where folders are called by both, as train_cats."""
        found: dict[str, dict[str, list[Path]]] = {}
        without = []
        for name, inner in folder.holding.items():
            if (parts := _SPLIT_AND_CLASS.fullmatch(name)) is None:
                without.append(name)
                continue
            word, rest = parts["first"] or parts["last"], parts["after"] or parts["before"]
            found.setdefault(_SPLIT_OF[word.lower()], {})[rest] = inner.all_images()
        others = [set(classes) for split, classes in found.items() if split != "train"]
        if not any(set(found.get("train", {})) & names for names in others):
            return None
        if without:
            raise DataError(
                f"folder {str(folder.path)!r} has {_seen(folder)}: the names of some folders are a"
                f" split and a class, but not {', '.join(without)}"
            )
        self._understood.append("splits are in the names of the class folders")
        return found

    def classes(self, folder: _Folder) -> dict[str, list[Path]]:
        """Return files by class."""
        for inner in folder.folders.values():
            self._require_read(inner)
        inside = list(folder.holding.values())
        deeper = [sorted(inner.holding) for inner in inside]
        loose = len(folder.images)
        if not inside or loose >= folder.count - loose:
            left_out = f"; {self.remarks()[0]}" if self.left_out else ""
            raise DataError(
                f"folder {str(folder.path)!r} must hold one folder of images per class but has"
                f" {_seen(folder) or 'no images'}{left_out}; of other layouts give a table of files"
                " and labels: labels.csv:path,label"
            )
        of_folders = len(inside) > 1 and all(inner.of_folders for inner in inside)
        if of_folders and len(deeper[0]) > 1 and all(names == deeper[0] for names in deeper):
            raise DataError(
                f"folder {str(folder.path)!r} has {', '.join(inner.name for inner in inside)},"
                f" and in each of them {', '.join(deeper[0])}: which are the classes? Give one"
                " of the folders, or a table of files and labels"
            )
        for name in filter(split_named, folder.holding):
            self._understood.append(f"{name!r} is a class, as it holds no class folders")
        if any(deeper):
            self._understood.append("images in folders of class folders belong to the class")
        empty = [name for name, inner in folder.folders.items() if not inner.count]
        if empty:
            self._understood.append(f"no images in {', '.join(empty)}")
        self._leave_loose(folder)
        return {name: inner.all_images() for name, inner in folder.holding.items()}

    def _leave_loose(self, folder: _Folder) -> None:
        if folder.images:
            self.left_out[f"images beside the folders in {folder.name}"] += len(folder.images)

    def _require_read(self, folder: _Folder) -> None:
        """Refuse a class whose every image is of a format that is not read."""
        unread = sum(n for path, n in self._unread.items() if path.is_relative_to(folder.path))
        if unread and not folder.count:
            raise DataError(
                f"folder {str(folder.path)!r} holds {unread} images of formats that are not read"
                f" ({self.remarks()[0]}); convert them, or for .heic: pip install pillow-heif"
            )


def _seen(folder: _Folder) -> str:
    """Say what is directly in a folder."""
    seen = [f"{name!r} ({inner.count} images)" for name, inner in folder.holding.items()]
    if folder.images:
        names = ", ".join(file.name for file in folder.images[:3])
        seen.append(f"{len(folder.images)} images ({names}, ...)")
    more = [f"{len(seen) - 10} more"] if len(seen) > 10 else []
    return ", ".join(seen[:10] + more)


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
    scan = _Scan(path)
    return scan.root.all_images(), tuple(scan.remarks())


def read_folder(path: Path) -> RawData:
    """List the images of a folder.

    Args:
        path: The folder.

    Returns:
        Files and class names by split, and what was left out.

    Raises:
        DataError: If it holds no classes, or could be read in two ways; says what was seen.
    """
    scan = _Scan(path)
    top = scan.unwrapped(scan.root)
    folders = scan.splits(top)
    if folders is None:
        found = scan.splits_of_classes(top) or scan.splits_in_names(top)
        listed = found or {"train": scan.classes(top)}
    else:
        listed = {split: scan.classes(scan.unwrapped(inner)) for split, inner in folders.items()}
    names = sorted(listed["train"])
    for split, classes in listed.items():
        if sorted(classes) != names:
            where = str(folders[split].path if folders else top.path / "*" / split)
            raise DataError(
                f"{where!r} has classes {', '.join(sorted(classes))}"
                f" but the training folder has {', '.join(names)}"
            )
    parts: dict[str, tuple[Any, Any]] = {
        split: (
            [file for name in names for file in classes[name]],
            [name for name in names for _ in classes[name]],
        )
        for split, classes in listed.items()
    }
    return RawData(parts, remarks=tuple(scan.remarks()))
