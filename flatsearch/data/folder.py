"""A folder of images as people have it: which files are images, of which class, in which split.

Class folders, with or without split folders above or below them, also inside of folders that hold
nothing else. A folder is a split if it is called so and holds class folders; a class may have any
name. What could be read in two ways is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from flatsearch.data.raw import RawData
from flatsearch.data.scan import Folder, Scan
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_folder", "split_named"]

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
# Folders that together are pictures and what is marked in them, and no classes.
_PAIRED = re.compile(
    r"(images?|imgs?|jpegimages|inputs?|photos?)|(masks?|labels?|annotations?|gt|ground[-_ ]?truth"
    r"|targets?|seg|segmentations?(class|object)?)",
    re.IGNORECASE,
)


def split_named(name: str) -> str | None:
    """Return the split that a name stands for by itself.

    Example:
        >>> [split_named(name) for name in ("Training", "val", "TEST_images", "trainer")]
        ['train', 'validation', 'test', None]
    """
    found = _SPLIT_NAME.fullmatch(name)
    return _SPLIT_OF[found["word"].lower()] if found and not found["before"] else None


class _Layouts(Scan):
    """The ways in which a folder can be understood."""

    def unwrapped(self, folder: Folder) -> Folder:
        """Return the folder that a folder is about which holds nothing else."""
        while len(folder.holding) == 1:
            (inner,) = folder.holding.values()
            if not inner.of_folders:
                break
            self.leave_loose(folder)
            folder = inner
        return folder

    def splits(self, folder: Folder) -> dict[str, Folder] | None:
        """Return the split folders in a folder; None if its folders are classes."""
        groups: dict[str, list[tuple[str, Folder]]] = {}
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
            empty = [name for name, inner in folder.folders.items() if not inner.count]
            self.understood += [f"no images in {name}" for name in filter(split_named, empty)]
            self.leave_loose(folder)
            return splits
        return None

    def splits_of_classes(self, folder: Folder) -> dict[str, dict[str, list[Path]]] | None:
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
        self.understood.append("splits are the folders in the class folders")
        return found

    def splits_in_names(self, folder: Folder) -> dict[str, dict[str, list[Path]]] | None:
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
        self.understood.append("splits are in the names of the class folders")
        return found

    def classes(self, folder: Folder) -> dict[str, list[Path]]:
        """Return files by class."""
        for inner in folder.folders.values():
            self.require_read(inner)
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
        paired = [_PAIRED.fullmatch(name) for name in folder.holding]
        if all(paired) and len({bool(match and match[1]) for match in paired}) > 1:
            raise DataError(
                f"folder {str(folder.path)!r} has {_seen(folder)}: images and what is marked in"
                " them are no classes; give a table of files and labels: labels.csv:path,label"
            )
        often = Counter(name for names in deeper for name in names)
        shared = [name for name, count in often.items() if count > 1]
        of_folders = len(inside) > 1 and all(inner.of_folders for inner in inside)
        if of_folders and len(often) > 1 and 2 * len(shared) >= len(often):
            raise DataError(
                f"folder {str(folder.path)!r} has {', '.join(inner.name for inner in inside)},"
                f" and in several of them {', '.join(sorted(shared))}: which are the classes? Give"
                " one of the folders, or a table of files and labels"
            )
        for name in filter(split_named, folder.holding):
            self.understood.append(f"{name!r} is a class, as it holds no class folders")
        if any(deeper):
            self.understood.append("images in folders of class folders belong to the class")
        for inner in inside:  # thumbnails, say, which would be in both training and test
            own = {file.name for file in inner.images}
            below = [f for deep in inner.folders.values() for f in deep.all_images()]
            if copies := sum(file.name in own for file in below):
                self.understood.append(
                    f"{copies} images below {inner.name} are called like images in it: are they"
                    " copies?"
                )
        empty = [name for name, inner in folder.folders.items() if not inner.count]
        if empty:
            self.understood.append(f"no images in {', '.join(empty)}")
        self.leave_loose(folder)
        return {name: inner.all_images() for name, inner in folder.holding.items()}


def _seen(folder: Folder) -> str:
    """Say what is directly in a folder."""
    seen = [f"{name!r} ({inner.count} images)" for name, inner in folder.holding.items()]
    if folder.images:
        names = ", ".join(file.name for file in folder.images[:3])
        seen.append(f"{len(folder.images)} images ({names}, ...)")
    more = [f"{len(seen) - 10} more"] if len(seen) > 10 else []
    return ", ".join(seen[:10] + more)


def read_folder(path: Path) -> RawData:
    """List the images of a folder.

    Args:
        path: The folder.

    Returns:
        Files and class names by split, and what was left out.

    Raises:
        DataError: If it holds no classes, or could be read in two ways; says what was seen.
    """
    scan = _Layouts(path)
    top = scan.unwrapped(scan.root)
    folders = scan.splits(top)
    if folders is None:
        found = scan.splits_of_classes(top) or scan.splits_in_names(top)
        listed = found or {"train": scan.classes(top)}
    else:
        listed = {split: scan.classes(scan.unwrapped(inner)) for split, inner in folders.items()}
    names = sorted(listed["train"])
    for split, classes in list(listed.items()):
        unknown = sorted(set(classes) - set(names))
        if len(classes) == len(unknown) == 1:  # test/images, test/unknown
            scan.left_out[f"in {split}, whose only folder {unknown[0]} is no class"] += len(
                classes[unknown[0]]
            )
            del listed[split]
        elif unknown:
            where = str(folders[split].path if folders else top.path / "*" / split)
            raise DataError(
                f"{where!r} has classes {', '.join(sorted(classes))}"
                f" but the training folder has {', '.join(names)}"
            )
        elif len(classes) < len(names):
            without = ", ".join(sorted(set(names) - set(classes)))
            scan.understood.append(f"no {split} images of {without}")
    parts: dict[str, tuple[Any, Any]] = {
        split: (
            [file for name in names for file in classes.get(name, ())],
            [name for name in names for _ in classes.get(name, ())],
        )
        for split, classes in listed.items()
    }
    return RawData(parts, remarks=tuple(scan.remarks()))
