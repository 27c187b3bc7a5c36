"""Saving a trained candidate and loading it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatsearch.errors import SpaceError, UsageError
from flatsearch.registry import load_space
from flatsearch.space import Architecture, build_model

if TYPE_CHECKING:
    from flatsearch.data import ImageData

__all__ = ["METADATA", "STATE_DICT", "ModelCard", "build_from_card", "load_model", "save_model"]

# The card's name inside of exported files.
METADATA = "flatsearch.json"
# Ending of a plain state dictionary, whose card is beside it.
STATE_DICT = ".pth"
_CARD_FORMAT = "flatsearch-card"
_FORMAT = "flatsearch-model"
_VERSION = 1


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

    def to_json(self) -> str:
        """Return the card as exported files hold it."""
        return json.dumps({"format": _CARD_FORMAT, "version": _VERSION, "card": asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes | None, path: Path) -> ModelCard:
        """Return the card that `to_json` wrote.

        Args:
            text: From the file; None or empty where it has none.
            path: Of the file, for messages.

        Returns:
            The card.

        Raises:
            UsageError: If there is no card, it is damaged, or of a newer version.
        """
        if not text:
            raise UsageError(f"{str(path)!r} has no flatsearch metadata: it was not exported by it")
        try:
            fields: Any = json.loads(text)
            version, values = int(fields["version"]), dict(fields["card"])
            if version > _VERSION:
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


def save_model(model: nn.Module, card: ModelCard, path: str | Path) -> None:
    """Save weights and card to one file of tensors and plain values, without pickled code.

    Args:
        model: The trained model.
        card: How to rebuild it.
        path: The file to write.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    fields = {"format": _FORMAT, "version": _VERSION, "card": asdict(card), "state_dict": state}
    torch.save(fields, path)


def load_model(path: str | Path) -> tuple[nn.Module, ModelCard]:
    """Load a model that `save_model` wrote.

    Args:
        path: The file.

    Returns:
        The model on the CPU in eval mode, and its card.

    Raises:
        UsageError: If the file is missing, is not such a file, or is from a newer version.
    """
    card, state = _read(Path(path))
    return build_from_card(card, state, Path(path)), card


def build_from_card(card: ModelCard, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Return the network that a card describes, with given weights.

    Args:
        card: The card.
        state: Weights by name.
        path: Where they are from, for the message.

    Returns:
        The model on the CPU in eval mode.

    Raises:
        SpaceError: If the search space is not installed or builds another model now.
    """
    try:
        space = load_space(card.space)
    except SpaceError as error:
        raise SpaceError(
            f"{str(path)!r} needs its search space {card.space!r} (a .pt2 or .onnx export would"
            f" not): {error}"
        ) from None
    model = build_model(
        space,
        Architecture.from_json(card.architecture),
        in_channels=card.in_channels,
        num_classes=card.num_classes,
        image_size=card.image_size,
    )
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise SpaceError(
            f"{str(path)!r}: search space {card.space!r} now builds another model:"
            f" {' '.join(str(error).split())[:200]}"
        ) from None
    return model.eval()


def _read(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Return a file's card and weights."""
    what = f"{str(path)!r} is not a model saved by flatsearch"
    if not path.exists():
        raise UsageError(f"model file {str(path)!r} does not exist")
    try:
        fields: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way inside the unpickler
        raise UsageError(f"{what}: {type(error).__name__} while reading it") from None
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        raise UsageError(what)
    version = fields.get("version")
    if isinstance(version, int) and version > _VERSION:
        raise UsageError(f"{str(path)!r} was saved by a newer flatsearch (format {version})")
    try:
        return ModelCard(**fields["card"]), dict(fields["state_dict"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{what}: {type(error).__name__}: {error}") from None
