"""Where a convolution's patches lie: kernel, stride, dilation, padding, groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from flatsearch.flatness.graph import source

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ConvGeometry", "recorded_geometry"]


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel size, stride, dilation and padding of a 2d convolution.

    Attributes:
        kernel: (kh, kw).
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).
        padding: (left, right, top, bottom), the order of `torch.nn.functional.pad`.
        groups: Blocks of channels that are convolved separately; C_in for a depthwise one.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    groups: int = 1

    def pad(self, x: Tensor) -> Tensor:
        """Return x (N, C_in, H, W) with the convolution's own zeros around it."""
        if not any(self.padding):
            return x
        return F.pad(x, self.padding)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the output map's (height, width) for an unpadded input of that size."""
        left, right, top, bottom = self.padding
        rows, columns = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                (height + top + bottom, width + left + right),
                self.kernel,
                self.stride,
                self.dilation,
                strict=True,
            )
        )
        return rows, columns

    def overlaps(self, size: tuple[int, int]) -> list[tuple[slice, slice, slice, slice]]:
        """Return, per kernel offset, which output positions read which pixels.

        Padding is not made: positions that read a padded pixel are left out.

        Args:
            size: (height, width) of the input, not padded.

        Returns:
            kh * kw times (output rows, output columns, input rows, input columns), as slices; those
            that are empty are left out.

        Example:
            A kernel of two pixels, with one zero in front of a row of three:

            >>> ConvGeometry((1, 2), (1, 1), (1, 1), (1, 0, 0, 0)).overlaps((1, 3))
            [(slice(0, 1, None), slice(1, 3, None), slice(0, 1, 1), slice(0, 2, 1)),
             (slice(0, 1, None), slice(0, 3, None), slice(0, 1, 1), slice(0, 3, 1))]
        """
        left, _, top, _ = self.padding
        along = []
        for axis, before in enumerate((top, left)):
            stride, found = self.stride[axis], []
            for u in range(self.kernel[axis]):
                # position p reads pixel p stride + offset
                offset = u * self.dilation[axis] - before
                low = max(0, -(offset // stride))
                high = min(self.output_size(*size)[axis], (size[axis] - 1 - offset) // stride + 1)
                if low < high:
                    pixels = slice(low * stride + offset, (high - 1) * stride + offset + 1, stride)
                    found.append((slice(low, high), pixels))
            along.append(found)
        return [
            (rows, columns, row_pixels, column_pixels)
            for rows, row_pixels in along[0]
            for columns, column_pixels in along[1]
        ]

    def patch_norms(self, x: Tensor, filters: int) -> Tensor:
        """Return |Z(:, p)|^2 of an unpadded input's patches, (N, C, rows, columns).

        Args:
            x: (N, C_in, H, W).
            filters: C; every group of them has patches of its own.
        """
        pixels = torch.unflatten(x.square(), 1, (self.groups, -1)).sum(2)
        norms = pixels.new_zeros(*pixels.shape[:2], *self.output_size(x.shape[2], x.shape[3]))
        for row, column, pixel_row, pixel_column in self.overlaps((x.shape[2], x.shape[3])):
            norms[:, :, row, column] += pixels[:, :, pixel_row, pixel_column]
        return norms.repeat_interleave(filters // self.groups, 1)


def recorded_geometry(node: Any) -> ConvGeometry:
    """Read the geometry of a convolution that autograd has recorded.

    Args:
        node: Its `ConvolutionBackward0`, whose kernel requires a gradient.

    Returns:
        Its geometry.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv2d(4, 8, (3, 5), stride=2, padding=(1, 2))
        >>> recorded_geometry(conv(torch.ones(1, 4, 8, 8)).grad_fn).padding
        (2, 2, 1, 1)
    """
    kh, kw = source(node.next_functions[1][0]).variable.shape[2:]
    rows, columns = _pair(node._saved_padding)
    return ConvGeometry(
        kernel=(kh, kw),
        stride=_pair(node._saved_stride),
        dilation=_pair(node._saved_dilation),
        padding=(columns, columns, rows, rows),
        groups=node._saved_groups,
    )


def _pair(saved: tuple[int, ...]) -> tuple[int, int]:
    return saved[0], saved[-1]
