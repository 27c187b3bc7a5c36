"""Data sets that give one (image, label) at a time: torch's map-style ones and Hugging Face's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from flatsearch.data.folder import split_named
from flatsearch.data.raw import RawData
from flatsearch.errors import DataError, UsageError

__all__ = [
    "HUGGING_FACE",
    "is_hugging_face",
    "is_map_style",
    "is_saved",
    "read_by_name",
    "read_hugging_face",
    "read_map_style",
    "read_saved",
]

HUGGING_FACE = "hf:"
_SAVED = ("dataset_dict.json", "state.json")
# Images that are asked for twice, to see whether they are the same.
_TRIED = 4


class _Entry:
    """One image of a data set, read when it is called."""

    def __init__(self, dataset: Any, index: int, key: Any) -> None:
        self._dataset, self._index, self._key = dataset, index, key
        self.name = f"{index} of {type(dataset).__name__}"
        # Of Hugging Face's: what its rows are, and how they were made.
        known = getattr(dataset, "_fingerprint", None)
        self.identity = None if known is None else f"{known} {index} {key}"

    def __call__(self) -> Any:
        return self._dataset[self._index][self._key]


def is_map_style(given: Any) -> bool:
    """Return whether something has a length and gives (image, label) by index."""
    from torch.utils.data import Dataset

    return isinstance(given, Dataset) and hasattr(given, "__len__")


def read_map_style(dataset: Any) -> RawData:
    """List a torch data set's images and labels.

    Args:
        dataset: It gives (image, label) by index.

    Returns:
        Its images, which are read when they are needed, and labels.

    Raises:
        DataError: If it gives something else, or another image each time.
    """
    kind = type(dataset).__name__
    if len(dataset) == 0:
        raise DataError(f"{kind} is empty")
    for index in range(0, len(dataset), max(1, len(dataset) // _TRIED)):
        pair, again = dataset[index], dataset[index]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise DataError(f"{kind} must give (image, label) but gives {type(pair).__name__}")
        if not np.array_equal(np.asarray(pair[0]), np.asarray(again[0])):
            raise DataError(
                f"{kind} gives another image each time it is asked for number {index}: leave random"
                " transforms to the training (`augment`)"
            )
    labels = _listed_labels(dataset)
    if labels is None:
        labels = np.asarray([np.asarray(dataset[index][1]).item() for index in range(len(dataset))])
    images = _listed_files(dataset) or [_Entry(dataset, i, 0) for i in range(len(dataset))]
    names = _class_names(dataset)
    if names is None or labels.dtype.kind not in "iu" or len(names) <= int(labels.max()):
        return RawData({"train": (images, labels)})
    if isinstance(dataset, (ConcatDataset, Subset)):  # which may have some of the classes only
        return RawData({"train": (images, [names[label] for label in labels])})
    return RawData({"train": (images, labels)}, names)


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of a data set, or of those that it is put together from."""
    if isinstance(dataset, Subset):
        return _class_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        kinds = {_class_names(part) for part in dataset.datasets}
        return kinds.pop() if len(kinds) == 1 else None
    names = getattr(dataset, "classes", None)
    return None if names is None else tuple(map(str, names))


