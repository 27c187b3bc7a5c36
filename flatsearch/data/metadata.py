"""Folders of images with a table in them, metadata.csv, .jsonl or .parquet, as on the Hub.

The table lies beside the images, or in every split folder, and names their files and labels. One
without labels says nothing about classes: those are the folders then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.data.folder import read_folder, split_named
from flatsearch.data.raw import RawData
from flatsearch.data.scan import image_files
from flatsearch.data.tables import guessed, read_columns, rows
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["has_metadata", "read_metadata"]

_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE = "file_name"


def has_metadata(folder: Path) -> bool:
    """Return whether a folder has tables of its images, in it or in its split folders."""
    return folder.is_dir() and bool(_tables(folder))


def read_metadata(folder: Path) -> RawData:
    """Read the images that the tables of a folder name; its class folders if none has labels.

    Returns:
        Files and labels by split.

    Raises:
        DataError: If a table cannot be read, or names files that are not there.
    """
    tables = {split: (file, dict(_read(file))) for split, file in _tables(folder).items()}
    if not any(_labels(columns) for _, columns in tables.values()):
        return read_folder(folder)
    parts: dict[str, tuple[list[Any], list[Any]]] = {}
    remarks: list[str] = []
    named = 0
    for split, (file, columns) in tables.items():
        if not _labels(columns):
            remarks.append(f"left out: {file.relative_to(folder)} and its images have no labels")
            continue
        image, label, *column = guessed(columns, repr(str(file)), images=(_FILE,))
        if not column:
            inside = [split or split_named(Path(str(name)).parts[0]) for name in columns[image]]
            columns["split"] = inside if all(inside) else ["train"] * len(inside)
            column = ["split"]
        raw = rows(columns, (image, label, *column), repr(str(file)), file.parent)
        for kind, (images, labels) in raw.parts.items():
            known = parts.setdefault(kind, ([], []))
            known[0].extend(images)
            known[1].extend(labels)
            named += len(images)
        remarks += raw.remarks
    files, left_out = image_files(folder)
    if len(files) > named:
        remarks.append(f"left out: {len(files) - named} images that no metadata names")
    return RawData(parts, remarks=("labels are those of the metadata", *left_out, *remarks))


def _tables(folder: Path) -> dict[str | None, Path]:
    """Return the tables by the split that they are of; None where that is for the table to say."""
    found: dict[str | None, Path] = {}
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:  # who reads it as a folder says so
        return {}
    for place, split in [(folder, None), *((path, split_named(path.name)) for path in inner)]:
        if place is not folder and split is None:
            continue
        # Of a folder that must not be read this finds nothing.
        here = sorted(file for file in place.glob("metadata.*") if file.name in _NAMES)
        if len(here) > 1 or (here and split in found):
            raise DataError(
                f"folder {str(folder)!r} has several tables of the same images: {here[0].name}, ..."
            )
        if here:
            found[split] = here[0]
    if None in found and len(found) > 1:
        raise DataError(
            f"folder {str(folder)!r} has {found[None].name} and another one in a split folder;"
            " remove one"
        )
    return found


def _read(file: Path) -> Mapping[str, Sequence[Any]]:
    if file.suffix != ".jsonl":
        return read_columns(file)
    try:
        read = [json.loads(line) for line in file.read_text("utf-8-sig").splitlines() if line]
        names = dict.fromkeys(name for row in read for name in row)
        return {name: [row.get(name) for row in read] for name in names}
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise DataError(f"table {str(file)!r} cannot be read: {error}") from None


def _labels(columns: Mapping[str, Any]) -> bool:
    try:
        guessed(columns, "", images=(_FILE,))
    except DataError:
        return False
    return True
