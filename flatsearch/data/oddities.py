"""What is odd about images once they are read, and would make a result wrong without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatsearch.data.images import ImageItems, name_of
from flatsearch.data.stored import in_chunks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flatsearch.data.splits import Split

__all__ = ["oddities"]

# Pixels of two splits whose usual largest value differs by more are scaled differently.
_OTHER_SCALE = 4.0
# An image whose values span less than this share of all values' range shows nothing.
_FLAT = 0.02
_MOST_NAMED = 3


def oddities(splits: Mapping[str, Split], before: Mapping[str, Any]) -> list[str]:
    """Return sentences about images of one colour and about copies; every image is read once.

    Args:
        splits: The splits: train, validation and test.
        before: Their images before they were read, which have names.

    Returns:
        None, or a sentence each.
    """
    lows: list[float] = []
    highs: list[float] = []
    names: list[str] = []
    keys: dict[str, list[int]] = {name: [] for name in ("train", "validation", "test")}
    for name, found in keys.items():
        for images in in_chunks(splits[name].images):
            lows += images.flatten(1).amin(1).tolist()
            highs += images.flatten(1).amax(1).tolist()
            found += [hash(image.tobytes()) for image in images.numpy()]
        if isinstance(before[name], ImageItems):
            names += [name_of(item) for item in before[name].items]
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (lows, highs))
    ends = np.cumsum([len(found) for found in keys.values()])
    parts = np.split(high.numpy(), ends[:-1])
    return [*_scales(parts, float(low.min())), *_flat(low, high, names), *_copies(splits, keys)]


def _scales(highs: Sequence[np.ndarray[Any, Any]], low: float) -> list[str]:
    """Say which splits are scaled otherwise than the training images: 0 to 1 beside 0 to 255."""
    usual = [float(np.median(high)) for high in highs]
    if low < 0:  # already centred, perhaps
        return []
    return [
        f"{split} images have pixels up to {value:.3g}, training images up to {usual[0]:.3g}:"
        " are they scaled in the same way?"
        for split, value in zip(("validation", "test"), usual[1:], strict=True)
        if max(value, usual[0]) > _OTHER_SCALE * min(value, usual[0])
    ]


def _flat(low: Tensor, high: Tensor, names: Sequence[str]) -> list[str]:
    """Say which images are of one colour, or nearly, from the ends of their values."""
    spread = high.max() - low.min()
    flat = (high - low).le(_FLAT * spread).nonzero().flatten().tolist()
    if not flat:
        return []
    shown = ", ".join(names[i] for i in flat[:_MOST_NAMED]) if names else ""
    more = ", ..." if len(flat) > _MOST_NAMED else ""
    given = f" ({shown}{more})" if shown else ""
    return [f"{len(flat)} of {len(low)} images are of one colour, or nearly{given}"]


def _copies(splits: Mapping[str, Split], keys: Mapping[str, list[int]]) -> list[str]:
    """Say how many images are in the training split, too, or in several classes."""
    labels: dict[int, set[int]] = {}
    found = []
    for split, own in keys.items():
        copies = sum(key in labels for key in own)
        if copies and split != "train":
            earlier = "training" if split == "validation" else "training or validation"
            found.append(f"{copies} of {len(own)} {split} images are {earlier} images, too")
        for key, target in zip(own, splits[split].targets.tolist(), strict=True):
            labels.setdefault(key, set()).add(target)
    several = sum(len(classes) > 1 for classes in labels.values())
    if several:
        found.append(f"{several} image{' is' if several == 1 else 's are'} in more than one class")
    return found
