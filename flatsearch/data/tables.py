"""Data sets from a table with an image and a label in each row: CSV, Parquet, or pandas."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.data.folder import split_named
from flatsearch.data.images import suffixes
from flatsearch.data.raw import RawData
from flatsearch.data.values import is_missing
from flatsearch.errors import DataError, UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["guessed", "is_frame", "is_table", "read_columns", "read_frame", "read_table", "rows"]

_TABLE = re.compile(r"(?P<file>.+\.(csv|tsv|parquet|pq))(:(?P<columns>[^:]+))?", re.IGNORECASE)
# The columns that are meant where none are named.
_IMAGE = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "img")
_LABEL = ("label", "class", "target", "category", "class_name", "y")
_SPLIT = ("split", "subset", "partition", "fold")
# "is_test", "training_image": a split that is written in another way.
_OTHER_SPLIT = re.compile(r"(is|in)?[-_ ]?(train|test|valid)", re.IGNORECASE)


def is_table(reference: str) -> bool:
    """Return whether a reference is a table's, with columns or without.

    Example:
        >>> is_table("labels.csv:path,label"), is_table("labels.parquet"), is_table("cifar10")
        (True, True, False)
    """
    return _TABLE.fullmatch(reference) is not None


def is_frame(given: Any) -> bool:
    """Return whether something is a pandas table, without importing pandas."""
    return type(given).__module__.split(".")[0] == "pandas" and hasattr(given, "columns")


def read_table(reference: str) -> RawData:
    """Read TABLE or TABLE:IMAGE,LABEL[,SPLIT]; files are looked for beside the table."""
    found = _TABLE.fullmatch(reference)
    assert found is not None  # noqa: S101 - that is how it was recognised
    file = Path(found["file"]).expanduser()
    if not file.is_file():
        raise DataError(f"table {str(file)!r} does not exist")
    names = tuple(name.strip() for name in (found["columns"] or "").split(",") if name.strip())
    return rows(read_columns(file), names, repr(str(file)), file.parent)


def read_columns(file: Path) -> Mapping[str, Sequence[Any]]:
    """Return the columns of a table by name; Parquet unless it ends as a table of text."""
    return _read_csv(file) if file.suffix.lower() in {".csv", ".tsv"} else _read_parquet(file)


def read_frame(frame: Any) -> RawData:
    """Read a pandas table with a column of images (files, arrays, Pillow images) and of labels."""
    _require_unique(map(str, frame.columns), "the table")
    columns = {str(name): list(frame[name]) for name in frame.columns}
    return rows(columns, (), "the table", Path())


def _read_csv(file: Path) -> dict[str, list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            first = opened.readline()
            opened.seek(0)
            delimiter = max(",;\t|", key=first.count)
            lines = csv.reader(opened, delimiter=delimiter, skipinitialspace=True)
            read = [row for row in lines if row]
    except UnicodeDecodeError:
        raise DataError(f"table {str(file)!r} cannot be read: it must be in UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"table {str(file)!r} cannot be read: {error}") from None
    uneven = [n for n, row in enumerate(read, 1) if len(row) != len(read[0])]
    if uneven:
        raise DataError(
            f"table {str(file)!r}: row {uneven[0]} has {len(read[uneven[0] - 1])} cells but the"
            f" first one has {len(read[0])}"
        )
    if len(read) < 2:
        raise DataError(f"table {str(file)!r} must have a first row of names and rows below it")
    names = [name.strip() for name in read[0]]
    _require_unique(names, f"table {str(file)!r}")
    return dict(zip(names, map(list, zip(*read[1:], strict=True)), strict=True))


def _require_unique(names: Iterable[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(f"{where} has several columns called {_some(twice)}")


def _read_parquet(file: Path) -> dict[str, list[Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UsageError("Parquet needs pyarrow: pip install 'flatsearch[tables]'") from None
    try:
        columns: dict[str, list[Any]] = parquet.read_table(file).to_pydict()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"table {str(file)!r} cannot be read: {reason}") from None
    return columns


def rows(
    columns: Mapping[str, Sequence[Any]], names: tuple[str, ...], where: str, beside: Path
) -> RawData:
    """Return the images and labels of a table.

    Args:
        columns: The table, by the names of its columns.
        names: Of the columns with images, labels and, if given, splits.
        where: What messages call the table.
        beside: Where files are looked for.

    Returns:
        Images and labels by split.

    Raises:
        DataError: If a column or a file is missing.
    """
    for name in names:
        if name not in columns:
            raise DataError(f"{where}: {unknown_name('column', name, columns)}")
    if len(names) not in {0, 2, 3}:
        raise DataError(f"{where}: name the columns of images and labels, as TABLE:path,label")
    image, label, *split = names or guessed(columns, where)
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    unlabelled = 0
    missing: list[str] = []
    of_split = columns[split[0]] if split else ["train"] * len(columns[image])
    files = _Files(beside)
    for item, target, part in zip(columns[image], columns[label], of_split, strict=True):
        if is_missing(target):
            unlabelled += 1
            continue
        if isinstance(target, str):  # " cat" is what is left of "1.png, cat"
            target = target.strip()
        kind = split_named(str(part).strip())
        if kind is None:
            raise DataError(
                f"{where}: column {split[0]!r} must have train, val or test but has {part!r}"
            )
        named = isinstance(item, (str, Path, int, float))  # a number is no image
        path = files.find(item) if named else item
        if path is None:
            missing.append(repr(str(item)))
            continue
        images, targets = found.setdefault(kind, ([], []))
        images.append(path)
        targets.append(target)
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(columns[image])} files of column {image!r} are not"
            f" there, or there is more than one of that name: {_some(missing)}"
        )
    remarks = [f"left out: {unlabelled} rows without a label"] if unlabelled else []
    usual = {*_IMAGE, *_LABEL, *_SPLIT} - {"y"}  # which may be a place in an image
    others = [
        name
        for name in columns
        if (name.lower() in usual or (not split and _OTHER_SPLIT.match(name)))
        and name not in {image, label, *split}
    ]
    if others:
        remarks.append(f"labels are those of column {label!r}; not read: {', '.join(others)}")
    return RawData(_as_numbers(found), remarks=tuple(remarks))


def _as_numbers(
    parts: dict[str, tuple[list[Any], list[Any]]],
) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return labels that are all written as whole numbers as numbers: 2 before 10."""
    everything = (label for _, labels in parts.values() for label in labels)
    if all(isinstance(label, str) and label == str(_whole(label)) for label in everything):
        return {kind: (images, list(map(int, labels))) for kind, (images, labels) in parts.items()}
    return parts


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def guessed(columns: Mapping[str, Any], where: str, images: tuple[str, ...] = _IMAGE) -> list[str]:
    """Return the columns of images and labels, and of splits if there is one, by usual names.

    Args:
        columns: The table, by the names of its columns.
        where: What messages call it.
        images: What the column of images may be called.

    Returns:
        Two names or three.

    Raises:
        DataError: If there are no such columns.
    """
    lower = {name.lower(): name for name in columns}
    found = [
        next((lower[name] for name in options if name in lower), None)
        for options in (images, _LABEL, _SPLIT)
    ]
    if found[0] is None or found[1] is None:
        raise DataError(
            f"{where} has columns {_some(columns)}: name those of images and labels, as"
            " TABLE:path,label"
        )
    splits = {split_named(str(value).strip()) for value in columns[found[2]]} if found[2] else set()
    if splits == {None}:
        found[2] = None  # folds or the like
    return [name for name in found if name]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


class _Files:
    """Files of a table: beside it, in the working folder, or the only one of that name below it.

    Args:
        beside: The table's folder.
    """

    def __init__(self, beside: Path) -> None:
        self._beside = beside

    @cached_property
    def _below(self) -> dict[str, list[Path]]:
        """Files below the folder by name, with and without their endings."""
        found: dict[str, list[Path]] = {}
        endings = suffixes()
        for folder, _, names in os.walk(self._beside):
            for name in names:
                file = Path(folder, name)
                if file.suffix.lower() in endings:
                    for key in {file.name, file.stem}:
                        found.setdefault(key, []).append(file)
        return found

    def find(self, written: object) -> Path | None:
        """Return the file that was written; None if there is none, or several of its name."""
        name = Path(str(written).strip().replace("\\", "/")).expanduser()
        for path in (self._beside / name, name):
            if path.is_file():
                return path
        found = self._below.get(name.name, [])
        return found[0] if len(found) == 1 else None
