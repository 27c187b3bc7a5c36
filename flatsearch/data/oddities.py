"""What is odd about images once they are read, and would make a result wrong without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatsearch.data.images import ImageItems, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["oddities"]

# An image whose values span less than this share of all values' range shows nothing.
_FLAT = 0.02
_CHUNK = 1024
_MOST_NAMED = 3


def oddities(
    parts: Mapping[str, tuple[Tensor, Tensor]], before: Mapping[str, tuple[Any, Tensor]]
) -> list[str]:
    """Return sentences about images of one colour and about copies.

    Args:
        parts: Images (N, C, H, W) and targets by split.
        before: The same before they were read, by which images have names.

    Returns:
        None, or a sentence each.
    """
    return [*_flat(parts, before), *_copies(parts)]


def _flat(
    parts: Mapping[str, tuple[Tensor, Tensor]], before: Mapping[str, tuple[Any, Tensor]]
) -> list[str]:
    """Say which images are of one colour, or nearly."""
    spans, names = [], []
    least, most = float("inf"), float("-inf")
    for split, (images, _) in parts.items():
        for start in range(0, len(images), _CHUNK):
            low, high = (f(images[start:][:_CHUNK].flatten(1), 1) for f in (torch.amin, torch.amax))
            spans.append(high.double() - low.double())
            least, most = min(least, float(low.min())), max(most, float(high.max()))
        source = before[split][0]
        if isinstance(source, ImageItems):
            names += [name_of(item) for item in source.items]
    flat = torch.cat(spans).le(_FLAT * (most - least)).nonzero().flatten().tolist()
    if not flat:
        return []
    shown = ", ".join(names[i] for i in flat[:_MOST_NAMED]) if names else ""
    more = ", ..." if len(flat) > _MOST_NAMED else ""
    given = f" ({shown}{more})" if shown else ""
    return [f"{len(flat)} of {sum(map(len, spans))} images are of one colour, or nearly{given}"]


def _copies(parts: Mapping[str, tuple[Tensor, Tensor]]) -> list[str]:
    """Say how many images are in the training split, too, or in several classes."""
    labels: dict[int, set[int]] = {}
    found = []
    for split in ("train", "validation", "test"):
        images, targets = parts[split]
        keys = [hash(image.numpy().tobytes()) for image in images]
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
