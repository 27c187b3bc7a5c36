"""Images by name, folder or array as seeded splits that live on the device.

Every split is two tensors, moved to the device once: the sets this tool is for fit into
memory, and a candidate that trains for a minute should not wait for a data loader. The test
split is made here but read by nothing in a search.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flatsearch.data.images import in_memory, some
from flatsearch.data.oddities import oddities
from flatsearch.data.preparing import Images, prepare
from flatsearch.data.sources import DataSource, read
from flatsearch.data.splits import ImageData, Split
from flatsearch.errors import COUNT, FRACTION, IMAGE_SIZE, SEED, DataError

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
    root: str | Path = "data",
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
        root: Where torchvision's files are, or go.
        device: Where the tensors live.

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
    raw, name = read(source, Path(root))
    prepared = prepare(raw, image_size, f"data {name!r}")
    parts, classes = dict(prepared.parts), prepared.class_names
    if len(classes) < 2:
        raise DataError(f"data {name!r} must have at least 2 classes but has {classes}")
    drawn = tuple(split for split in ("validation", "test") if split not in parts)
    if "test" in drawn:
        # The same for every seed: what one run tests on, no other run has trained on.
        parts["train"], parts["test"] = _stratified(
            parts["train"], _TEST_FRACTION, 0, "test", classes
        )
    if "validation" in drawn:
        parts["train"], parts["validation"] = _stratified(
            parts["train"], validation_fraction, seed, "validation", classes
        )
    read_parts = {split: (in_memory(images), targets) for split, (images, targets) in parts.items()}
    train = read_parts["train"]
    for what in ("validation", "test"):
        images = read_parts[what][0]
        given, expected = (f"{tuple(part.shape[1:])} {part.dtype}" for part in (images, train[0]))
        if given != expected:
            raise DataError(
                f"data {name!r}: {what} images are {given} but training images are {expected}"
            )
    if len(train[1]) < 4:
        raise DataError(
            f"data {name!r} must leave at least 4 training images: {len(train[1])} left"
        )
    mean, std = _statistics(train[0])
    splits = {split: Split(*part, mean, std) for split, part in read_parts.items()}
    data = ImageData(
        name=name,
        class_names=classes,
        **splits,
        probe=splits["train"].sample(probe_size, seed),
        may_flip=raw.may_flip,
        note=prepared.note,
        pixels=prepared.pixels,
        drawn=drawn,
        remarks=(*raw.remarks, *oddities(read_parts, parts)),
    )
    for remark in data.remarks:
        _log.warning("data %s: %s", name, remark)
    return data.to(device)


def _stratified(
    part: tuple[Images, Tensor],
    fraction: float,
    seed: int,
    what: str,
    class_names: tuple[str, ...],
) -> tuple[tuple[Images, Tensor], tuple[Images, Tensor]]:
    """Split (rest, held out), each class in proportion."""
    from sklearn.model_selection import train_test_split

    images, targets = part
    try:
        rest, held = train_test_split(
            np.arange(len(targets)), test_size=fraction, random_state=seed, stratify=targets.numpy()
        )
    except ValueError:
        counts = torch.bincount(targets, minlength=len(class_names))
        rarest = int(counts.argmin())
        raise DataError(
            f"{len(targets)} images, {int(counts[rarest])} of the rarest class"
            f" ({class_names[rarest]}), are too few for a {what} split of {fraction:g} with every"
            " class in both parts"
        ) from None
    rest, held = torch.from_numpy(np.sort(rest)), torch.from_numpy(np.sort(held))
    return (some(images, rest), targets[rest]), (some(images, held), targets[held])


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return per-channel mean and standard deviation, (1, C, 1, 1); 1 for a constant channel."""
    means, squares, size = [], [], 1024
    for start in range(0, len(images), size):
        chunk = images[start : start + size].double()
        means.append(chunk.sum((0, 2, 3)))
        squares.append(chunk.square().sum((0, 2, 3)))
    count = images.numel() / images.shape[1]
    mean = torch.stack(means).sum(0) / count
    variance = (torch.stack(squares).sum(0) / count - mean.square()).clamp(min=0)
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)
