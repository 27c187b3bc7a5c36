"""GAP-CNNs: convolutional features, global average pooling, one linear classifier."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "GapCnn",
    "count_flops",
    "count_parameters",
    "eval_mode",
    "he_initialise",
    "network_key",
    "replace_stem",
    "zero_images",
]


class GapCnn(nn.Module):
    """A convolutional network that ends in global average pooling and a linear classifier.

    Attributes:
        features: Images (N, in_channels, H, W) to maps (N, num_features, h, w).
        pool: Global average pooling.
        classifier: Linear, num_features to num_classes.

    Args:
        features: The convolutional part.
        num_features: Channels it returns.
        num_classes: Length of the logits.

    Example:
        >>> net = GapCnn(nn.Conv2d(3, 8, 3), 8, 10)
        >>> net(torch.zeros(2, 3, 5, 5)).shape
        torch.Size([2, 10])
    """

    def __init__(self, features: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps before pooling, (N, num_features, h, w)."""
        return self.features(x)

    def forward_head(self, maps: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return the logits (N, num_classes), or the pooled features (N, num_features).

        Args:
            maps: From `forward_features`.
            pre_logits: Stop before the classifier.

        Returns:
            Logits or pooled features.
        """
        pooled = self.pool(maps).flatten(1)
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.forward_head(self.forward_features(x))


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters.

    Example:
        >>> count_parameters(nn.Conv2d(3, 8, 3))
        224
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def zero_images(model: nn.Module, in_channels: int, image_size: int, batch_size: int = 1) -> Tensor:
    """Return images of zeros of the model's precision, where the model is.

    Args:
        model: With parameters; without, the images are float32 on the CPU.
        in_channels: Channels of the images.
        image_size: Height and width.
        batch_size: How many.

    Returns:
        Images (batch_size, in_channels, image_size, image_size).
    """
    parameter = next(model.parameters(), torch.empty(0))
    return torch.zeros(batch_size, in_channels, image_size, image_size).to(parameter)


def count_flops(model: nn.Module, in_channels: int, image_size: int) -> int:
    """Return the floating-point operations of one image's forward pass.

    Matrix products and convolutions, two operations per multiply-add, as PyTorch's own counter
    counts them.

    Args:
        model: On any device; measured in eval mode, its mode is restored.
        in_channels: Channels of the image.
        image_size: Height and width.

    Returns:
        The count.

    Example:
        A 1x1 convolution from 1 to 1 channel on 2x2 pixels is four multiply-adds:

        >>> count_flops(nn.Conv2d(1, 1, 1), 1, 2)
        8
    """
    image = zero_images(model, in_channels, image_size)
    with eval_mode(model), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return int(counter.get_total_flops())


def network_key(model: nn.Module, in_channels: int, image_size: int) -> str | None:
    """Return a hash that tells candidates apart; equal for the same network, built twice.

    Networks are the same if they train alike. The hash is of the modules' descriptions; the
    parameters' names, shapes, first values and whether they are trained; and the logits of random
    images in eval and in training mode under random parameters, which no special initialisation
    (a branch that starts at zero) can hide behind. Numbers are rounded to four digits, so that
    machines agree but for rare ties. Networks that compute the same with other modules, such as
    mirrored cells, have different keys.

    Args:
        model: On the CPU, built under one seed of torch's generator for all candidates; its
            weights, buffers and mode are left alone.
        in_channels: Channels of an image.
        image_size: Height and width.

    Returns:
        Twelve hex digits; None if the logits are not finite and nothing can be said.

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


def he_initialise(features: nn.Module) -> nn.Module:
    """He initialisation of the convolutions, for the forward pass of rectified networks.

    Args:
        features: Changed in place.

    Returns:
        The same module.
    """
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return features


def replace_stem(
    model: nn.Module, in_channels: int, kernel: int | None = None, stride: int | None = None
) -> None:
    """Exchange a network's first convolution, in place, for other images.

    Args:
        model: A network whose first convolution reads the images.
        in_channels: Channels of the images.
        kernel: Its new kernel size; the old one where None. Padded to keep the map's size.
        stride: Its new stride; the old one where None.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU())
        >>> replace_stem(net, 1, kernel=3, stride=1)
        >>> net(torch.zeros(1, 1, 5, 5)).shape
        torch.Size([1, 8, 5, 5])
    """
    name, stem = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if in_channels == stem.in_channels and kernel is None and stride is None:
        return
    size = stem.kernel_size if kernel is None else (kernel, kernel)
    padding: Any = stem.padding if kernel is None else (kernel - 1) // 2
    new = nn.Conv2d(
        in_channels, stem.out_channels, (size[0], size[1]),
        (stem.stride[0], stem.stride[1]) if stride is None else stride,
        padding, bias=stem.bias is not None,
    )  # fmt: skip
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
