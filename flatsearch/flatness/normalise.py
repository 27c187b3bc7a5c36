"""`normalize="input"`: kernels measured on inputs of unit standard deviation.

Relative flatness is unchanged when a filter is scaled and the next layer undoes it, but not when
the layer *before* scales a channel and this kernel undoes it. Dividing input channel i by its
standard deviation sigma_i over the data (samples and positions), and multiplying W's column i
with it, is the same function with such a scaling taken out; the measure of that kernel has both
invariances.

A channel that is the same everywhere has no standard deviation: it is divided by its absolute
value instead, which keeps the invariance, and one that is 0 everywhere counts for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ChannelMoments", "scale_input", "scale_kernel"]


class ChannelMoments:
    """Running mean and variance per channel of some layers' inputs.

    Merged batch by batch in float64 (Chan, Golub and LeVeque 1979), so that a mean much larger
    than the deviation does no harm.
    """

    def __init__(self) -> None:
        self._moments: dict[str, tuple[int, Tensor, Tensor]] = {}
        self._precision = 0.0

    def add(self, inputs: Mapping[str, Tensor]) -> None:
        """Take in one batch of inputs (N, C_in, ...), by layer name."""
        for name, x in inputs.items():
            self._precision = torch.finfo(x.dtype).eps
            values = x.double().transpose(0, 1).flatten(1)
            count, mean = values.shape[1], values.mean(1)
            squares = (values - mean[:, None]).square().sum(1)
            if name in self._moments:
                before, old, old_squares = self._moments[name]
                shift, total = mean - old, before + count
                mean = old + shift * (count / total)
                squares = old_squares + squares + shift.square() * (before * count / total)
                count = total
            self._moments[name] = (count, mean, squares)

    def scales(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what to divide each layer's input channels by, (C_in,); 0 for dead channels."""
        result = {}
        for name, (count, mean, squares) in self._moments.items():
            deviation = (squares / count).sqrt()
            constant = deviation <= 10 * self._precision * mean.abs()
            result[name] = torch.where(constant, mean.abs(), deviation).to(dtype)
        return result


def scale_input(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / scale, (N, C_in, ...), 0 where the scale is 0."""
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    return x * inverse.view(1, -1, *[1] * (x.ndim - 2))


def scale_kernel(W: Tensor, scale: Tensor, groups: int = 1) -> Tensor:
    """Return W with the column of input channel i multiplied by its scale.

    Args:
        W: (C, C_in / groups, ...); filters are ordered by group.
        scale: (C_in,).
        groups: Of the convolution; 1 for a linear layer.

    Returns:
        The shape of W.
    """
    columns = scale.view(groups, 1, -1, *[1] * (W.ndim - 2))
    return (torch.unflatten(W, 0, (groups, -1)) * columns).flatten(0, 1)
