"""GAP-CNNs: convolutional features, global average pooling, one linear classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["GapCnn", "he_initialise", "replace_stem"]


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
        >>> import torch
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
        """Return the logits (N, num_classes) of maps; with `pre_logits` the pooled features."""
        pooled = self.pool(maps).flatten(1)
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.forward_head(self.forward_features(x))


def he_initialise(features: nn.Module) -> nn.Module:
    """Return features with He-initialised convolutions, for rectified networks, in place."""
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
        >>> import torch
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
        in_channels,
        stem.out_channels,
        (size[0], size[1]),
        (stem.stride[0], stem.stride[1]) if stride is None else stride,
        padding,
        bias=stem.bias is not None,
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
