"""The card of a model: what its file says of the data, the space and the architecture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatsearch.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.data.splits import ImageData
    from flatsearch.spaces.space import Architecture

__all__ = ["METADATA", "STATE_DICT", "ModelCard"]

# The card's name inside of exported files.
METADATA = "flatsearch.json"
# Ending of a plain state dictionary, whose card is beside it.
STATE_DICT = ".pth"
_CARD_FORMAT = "flatsearch-card"
VERSION = 1


@dataclass(frozen=True)
class ModelCard:
    """What is needed to rebuild a model and to feed it.

    Attributes:
        space: The search space's name or reference.
        architecture: Canonical JSON of the architecture.
        in_channels: Channels of the images.
        num_classes: Length of the logits.
        image_size: Height and width of the images.
        data: Name of the data set it was trained on.
        class_names: One per class.
        mean: Per-channel mean to subtract from stored pixel values.
        std: Per-channel standard deviation to divide by.
        pixels: Type of the stored pixel values: "uint8" for 0 to 255, or "float32".
    """

    space: str
    architecture: str
    in_channels: int
    num_classes: int
    image_size: int
    data: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: str = "uint8"

    def __post_init__(self) -> None:
        """Refuse what no model has: a card comes from a file.

        Raises:
            ValueError: If the parts do not fit each other; says which.
        """
        sizes = (self.in_channels, self.num_classes, self.image_size)
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"{sizes} are no sizes")
        texts = (self.space, self.architecture, self.data, *self.class_names)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name is no text")
        numbers = (*self.mean, *self.std)
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError("the normalisation has something else than numbers")
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} names of {self.num_classes} classes")
        if {len(self.mean), len(self.std)} - {1, self.in_channels}:
            raise ValueError(f"the normalisation is not of {self.in_channels} channels")

    @classmethod
    def of(cls, data: ImageData, space: str, architecture: Architecture) -> ModelCard:
        """Return the card of an architecture that is trained on some data."""
        return cls(
            space=space,
            architecture=architecture.to_json(),
            in_channels=data.in_channels,
            num_classes=data.num_classes,
            image_size=data.image_size,
            data=data.name,
            class_names=data.class_names,
            mean=tuple(data.train.mean.flatten().tolist()),
            std=tuple(data.train.std.flatten().tolist()),
            pixels=data.pixels,
        )

    def require_fit(self, name: str, data: ImageData) -> None:
        """Refuse data of other images or classes than the model, whose name is given, is for."""
        takes = (self.in_channels, self.image_size, self.num_classes)
        has = (data.in_channels, data.image_size, data.num_classes)
        if takes != has:
            words = "{} channels, {} pixels a side and {} classes"
            raise UsageError(
                f"{name!r} is for images of {words.format(*takes)}, but data {data.name!r} has"
                f" {words.format(*has)}"
            )

    def to_json(self) -> str:
        """Return the card as exported files hold it."""
        return json.dumps({"format": _CARD_FORMAT, "version": VERSION, "card": asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes | None, path: Path) -> ModelCard:
        """Return the card that `to_json` wrote into a file; None or empty is no card.

        Raises:
            UsageError: If there is no card, it is damaged, or of a newer version.
        """
        if not text:
            raise UsageError(f"{str(path)!r} has no flatsearch metadata: it was not exported by it")
        try:
            fields: Any = json.loads(text)
            version, values = int(fields["version"]), dict(fields["card"])
            if version > VERSION:
                raise UsageError(
                    f"{str(path)!r} was exported by a newer flatsearch (format {version})"
                )
            card: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**card)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{str(path)!r} has damaged flatsearch metadata: {type(error).__name__}: {error}"
            ) from None

    def normalise(self, images: Tensor) -> Tensor:
        """Return float32 inputs from stored pixel values (N, C, H, W)."""
        mean, std = (torch.tensor(v, device=images.device) for v in (self.mean, self.std))
        return (images.float() - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
