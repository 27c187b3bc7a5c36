"""A model and images for `flatsearch measure` and `flatsearch compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from flatsearch.cli.shared import PREPROCESSING
from flatsearch.data.splits import IMAGENET
from flatsearch.errors import UsageError, unknown_name
from flatsearch.export.checkpoint import load_model
from flatsearch.export.programs import load_exported
from flatsearch.networks.inference import eval_mode
from flatsearch.spaces.weights import published_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatsearch.data.splits import ImageData, Split
    from flatsearch.export.card import ModelCard

__all__ = ["Loaded", "load_with_images"]

_TORCHVISION = "torchvision:"
# The most images by which ways to prepare them are told apart.
_TRIED = 128


class Loaded(NamedTuple):
    """A model with the images to look at it on.

    Attributes:
        network: The model.
        images: The splits, in the size that the model takes.
        prepare: Returns the inputs and targets of a split, as the model takes them.
        note: Something for the user; may be empty.
        card: Of a model that flatsearch saved or exported.
    """

    network: nn.Module
    images: ImageData
    prepare: Callable[[Split], tuple[Tensor, Tensor]]
    note: str = ""
    card: ModelCard | None = None


def load_with_images(
    model: str,
    images: Callable[[int | None], ImageData],
    *,
    image_size: int | None = None,
    weights: str | None = None,
    preprocessing: str | None = None,
    seed: int = 0,
) -> Loaded:
    """Load a model, and the images in its size.

    Args:
        model: A file that `save_model` wrote, a `.pt2` file that `torch.export.save` wrote, or
            "torchvision:NAME".
        images: Loads the images in a size.
        image_size: Height and width to resize to; a saved model's own where None.
        weights: Of a torchvision model: the name of pretrained ones, or a file with a state
            dictionary; random ones (seeded) where None.
        preprocessing: From `PREPROCESSING`, for a model that is not ours; where None, "imagenet"
            with published weights, and "standardised" with other torchvision networks.
        seed: Of random weights.

    Returns:
        Both.

    Raises:
        UsageError: If the model is unknown, does not fit the data, or does not say how its images
            are prepared.
    """
    if weights is not None and not model.startswith(_TORCHVISION):
        raise UsageError(f"`weights` is for torchvision:NAME; {model!r} has its own weights")
    own = f"{model!r} prepares its images itself, whatever `preprocessing`" if preprocessing else ""
    if not model.startswith(_TORCHVISION) and not model.endswith(".pt2"):
        network, card = _saved(Path(model))
        data = images(image_size or card.image_size)
        if (data.in_channels, data.num_classes) != (card.in_channels, card.num_classes):
            raise UsageError(
                f"{model!r} takes {card.in_channels} channels and {card.num_classes} classes, but"
                f" data {data.name!r} has {data.in_channels} and {data.num_classes}"
            )
        return Loaded(network, data, lambda s: (card.normalise(s.pixels()), s.targets), own, card)
    note = ""
    if model.endswith(".pt2"):
        network, ours = load_exported(Path(model))
        if ours is not None:  # it takes pixels as they are stored
            data = images(image_size or ours.image_size)
            _try(network, data.probe.pixels()[:2].float(), data, model)
            return Loaded(network, data, lambda s: (s.pixels().float(), s.targets), own, ours)
        data = images(image_size)
    else:
        data = images(image_size)
        network, note = _torchvision(model.removeprefix(_TORCHVISION), weights, data, seed)
        published = weights is not None and not Path(weights).exists()
        preprocessing = preprocessing or ("imagenet" if published else "standardised")
    kinds = {name: _preparation(name, data, _first_channels(network)) for name in PREPROCESSING}
    some = data.probe.at(slice(None, None, -(-len(data.probe) // _TRIED)))
    _try(network, kinds[preprocessing or "raw"](some)[0][:2], data, model)
    notes = [note, f"images: {PREPROCESSING[preprocessing]}" if preprocessing else ""]
    if not note:  # it has been trained
        found = {name: _accuracy(network, *kinds[name](some)) for name in PREPROCESSING}
        listed = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in found.items())
        tried = f"accuracy on {len(some)} training images: {listed}"
        if preprocessing is None:
            raise UsageError(
                f"{model!r} does not say how its images are prepared: give `preprocessing`; {tried}"
            )
        if max(found.values()) > found[preprocessing] + 2 / len(some) ** 0.5:
            notes.append(f"another preprocessing suits the model better: {tried}")
    return Loaded(network, data, kinds[preprocessing or "raw"], "; ".join(filter(None, notes)))


def _preparation(
    name: str, data: ImageData, channels: int
) -> Callable[[Split], tuple[Tensor, Tensor]]:
    """Return what prepares a split for a network whose first convolution has so many channels."""
    colours = 3 if data.in_channels == 1 and channels == 3 else -1
    most = 65535.0 if data.pixels == "uint16" else 255.0
    scale = most if data.pixels != "float32" else 1.0

    def prepare(split: Split) -> tuple[Tensor, Tensor]:
        if name == "standardised":
            inputs, targets = split.tensors()
        else:
            inputs, targets = split.pixels().float(), split.targets
        if name in {"unit", "imagenet"}:
            inputs = inputs / scale
        inputs = inputs.expand(-1, colours, -1, -1)
        if name == "imagenet" and inputs.shape[1] == 3:
            mean, std = (inputs.new_tensor(v).view(1, -1, 1, 1) for v in IMAGENET)
            inputs = (inputs - mean) / std
        return inputs.contiguous(), targets

    return prepare


def _accuracy(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad(), eval_mode(network):
        return float((network(inputs.cpu()).argmax(1) == targets.cpu()).float().mean())


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
            logits = network(inputs.cpu())
    except RuntimeError as error:
        raise UsageError(
            f"{model!r} cannot take images of {tuple(inputs.shape[1:])};"
            f" try another `image_size`: {str(error).splitlines()[0]}"
        ) from None
    if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] < images.num_classes:
        raise UsageError(
            f"{model!r} has {logits.shape[1]} classes, but the data have {images.num_classes}"
        )


def _torchvision(
    name: str, weights: str | None, images: ImageData, seed: int
) -> tuple[nn.Module, str]:
    from torchvision import models

    # Classifiers only: torchvision also lists detection, segmentation and video models.
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(unknown_name("torchvision model", name, known))
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = models.get_model(name, num_classes=images.num_classes)
        return network, "the model's weights are random; --weights DEFAULT loads trained ones"
    return published_network(name, weights), ""
