"""A model and images for `flatsearch measure`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatsearch.data.loading import load_data
from flatsearch.errors import UsageError, unknown_name
from flatsearch.export.checkpoint import load_model
from flatsearch.export.programs import exported_card, load_exported
from flatsearch.networks.inference import eval_mode

if TYPE_CHECKING:
    from flatsearch.data.splits import ImageData
    from flatsearch.export.card import ModelCard

__all__ = ["load_for_measuring"]

_TORCHVISION = "torchvision:"


def load_for_measuring(
    model: str,
    data: str,
    *,
    samples: int,
    image_size: int | None = None,
    weights: str | None = None,
    seed: int = 0,
    root: str | Path = "data",
) -> tuple[nn.Module, Tensor, Tensor, str]:
    """Load a model and the training images to measure it on.

    Args:
        model: A file that `save_model` wrote, a `.pt2` file that `torch.export.save` wrote, or
            "torchvision:NAME".
        data: See `flatsearch.load_data`.
        samples: At most this many training images.
        image_size: Height and width to resize to; a saved model's own where None.
        weights: Of a torchvision model: the name of pretrained ones, or a file with a state
            dictionary; random ones (seeded) where None.
        seed: Of the split and of random weights.
        root: Where torchvision data sets are.

    Returns:
        The model, inputs, targets, and a note for the user that may be empty.

    Raises:
        UsageError: If the model is unknown, or does not fit the data.
    """
    if weights is not None and not model.startswith(_TORCHVISION):
        raise UsageError(f"`weights` is for torchvision:NAME; {model!r} has its own weights")
    if not model.startswith(_TORCHVISION) and not model.endswith(".pt2"):
        network, card = _saved(Path(model))
        images = _images(data, image_size or card.image_size, samples, seed, root)
        if (images.in_channels, images.num_classes) != (card.in_channels, card.num_classes):
            raise UsageError(
                f"{model!r} takes {card.in_channels} channels and {card.num_classes} classes, but"
                f" data {data!r} has {images.in_channels} and {images.num_classes}"
            )
        return network, card.normalise(images.probe.images), images.probe.targets, ""
    if model.endswith(".pt2"):
        network, note = load_exported(Path(model)), ""
        ours = exported_card(Path(model))
        if ours is not None:  # it takes pixels as they are stored
            images = _images(data, image_size or ours.image_size, samples, seed, root)
            inputs = images.probe.images.float()
            _try(network, inputs, images, model)
            return network, inputs, images.probe.targets, note
        images = _images(data, image_size, samples, seed, root)
    else:
        images = _images(data, image_size, samples, seed, root)
        network, note = _torchvision(model.removeprefix(_TORCHVISION), weights, images, seed)
    inputs, targets = images.probe.tensors()
    if images.in_channels == 1 and _first_channels(network) == 3:
        inputs = inputs.expand(-1, 3, -1, -1).contiguous()
    _try(network, inputs, images, model)
    return network, inputs, targets, note


def _saved(path: Path) -> tuple[nn.Module, ModelCard]:
    try:
        return load_model(path)
    except UsageError as error:
        if not path.exists():
            raise
        raise UsageError(
            f"{error}; a file of weights needs its network: torchvision:NAME --weights FILE"
        ) from None


def _first_channels(network: nn.Module) -> int:
    convs = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return next((conv.in_channels for conv in convs), 0)


def _try(network: nn.Module, inputs: Tensor, images: ImageData, model: str) -> None:
    """Check that the model takes the images and tells their classes apart."""
    try:
        with torch.no_grad(), eval_mode(network):
            logits = network(inputs[:2])
    except RuntimeError as error:
        raise UsageError(
            f"{model!r} cannot take images of {tuple(inputs.shape[1:])};"
            f" try another `image_size`: {str(error).splitlines()[0]}"
        ) from None
    if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] < images.num_classes:
        raise UsageError(
            f"{model!r} has {logits.shape[1]} classes, but the data have {images.num_classes}"
        )


def _images(
    data: str, image_size: int | None, samples: int, seed: int, root: str | Path
) -> ImageData:
    return load_data(data, image_size=image_size, probe_size=samples, seed=seed, root=root)


def _torchvision(
    name: str, weights: str | None, images: ImageData, seed: int
) -> tuple[nn.Module, str]:
    from torchvision import models

    # Classifiers only: torchvision also lists detection, segmentation and video models.
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(unknown_name("torchvision model", name, known))
    if weights is not None and Path(weights).exists():
        return _with_state(name, Path(weights)), ""
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = models.get_model(name, num_classes=images.num_classes)
        return network, "the model's weights are random; --weights DEFAULT loads trained ones"
    try:
        return models.get_model(name, weights=weights), ""
    except (KeyError, ValueError):
        accepted = ["DEFAULT", *(weight.name for weight in models.get_model_weights(name))]
        message = unknown_name(f"weights of {name}", weights, accepted, also="; or a file")
        raise UsageError(message) from None


def _with_state(name: str, path: Path) -> nn.Module:
    """Return a torchvision network with the weights of a state-dictionary file."""
    from torchvision import models

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way inside the unpickler
        raise UsageError(
            f"{str(path)!r} is not a file of weights: {type(error).__name__} while reading it"
        ) from None
    # Training scripts wrap the weights beside the optimiser's state.
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{str(path)!r} is not a state dictionary of tensors")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    # The last tensor of two dimensions, or of four in networks without a linear layer, has one
    # row per class.
    kernels = [v for v in state.values() if v.ndim in {2, 4}]
    classes = len(kernels[-1]) if kernels else 0
    try:
        network = models.get_model(name, num_classes=classes)
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"{str(path)!r} holds other weights than those of {name}:"
            f" {' '.join(str(error).split())[:200]}"
        ) from None
    return network
