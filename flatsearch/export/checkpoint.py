"""A trained model with its card in one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from flatsearch.errors import SpaceError, UsageError
from flatsearch.export.card import VERSION, ModelCard
from flatsearch.spaces.registry import load_space
from flatsearch.spaces.space import Architecture, build_model
from flatsearch.spaces.weights import read_tensors

__all__ = ["build_from_card", "load_model", "save_model"]

_FORMAT = "flatsearch-model"


def save_model(model: nn.Module, card: ModelCard, path: str | Path) -> None:
    """Save weights and card to one file of tensors and plain values, without pickled code."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    fields = {"format": _FORMAT, "version": VERSION, "card": asdict(card), "state_dict": state}
    torch.save(fields, path)


def load_model(path: str | Path) -> tuple[nn.Module, ModelCard]:
    """Return the model that `save_model` wrote, on the CPU in eval mode, and its card.

    Raises:
        UsageError: If the file is missing, is not such a file, or is from a newer version.
    """
    card, state = _read(Path(path))
    return build_from_card(card, state, Path(path)), card


def build_from_card(card: ModelCard, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Return the network that a card describes, with the weights of a file, in eval mode.

    Raises:
        SpaceError: If the search space is not installed or builds another model now.
    """
    try:
        space = load_space(card.space)
        # The weights that training began with are not needed any more.
        space = getattr(space, "untrained", lambda: space)()
        model = build_model(
            space,
            Architecture.from_json(card.architecture),
            in_channels=card.in_channels,
            num_classes=card.num_classes,
            image_size=card.image_size,
        )
    except UsageError as error:
        raise SpaceError(
            f"{str(path)!r} needs its search space {card.space!r} (a .pt2 or .onnx export would"
            f" not): {error}"
        ) from None
    try:
        model.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise SpaceError(
            f"{str(path)!r}: search space {card.space!r} now builds another model:"
            f" {' '.join(str(error).split())[:200]}"
        ) from None
    return model.eval()


def _read(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """Return a file's card and weights."""
    ours = "a model saved by flatsearch"
    what = f"{str(path)!r} is not {ours}"
    if not path.exists():
        raise UsageError(f"model file {str(path)!r} does not exist")
    fields = read_tensors(path, ours)
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        raise UsageError(what)
    version = fields.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UsageError(f"{str(path)!r} was saved by a newer flatsearch (format {version})")
    try:
        return ModelCard(**fields["card"]), dict(fields["state_dict"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{what}: {type(error).__name__}: {error}") from None
