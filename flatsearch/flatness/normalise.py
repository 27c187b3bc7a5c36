"""`normalize="input"`: kernels measured on inputs of unit standard deviation.

Relative flatness is unchanged when a filter is scaled and the next layer undoes it, but not when
the layer *before* scales a channel and this kernel undoes it. Dividing input channel i by its
standard deviation sigma_i over the data (samples and positions), and multiplying W's column i
with it, is the same function with such a scaling taken out; the measure of that kernel has both
invariances.

A channel that is the same everywhere has no standard deviation: it is divided by its absolute
value instead, which keeps the invariance, and one that is 0 everywhere counts for nothing. Padding
directly in front of a convolution is part of the convolution and does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.forward import call
from flatsearch.flatness.watch import input_of, weight_of, without_hooks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flatsearch.flatness.forward import Network
    from flatsearch.flatness.watch import Arguments, Named

__all__ = ["ChannelMoments", "input_scales", "scale_input", "scale_kernel"]

_ATEN = torch.ops.aten
_PADDINGS = {
    F.pad,
    torch.constant_pad_nd,
    _ATEN.constant_pad_nd.default,
    _ATEN.pad.default,
    _ATEN.reflection_pad2d.default,
    _ATEN.replication_pad2d.default,
}


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


class _Measuring(without_hooks):
    """Takes in what convolutions and linear layers are given, without the padding around it."""

    def __init__(self, kernels: Mapping[int, str], moments: ChannelMoments) -> None:
        super().__init__()
        self._kernels, self._moments = kernels, moments
        self._padded: tuple[Tensor, Tensor] | None = None

    def call(self, function: Any, args: Arguments, kwargs: Named) -> Any:
        """Return what the function returns."""
        weight = weight_of(args, kwargs)
        name = self._kernels.get(id(weight))
        if weight is not None and name is not None:
            x = input_of(args, kwargs)
            if self._padded is not None and self._padded[1] is x:
                x = self._padded[0]
            self._moments.add({name: x.flatten(0, -2) if weight.ndim == 2 else x})
        result = super().call(function, args, kwargs)
        if function in _PADDINGS:
            self._padded = (input_of(args, kwargs), result)
        return result


def input_scales(
    network: Network, layers: Iterable[str], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Return the standard deviation of every input channel of the measured layers.

    Args:
        network: What is run.
        layers: The layers' names.
        batches: The data.

    Returns:
        (C_in,) per layer.

    Raises:
        UnsupportedModelError: If a layer is called by something that Python does not see.
    """
    moments = ChannelMoments()
    kernels = {id(network.kernels[name]): name for name in layers}
    with torch.no_grad(), _Measuring(kernels, moments):
        for x, _ in batches:
            call(network.model, x)
    scales = moments.scales(next(network.model.parameters()).dtype)
    for name in kernels.values():
        if name not in scales:
            raise UnsupportedModelError(f"layer {name!r}: its input cannot be normalised")
    return scales


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
