"""The networks: the same convolutions with and without shortcuts, then pooling and a classifier.

A 3x3 convolution of stride 2, then two stages of pairs of 3x3 convolutions, the second stage twice
as wide on a map half as large; batch norm and ReLU after each; global average pooling and a linear
classifier. `residual` adds to every pair the shortcut of He et al. 2016 (arXiv 1512.03385).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatsearch.networks.gap_cnn import GapCnn, he_initialise

__all__ = ["build"]


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Pair(nn.Module):
    """Two convolutions, with or without a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, residual: bool) -> None:
        super().__init__()
        self.shortcut = None
        if residual:
            same = inputs == outputs and stride == 1
            self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride)
        self.first, self.second = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps after both."""
        # The shortcut first: the last convolution executed is then one of 3x3 in both families.
        shortcut = None if self.shortcut is None else self.shortcut(x)
        x = self.second(torch.relu(self.first(x)))
        return torch.relu(x if shortcut is None else x + shortcut)


def build(family: str, width: int, depth: int, in_channels: int) -> GapCnn:
    """Return a freshly initialised network with 10 classes.

    Args:
        family: "plain" or "residual".
        width: Channels of the first stage.
        depth: 3x3 convolutions: 1 + 4 for each pair of a stage.
        in_channels: Channels of the images.
    """
    layers: list[nn.Module] = [_conv(in_channels, width, stride=2), nn.ReLU()]
    inputs = width
    for outputs, stride in ((width, 1), (2 * width, 2)):
        for index in range((depth - 1) // 4):
            step = stride if index == 0 else 1
            layers.append(Pair(inputs, outputs, step, residual=family == "residual"))
            inputs = outputs
    return GapCnn(he_initialise(nn.Sequential(*layers)), inputs, 10)
