"""A model and images for `flatsearch measure`: a saved candidate, or a torchvision network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatsearch.config import RunSettings
from flatsearch.data import ImageData, load_data
from flatsearch.errors import UsageError, unknown_name
from flatsearch.export import load_model

if TYPE_CHECKING:
    from pathlib import Path

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
        model: A file that `save_model` wrote, or "torchvision:NAME".
        data: See `flatsearch.load_data`.
        samples: At most this many training images.
        image_size: Height and width to resize to; a saved model's own where None.
        weights: torchvision weights; random ones (seeded) where None.
        seed: Of the split and of random weights.
        root: Where torchvision data sets are.

    Returns:
        The model, inputs, targets, and a note for the user that may be empty.

    Raises:
        UsageError: If the model is unknown, or does not fit the data.
    """
    if not model.startswith(_TORCHVISION):
        network, card = load_model(model)
        images = _images(data, image_size or card.image_size, samples, seed, root)
        if (images.in_channels, images.num_classes) != (card.in_channels, card.num_classes):
            raise UsageError(
                f"{model!r} takes {card.in_channels} channels and {card.num_classes} classes, but"
                f" data {data!r} has {images.in_channels} and {images.num_classes}"
            )
        return network, card.normalise(images.probe.images), images.probe.targets, ""
    images = _images(data, image_size, samples, seed, root)
    network, note = _torchvision(model.removeprefix(_TORCHVISION), weights, images, seed)
    inputs, targets = images.probe.tensors()
    if images.in_channels == 1:
        inputs = inputs.expand(-1, 3, -1, -1).contiguous()
    try:
        with torch.no_grad():
            network.eval()(inputs[:2])
    except RuntimeError as error:
        raise UsageError(
            f"{model!r} cannot take images of {images.image_size}x{images.image_size};"
            f" try --image-size: {str(error).splitlines()[0]}"
        ) from None
    return network, inputs, targets, note


def _images(
    data: str, image_size: int | None, samples: int, seed: int, root: str | Path
) -> ImageData:
    return load_data(
        data,
        image_size=image_size,
        validation_fraction=RunSettings().validation_fraction,
        probe_size=samples,
        seed=seed,
        root=root,
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
    try:
        return models.get_model(name, weights=weights), ""
    except (KeyError, ValueError):
        accepted = ["DEFAULT", *(weight.name for weight in models.get_model_weights(name))]
        raise UsageError(unknown_name(f"weights of {name}", weights, accepted)) from None
