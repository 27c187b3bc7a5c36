"""Where images can come from: one registry, which packages of third parties add to.

A package names a `Source` in its entry points of the group "flatsearch.data_sources"; it is asked
before the sources here. `flatsearch.testing.DataSourceContract` tests it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeAlias

from flatsearch.data import datasets, metadata, npz, tables
from flatsearch.data.folder import read_folder
from flatsearch.data.named import TORCHVISION, data_names, read_digits, read_torchvision
from flatsearch.data.raw import RawData
from flatsearch.errors import DataError, unknown_name

__all__ = ["ENTRY_POINT_GROUP", "DataSource", "Source", "read", "sources"]

ENTRY_POINT_GROUP = "flatsearch.data_sources"
# What `sources` accept; a mapping has one of these for each split.
DataSource: TypeAlias = Any


@dataclass(frozen=True)
class Source:
    """A kind of data.

    Attributes:
        name: Its name, for messages; of a Python object also the data set's.
        form: What is given, in words.
        accepts: Whether something given is of this kind.
        read: Reads what is given, with the folder for downloads.
    """

    name: str
    form: str
    accepts: Callable[[Any], bool]
    read: Callable[[Any, Path], RawData]


def _key(given: Any) -> str:
    text = str(given).lower().replace("-", "_")
    return text.replace("fashionmnist", "fashion_mnist")


def _text(check: Callable[[str], bool]) -> Callable[[Any], bool]:
    return lambda given: isinstance(given, (str, Path)) and check(str(given))


def _path(check: Callable[[Path], bool]) -> Callable[[Any], bool]:
    return _text(lambda text: check(Path(text).expanduser()))


def _pair(given: Any, _: Path) -> RawData:
    if len(given) != 2:
        raise DataError(f"arrays must be a pair (images, labels) but are {len(given)} items")
    return RawData({"train": (given[0], given[1])})


# The first one that accepts what is given reads it.
_BUILT_IN = (
    Source("digits", "digits", _text(lambda t: _key(t) == "digits"), lambda *_: read_digits()),
    Source(
        "torchvision",
        "a name of torchvision (cifar10, ...)",
        _text(lambda text: _key(text) in TORCHVISION),
        lambda given, root: read_torchvision(_key(given), root),
    ),
    Source(
        "Hugging Face",
        "hf:NAME",
        _text(lambda text: text.startswith(datasets.HUGGING_FACE)),
        lambda given, _: datasets.read_by_name(given),
    ),
    Source(
        "saved Hugging Face",
        "a folder that save_to_disk wrote",
        _path(datasets.is_saved),
        lambda given, _: datasets.read_saved(Path(given).expanduser()),
    ),
    Source(
        ".npy folder",
        "a folder of x_train.npy, y_train.npy, ...",
        _path(npz.has_npy),
        lambda given, _: npz.read_npy_folder(Path(given).expanduser()),
    ),
    Source(
        "folder with metadata",
        "a folder with metadata.csv, .jsonl or .parquet",
        _path(metadata.has_metadata),
        lambda given, _: metadata.read_metadata(Path(given).expanduser()),
    ),
    Source(
        "folder",
        "a folder of class folders of images",
        _path(Path.is_dir),
        lambda given, _: read_folder(Path(given).expanduser()),
    ),
    Source(
        ".npz",
        "an .npz file",
        _path(lambda path: path.suffix.lower() == ".npz"),
        lambda given, _: npz.read_npz(Path(given).expanduser()),
    ),
    Source(
        ".npy pair",
        "IMAGES.npy,LABELS.npy",
        _text(npz.npy_pair),
        lambda given, _: npz.read_npy_pair(str(given)),
    ),
    Source(
        "table",
        "a table (labels.csv:path,label or .parquet)",
        _text(tables.is_table),
        lambda given, _: tables.read_table(str(given)),
    ),
    Source("DataFrame", "a pandas table", tables.is_frame, lambda t, _: tables.read_frame(t)),
    Source(
        "datasets",
        "a Hugging Face data set",
        datasets.is_hugging_face,
        lambda given, _: datasets.read_hugging_face(given),
    ),
    Source(
        "Dataset",
        "a map-style torch data set",
        datasets.is_map_style,
        lambda given, _: datasets.read_map_style(given),
    ),
    Source(
        "arrays", "a pair (images, labels)", lambda given: isinstance(given, (tuple, list)), _pair
    ),
)


@functools.cache
def _installed() -> tuple[Source, ...]:
    """Return the sources of other packages."""
    found: dict[str, tuple[str, Source]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in found and found[point.name][0] != point.value:
            raise DataError(
                f"data source {point.name!r} is registered twice: by {found[point.name][0]} and by"
                f" {point.value}; uninstall one"
            )
        try:
            loaded = point.load()
        except Exception as error:
            raise DataError(
                f"data source {point.name!r}: importing {point.value!r} failed:"
                f" {type(error).__name__}: {error}"
            ) from error
        if not isinstance(loaded, Source):
            raise DataError(f"data source {point.name!r}: {point.value!r} is no Source")
        found[point.name] = (point.value, loaded)
    return tuple(source for _, source in found.values())


def sources() -> tuple[Source, ...]:
    """Return all kinds of data, in the order in which they are asked."""
    return _installed() + _BUILT_IN


def read(given: DataSource, root: Path) -> tuple[RawData, str]:
    """Read a data set.

    Args:
        given: What one of `sources` accepts, or a mapping with one for each split.
        root: Where torchvision's files are, or go.

    Returns:
        What it holds, and the data set's name.

    Raises:
        DataError: If nothing reads it, or it is missing, empty or malformed.
    """
    if isinstance(given, Mapping) and not datasets.is_hugging_face(given):
        return _by_split(given, root)
    taking = [source for source in _installed() if source.accepts(given)]
    if len(taking) > 1:
        raise DataError(f"data {given!r} is read by {' and by '.join(s.name for s in taking)}")
    try:
        for source in (*taking, *_BUILT_IN):
            if source.accepts(given):
                return source.read(given, root), _name(given, source)
        raise DataError(_refusal(given))
    except PermissionError as error:
        raise DataError(f"data {str(given)!r} cannot be read: {error.strerror}") from None


def _name(given: Any, source: Source) -> str:
    if not isinstance(given, (str, Path)):
        return source.name
    return _key(given) if source.name in {"digits", "torchvision"} else str(given)


def _by_split(given: Mapping[str, Any], root: Path) -> tuple[RawData, str]:
    parts, names, raws = {}, [], []
    for key, source in given.items():
        raw, name = read(source, root)
        if key not in {"train", "validation", "test"} or set(raw.parts) != {"train"}:
            raise DataError(
                "a mapping must have data without splits of their own for train, and for"
                f" validation and test if there are any, but has {key!r} with"
                f" {', '.join(raw.parts)}"
            )
        parts[key] = raw.parts["train"]
        names.append(name)
        raws.append(raw)
    kinds = {raw.class_names for raw in raws}
    if len(kinds) > 1:
        raise DataError("the splits of the mapping have different classes")
    remarks = tuple(remark for raw in raws for remark in raw.remarks)
    return (
        RawData(parts, kinds.pop(), all(raw.may_flip for raw in raws), remarks),
        " + ".join(dict.fromkeys(names)),
    )


def _refusal(given: Any) -> str:
    # The first two are names, which a refusal lists by themselves.
    forms = ", ".join(source.form for source in (*_installed(), *_BUILT_IN[2:]))
    if not isinstance(given, (str, Path)):
        return f"data of type {type(given).__name__} are not read; accepted: {forms}"
    path = Path(given).expanduser()
    if path.is_file():
        ending = "".join(path.suffixes[-2:]).lower() or "without an ending"
        packed = {".zip", ".gz", ".tgz", ".tar", ".7z", ".rar"} & set(path.suffixes)
        hint = "unpack it and give the folder" if packed else f"accepted: {forms}"
        return f"data {str(given)!r} is a file ({ending}) that is not read; {hint}"
    if {"/", os.sep} & set(str(given)) or path.suffix:
        return f"data {str(given)!r} does not exist"
    return unknown_name("data", str(given), data_names(), also=f"; or {forms}")
