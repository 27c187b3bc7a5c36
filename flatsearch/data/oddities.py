"""What is odd about images once they are read, and would make a result wrong without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flatsearch.data.images import ImageItems, name_of
from flatsearch.data.stored import in_chunks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsearch.data.splits import Split

__all__ = ["oddities"]

# An image whose values span less than this share of all values' range shows nothing.
_FLAT = 0.02
_MOST_NAMED = 3


def oddities(splits: Mapping[str, Split], before: Mapping[str, Any]) -> list[str]:
    """Return sentences about images of one colour and about copies.

    Args:
        splits: The splits.
        before: Their images before they were read, which have names.

    Returns:
        None, or a sentence each.
    """
    return [*_flat(splits, before), *_copies(splits)]


def _flat(splits: Mapping[str, Split], before: Mapping[str, Any]) -> list[str]:
    """Say which images are of one colour, or nearly."""
    spans, names = [], []
    least, most = float("inf"), float("-inf")
    for name, split in splits.items():
        for images in in_chunks(split.images):
            low, high = (f(images.flatten(1), 1) for f in (torch.amin, torch.amax))
            spans.append(high.double() - low.double())
            least, most = min(least, float(low.min())), max(most, float(high.max()))
        source = before[name]
        if isinstance(source, ImageItems):
            names += [name_of(item) for item in source.items]
    flat = torch.cat(spans).le(_FLAT * (most - least)).nonzero().flatten().tolist()
    if not flat:
        return []
    shown = ", ".join(names[i] for i in flat[:_MOST_NAMED]) if names else ""
    more = ", ..." if len(flat) > _MOST_NAMED else ""
    given = f" ({shown}{more})" if shown else ""
    return [f"{len(flat)} of {sum(map(len, spans))} images are of one colour, or nearly{given}"]


def _copies(splits: Mapping[str, Split]) -> list[str]:
    """Say how many images are in the training split, too, or in several classes."""
    labels: dict[int, set[int]] = {}
    found = []
    for split in ("train", "validation", "test"):
        images, targets = splits[split].images, splits[split].targets
        keys = [hash(image.tobytes()) for some in in_chunks(images) for image in some.numpy()]
        copies = sum(key in labels for key in keys)
        if copies and split != "train":
            earlier = "training" if split == "validation" else "training or validation"
            found.append(f"{copies} of {len(keys)} {split} images are {earlier} images, too")
        for key, target in zip(keys, targets.tolist(), strict=True):
            labels.setdefault(key, set()).add(target)
    several = sum(len(classes) > 1 for classes in labels.values())
    if several:
        found.append(f"{several} images are in more than one class")
    return found
