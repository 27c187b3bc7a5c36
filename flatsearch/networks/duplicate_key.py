"""When two networks are the same."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flatsearch.networks.inference import eval_mode

__all__ = ["network_key"]


def network_key(model: nn.Module, in_channels: int, image_size: int) -> str | None:
    """Return a hash that tells candidates apart; equal for the same network, built twice.

    Networks are the same if they train alike. The hash is of the modules' descriptions; the
    parameters' names, shapes, first values and whether they are trained; and the logits of random
    images in eval and in training mode under random parameters, which no special initialisation
    (a branch that starts at zero) can hide behind. Numbers are rounded to four digits, so that
    machines agree but for rare ties. Networks that compute the same with other modules, such as
    mirrored cells, have different keys.

    The model is on the CPU, built under one seed of torch's generator for all candidates, and is
    left as it is. None if its logits are not finite and nothing can be said.

    Example:
        >>> def key(activation):
        ...     _ = torch.manual_seed(0)
        ...     return network_key(nn.Sequential(nn.Conv2d(1, 2, 3), activation), 1, 5)
        >>> key(nn.ReLU()) == key(nn.ReLU()) != key(nn.SiLU())
        True
    """
    generator = torch.Generator().manual_seed(0)

    def draw(parameter: Tensor) -> Tensor:
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:  # maps and gradients keep their size
            return (noise * (2 * len(parameter) / parameter.numel()) ** 0.5).to(parameter.dtype)
        return (1 + 0.2 * noise).to(parameter.dtype)

    parameters = dict(model.named_parameters())
    drawn = {name: draw(p) for name, p in parameters.items()}
    images = torch.randn(4, in_channels, image_size, image_size, generator=generator)
    images = images.to(next(iter(drawn.values()), images))

    def logits(training: bool) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with eval_mode(model), torch.random.fork_rng(devices=[]), torch.no_grad():
            model.train(training)
            torch.manual_seed(0)
            return functional_call(model, {**drawn, **buffers}, (images,))

    numbers = logits(training=False).flatten().tolist()
    if not all(map(math.isfinite, numbers)):
        return None
    # Where this is not one tensor, or fails for these images, training will tell.
    with contextlib.suppress(AttributeError, RuntimeError, ValueError):
        numbers += logits(training=True).flatten().tolist()
    # Addresses of objects in a description are not part of the network.
    described = [re.sub(r" at 0x[0-9a-f]+", "", repr(model))]
    sums = []
    for name, parameter in parameters.items():
        described.append(f"{name} {tuple(parameter.shape)} {parameter.requires_grad}")
        sums += [parameter.detach().sum(), parameter.detach().norm()]
    numbers += torch.stack(sums).tolist() if sums else []
    text = "\n".join([*described, *(f"{x:.3e}" for x in numbers)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
