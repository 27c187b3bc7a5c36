"""Images by name, folder or array as seeded splits that live on the device.

Every split is two tensors, moved to the device once: most sets this tool is for fit into memory,
and a candidate that trains for a minute should not wait for a data loader. Images of larger ones
are kept in a file (`flatsearch.data.stored`), and their batches read ahead, with the same numbers.
The test split is made here but read by nothing in a search.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatsearch.data.oddities import oddities
from flatsearch.data.preparing import prepare
from flatsearch.data.sources import DataSource, read
from flatsearch.data.splits import ImageData, Split
from flatsearch.data.stored import StoredImages, free_memory, in_chunks, n_bytes, store
from flatsearch.errors import COUNT, FRACTION, IMAGE_SIZE, SEED, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsearch.data.preparing import Images

__all__ = ["load_data"]

_log = logging.getLogger(__name__)
_TEST_FRACTION = 0.2


def load_data(
    source: DataSource,
    *,
    image_size: int | None = None,
    validation_fraction: float = 0.2,
    probe_size: int = 256,
    seed: int = 0,
    normalisation: str | None = None,
    root: str | Path = "data",
    memory: int | None = None,
    device: torch.device | str = "cpu",
) -> ImageData:
    """Read a data set and split it.

    Splits that the source has (a torchvision set's test part, `train/`, `val/` and `test/`
    folders, `x_test` arrays) are kept; the others are drawn, stratified by class. The
    validation split is `validation_fraction` of the training data, a missing test split a
    fifth of all data.

    Args:
        source: "digits" (embedded); a torchvision name such as "cifar10" (downloaded into `root`
            when it is not there); a folder of class folders of images; a table
            "labels.csv:path,label"; an .npz file or "x.npy,y.npy"; "hf:NAME"; a pair (images,
            labels) of arrays, (N, H, W), (N, H, W, C) or (N, C, H, W), or of a list of files or
            images; a pandas table, a torch or Hugging Face data set; what the sources of other
            packages take; or a mapping with one of these for train, validation and test.
        image_size: Height and width to resize to. Where None, the images' own size, the median
            one where they differ, and at most 64.
        validation_fraction: Of the training data, in (0, 1).
        probe_size: Training images kept as the probe; all of them where there are fewer.
        seed: Of validation split and probe; a drawn test split does not depend on it.
        normalisation: What pixels are normalised by; see `ImageData.normalised`.
        root: Where torchvision's files are, or go, and the file of images that are too large for
            the memory.
        memory: The most bytes of pixels to keep in memory, half of what is free where None; those
            of larger data sets are read from a file, batch by batch.
        device: Where the tensors live. Images stay in the host's memory, or in the file, where they
            would take more than half of what is free on a GPU.

    Returns:
        The splits.

    Raises:
        DataError: If the source is unknown, missing, empty or malformed.
        SettingsError: If a number is out of range.

    Example:
        >>> data = load_data("digits")
        >>> data.num_classes, data.in_channels, data.image_size, len(data.probe)
        (10, 1, 8, 256)
    """
    if image_size is not None:
        IMAGE_SIZE.check("image_size", image_size)
    FRACTION.check("validation_fraction", validation_fraction)
    COUNT.check("probe_size", probe_size)
    SEED.check("seed", seed)
    if memory is not None:
        COUNT.check("memory", memory)
    raw, name = read(source, Path(root))
    prepared = prepare(raw, image_size, f"data {name!r}")
    classes, remarks = prepared.class_names, list(raw.remarks)
    if len(classes) < 2:
        raise DataError(f"data {name!r} must have at least 2 classes but has {classes}")
    same = Counter(name.casefold().strip() for name in classes)
    if alike := [name for name in classes if same[name.casefold().strip()] > 1]:
        remarks.append(f"classes that differ in case only: {', '.join(alike)}")
    sources = {split: images for split, (images, _) in prepared.parts.items()}
    _require_one_form(sources, name)
    stored: Mapping[str, StoredImages] = {}
    whole, most = n_bytes(sources.values()), free_memory() // 2 if memory is None else memory
    if whole > most:
        folder = Path(root) / "stored"
        stored = store(sources, folder, f"data {name!r}")
        remarks.append(
            f"{whole:,} bytes of pixels are more than {most:,} of memory: they are read from"
            f" {str(folder)!r}, batch by batch"
        )
    parts = {
        split: _Part(images, targets, stored.get(split))
        for split, (images, targets) in prepared.parts.items()
    }
    drawn = tuple(split for split in ("validation", "test") if split not in parts)
    if "test" in drawn:
        # The same for every seed: what one run tests on, no other run has trained on.
        parts["train"], parts["test"] = _stratified(
            parts["train"], _TEST_FRACTION, 0, "test", classes, name
        )
    if "validation" in drawn:
        parts["train"], parts["validation"] = _stratified(
            parts["train"], validation_fraction, seed, "validation", classes, name
        )
    if len(parts["train"].targets) < 4:
        raise DataError(
            f"data {name!r} must leave at least 4 training images:"
            f" {len(parts['train'].targets)} left"
        )
    read_parts = {split: part.read() for split, part in parts.items()}
    mean, std = _statistics(read_parts["train"])
    splits = {
        split: Split(images, parts[split].targets, mean, std)
        for split, images in read_parts.items()
    }
    data = ImageData(
        name=name,
        class_names=classes,
        **splits,
        probe=splits["train"].sample(probe_size, seed),
        may_flip=raw.may_flip,
        note=prepared.note,
        pixels=prepared.pixels,
        drawn=drawn,
        remarks=(*remarks, *oddities(splits, {s: part.source for s, part in parts.items()})),
    )
    for remark in data.remarks:
        _log.warning("data %s: %s", name, remark)
    return data.normalised(normalisation).to(device)


@dataclass(frozen=True)
class _Part:
    """A split that has not been read.

    Attributes:
        source: Its images.
        targets: Its classes, (N,).
        stored: The images in a file, if they are too large for the memory.
    """

    source: Images
    targets: Tensor
    stored: StoredImages | None

    def take(self, index: np.ndarray[Any, Any]) -> _Part:
        rows = torch.from_numpy(index)
        stored = None if self.stored is None else self.stored.take(rows)
        return _Part(self.source.take(index), self.targets[rows], stored)

    def read(self) -> Tensor | StoredImages:
        return self.source[:] if self.stored is None else self.stored


def _require_one_form(sources: Mapping[str, Images], name: str) -> None:
    """Refuse splits whose images are not as those of the training are."""
    forms = {split: f"{tuple(part.shape[1:])} {part.dtype}" for split, part in sources.items()}
    for split, form in forms.items():
        if form != forms["train"]:
            raise DataError(
                f"data {name!r}: {split} images are {form} but training images are {forms['train']}"
            )


def _stratified(
    part: _Part,
    fraction: float,
    seed: int,
    what: str,
    class_names: tuple[str, ...],
    name: str,
) -> tuple[_Part, _Part]:
    """Split (rest, held out), each class in proportion."""
    from sklearn.model_selection import train_test_split

    targets = part.targets
    try:
        rest, held = train_test_split(
            np.arange(len(targets)), test_size=fraction, random_state=seed, stratify=targets.numpy()
        )
    except ValueError:
        counts = torch.bincount(targets, minlength=len(class_names))
        rarest = int(counts.argmin())
        raise DataError(
            f"data {name!r}: {len(targets)} images, {int(counts[rarest])} of the rarest class"
            f" ({class_names[rarest]}), are too few for a {what} split of {fraction:g} with every"
            " class in both parts"
        ) from None
    return part.take(np.sort(rest)), part.take(np.sort(held))


def _statistics(images: Tensor | StoredImages) -> tuple[Tensor, Tensor]:
    """Return per-channel mean and standard deviation, (1, C, 1, 1); 1 for a constant channel."""
    # Numbers, not tensors, are kept: those would lie between what is freed, which then is no use.
    sums, squares = [], []
    for chunk in in_chunks(images):
        values = chunk.double()
        sums.append(values.sum((0, 2, 3)).tolist())
        squares.append(values.square_().sum((0, 2, 3)).tolist())
    count = prod(images.shape) / images.shape[1]
    mean, square = (torch.tensor(n, dtype=torch.float64).sum(0) / count for n in (sums, squares))
    variance = (square - mean.square()).clamp(min=0)
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)