def _listed_labels(dataset: Any) -> np.ndarray[Any, Any] | None:
    """Return the labels that a data set lists, if they are those that it gives."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for listed in _lists(dataset, "targets", "labels", "_labels", "y", "_samples", "samples"):
        pairs = isinstance(listed[0], tuple) and len(listed[0]) == 2  # of a file and a label
        found = np.asarray([label for _, label in listed] if pairs else listed)
        tried = range(0, len(dataset), max(1, len(dataset) // _TRIED))
        if found.ndim == 1 and all(found[i] == np.asarray(dataset[i][1]) for i in tried):
            return found
    return None


def _listed_files(dataset: Any) -> list[Any] | None:
    """Return the files that a data set lists, if its images are those files, as they are."""
    tried = range(0, len(dataset), max(1, len(dataset) // _TRIED))
    for listed in _lists(dataset, "_samples", "samples", "_image_files", "_images"):
        files = [entry[0] if isinstance(entry, tuple) else entry for entry in listed]
        if all(_is_file_of(dataset[i][0], files[i]) for i in tried):
            return files
    return None


def _is_file_of(image: Any, file: Any) -> bool:
    """Return whether a Pillow image is what a file holds."""
    if not isinstance(image, Image.Image) or not isinstance(file, (str, Path)):
        return False
    try:
        with Image.open(file) as held:
            return held.mode == image.mode and held.tobytes() == image.tobytes()
    except OSError:
        return False


def _lists(dataset: Any, *names: str) -> Iterator[Any]:
    """Yield what a data set has by these names, with an entry for each of its images."""
    for name in names:
        listed = getattr(dataset, name, None)
        if isinstance(listed, (Sequence, np.ndarray, Tensor)) and len(listed) == len(dataset):
            yield listed


def is_hugging_face(given: Any) -> bool:
    """Return whether something is a `datasets.Dataset` or `DatasetDict`."""
    return type(given).__module__.split(".")[0] == "datasets"


def is_saved(path: Path) -> bool:
    """Return whether a folder is what `save_to_disk` of Hugging Face's datasets wrote."""
    return any((path / name).is_file() for name in _SAVED)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "Hugging Face's data sets need datasets: pip install 'flatsearch[huggingface]'"
        ) from None
    return datasets


def read_saved(path: Path) -> RawData:
    """Read what `save_to_disk` wrote."""
    try:
        return read_hugging_face(_datasets().load_from_disk(str(path)))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {type(error).__name__} {error}") from None


def read_by_name(reference: str) -> RawData:
    """Read hf:NAME or hf:NAME:CONFIGURATION, downloaded or from the cache."""
    name, _, configuration = reference.removeprefix(HUGGING_FACE).partition(":")
    if not name.strip("/ "):
        raise DataError(f"data {reference!r} must be hf:NAME or hf:NAME:CONFIGURATION")
    datasets = _datasets()
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells of every attempt
    try:
        found = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # anything between here and the hub can fail
        reason = " ".join(str(error).split())[:200]
        hint = ""
        if isinstance(error, ConnectionError):
            hint = (
                "; without a network only what was loaded before can be, or a folder of"
                " `save_to_disk`"
            )
        raise DataError(f"data {reference!r} cannot be loaded: {reason}{hint}") from None
    finally:
        log.setLevel(level)
    return read_hugging_face(found)


def read_hugging_face(found: Any) -> RawData:
    """List images and labels of a `datasets.Dataset` or `DatasetDict`."""
    datasets = _datasets()
    splits = dict(found) if isinstance(found, Mapping) else {"train": found}
    named: dict[str, Any] = {}
    left_out = []
    for name, part in splits.items():
        split = split_named(name)
        if split is None or split in named:
            left_out.append(f"split {name} ({len(part)} images)")
        else:
            named[split] = part
    if "train" not in named:
        raise DataError(f"the data set has splits {', '.join(splits)} but no train")
    features = named["train"].features
    image = _column(features, datasets.Image, ("image", "img"), "images")
    label = _column(features, datasets.ClassLabel, ("label", "labels", "fine_label"), "labels")
    classes = getattr(features[label], "names", None)
    if isinstance(features[image], datasets.Image):  # the files themselves, for the one reader
        undecoded = datasets.Image(decode=False)
        named = {split: part.cast_column(image, undecoded) for split, part in named.items()}
    parts = {
        split: ([_Entry(part, i, image) for i in range(len(part))], list(part[label]))
        for split, part in named.items()
    }
    for split, (_, labels) in parts.items():
        if classes and min(labels) < 0:
            raise DataError(f"split {split} of the data set has no labels (they are -1)")
    remarks = (f"left out: {', '.join(left_out)}",) if left_out else ()
    return RawData(parts, tuple(classes) if classes else None, remarks=remarks)


def _column(features: Mapping[str, Any], kind: type, names: tuple[str, ...], what: str) -> str:
    """Return the column of a kind; of several the usual one."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    usual = [name for name in names if name in (found or features)]
    if len(found) == 1 or usual:
        return found[0] if len(found) == 1 else usual[0]
    raise DataError(
        f"which column of the data set has the {what} cannot be told: it has {', '.join(features)}"
    )
