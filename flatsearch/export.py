"""Saving a trained candidate and loading it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatsearch.errors import SpaceError, UsageError
from flatsearch.registry import load_space
from flatsearch.space import Architecture, build_model

__all__ = ["ModelCard", "load_model", "save_model"]

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
        SpaceError: If the search space is not installed or builds another model now.
    """
    card, state = _read(Path(path))
    model = build_model(
        load_space(card.space),
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
    return model.eval(), card


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
