"""The closed form: from patches, pooled-feature derivatives and softmax to trace and kappa.

Symbols, for one sample (a leading N is the batch):

=====  ============  ==========================================================
W      (C, d)        kernel, one row per filter; d = C_in * kh * kw
Z      (d, P)        input patches, one column per output position
S      (C, P)        d g_c / d A_c(p), derivative of pooled feature c
b      (K, C)        b_k = sqrt(p_k) (v_k - V^T p), so that b^T b = V^T (diag(p) - p p^T) V
m_c    (d,)          Z s_c, gradient of g_c with respect to filter c
M      (C, C)        <m_c, m_c'> = S G S^T  with the patch Gram matrix G = Z^T Z
Q      (C, C)        W W^T
=====  ============  ==========================================================

The kernel's Hessian has blocks H_cc' = (b^T b)_cc' m_c m_c'^T (plus a second-order term that
`measure` adds), hence

    Tr(H)  = sum_c   (b^T b)_cc M_cc
    kappa  = sum_cc' <w_c, w_c'> Tr(H_cc') = sum_k b_k^T (Q o M) b_k

M is reached on one of two ways, both exact. Through the *pixel Gram matrix*: inner products of
padded input pixels once, then G as a sum of kh * kw shifted views, which needs no patches at
all. Or through the *explicit* per-sample gradients m. The first is cheaper on small maps, the
second on large ones; `multiply_adds` counts both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

__all__ = [
    "Contraction",
    "ConvGeometry",
    "cheaper",
    "filter_grams",
    "multiply_adds",
    "quadratic_forms",
]

Contraction = Literal["gram", "explicit"]


@dataclass(frozen=True)
class ConvGeometry:
    """Kernel size, stride, dilation and padding of a 2d convolution.

    Attributes:
        kernel: (kh, kw).
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).
        padding: (left, right, top, bottom), the order of `torch.nn.functional.pad`.
        padding_mode: As in `torch.nn.functional.pad`, "constant" for zeros.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    padding_mode: str = "constant"

    def pad(self, x: Tensor) -> Tensor:
        """Return x (N, C_in, H, W) with the convolution's own padding applied."""
        if not any(self.padding):
            return x
        return F.pad(x, self.padding, mode=self.padding_mode)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after padding."""
        left, right, top, bottom = self.padding
        return height + top + bottom, width + left + right

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the output map's (height, width) for an unpadded input of that size."""
        sizes = self.padded_size(height, width)
        rows, columns = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                sizes, self.kernel, self.stride, self.dilation, strict=True
            )
        )
        return rows, columns

    def shifts(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Return, per kernel offset, the (row, column) slices its output positions read.

        Args:
            height: Rows of the output map.
            width: Columns of the output map.

        Returns:
            kh * kw pairs of slices into the padded input.
        """
        rows, columns = (
            [
                slice(u * dilation, u * dilation + stride * (size - 1) + 1, stride)
                for u in range(kernel)
            ]
            for kernel, stride, dilation, size in zip(
                self.kernel, self.stride, self.dilation, (height, width), strict=True
            )
        )
        return [(row, column) for row in rows for column in columns]


def multiply_adds(
    geometry: ConvGeometry, in_channels: int, out_channels: int, height: int, width: int
) -> dict[Contraction, int]:
    """Return the multiply-adds per sample of both ways to M.

    gram:     C_in R^2  +  kh kw P^2  +  C P^2  +  C^2 P,   R pixels of the padded input
    explicit: C d P  +  C^2 d

    Args:
        geometry: The convolution.
        in_channels: C_in.
        out_channels: C.
        height: Rows of the (unpadded) input map.
        width: Columns of the input map.

    Returns:
        The counts by name.
    """
    offsets = geometry.kernel[0] * geometry.kernel[1]
    rows, columns = geometry.output_size(height, width)
    positions = rows * columns
    padded_rows, padded_columns = geometry.padded_size(height, width)
    pixels = padded_rows * padded_columns
    fan_in = in_channels * offsets
    return {
        "gram": in_channels * pixels**2
        + (offsets + out_channels) * positions**2
        + out_channels**2 * positions,
        "explicit": out_channels * fan_in * positions + out_channels**2 * fan_in,
    }


def cheaper(
    geometry: ConvGeometry, in_channels: int, out_channels: int, height: int, width: int
) -> Contraction:
    """Return the way to M with fewer multiply-adds.

    Args:
        geometry: The convolution.
        in_channels: C_in.
        out_channels: C.
        height: Rows of the (unpadded) input map.
        width: Columns of the input map.

    Returns:
        "gram" or "explicit".

    Example:
        A last map of 8x8 against one of 32x32, both 3x3 kernels:

        >>> conv = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
        >>> cheaper(conv, 128, 128, 8, 8), cheaper(conv, 32, 64, 32, 32)
        ('gram', 'explicit')
    """
    counts = multiply_adds(geometry, in_channels, out_channels, height, width)
    return "gram" if counts["gram"] < counts["explicit"] else "explicit"


def _patch_gram(x: Tensor, geometry: ConvGeometry, height: int, width: int) -> Tensor:
    """Return G = Z^T Z, (N, P, P), of a padded input x (N, C_in, R_h, R_w).

    G(p, q) = sum_u <x(p + u), x(q + u)>: one matrix product over C_in for all pixel pairs,
    then kh * kw shifted views of it are added, instead of a product over C_in * kh * kw.
    """
    n, _, rows, columns = x.shape
    pixels = x.flatten(2)
    gram = torch.bmm(pixels.mT, pixels).view(n, rows, columns, rows, columns)
    shifted = [gram[:, r, c, r, c] for r, c in geometry.shifts(height, width)]
    total = shifted[0].clone() if len(shifted) > 1 else shifted[0]
    for view in shifted[1:]:
        total += view
    return total.reshape(n, height * width, height * width)


def _filter_gradients(x: Tensor, S: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return m = S Z^T, (N, C, d), of a padded input x; the order of d does not matter.

    On a CPU one weight gradient per sample is about twice as fast as unfolding the patches, for
    which memory traffic, not arithmetic, is the cost. A GPU wants few large operations instead.
    """
    n, channels = x.shape[:2]
    height, width = S.shape[2:]
    if geometry.kernel == (1, 1):
        ((row, column),) = geometry.shifts(height, width)
        pixels = x[:, :, row, column].reshape(n, channels, height * width)
        return torch.bmm(S.flatten(2), pixels.mT)
    if x.device.type != "cpu":
        patches = F.unfold(x, geometry.kernel, geometry.dilation, 0, geometry.stride)
        return torch.bmm(S.flatten(2), patches.mT)
    size = (S.shape[1], channels, *geometry.kernel)
    gradients = [
        conv2d_weight(  # type: ignore[no-untyped-call]
            x[i : i + 1], size, S[i : i + 1], geometry.stride, 0, geometry.dilation
        )
        for i in range(n)
    ]
    return torch.stack(gradients).flatten(2)


def filter_grams(
    x: Tensor, S: Tensor, geometry: ConvGeometry, contraction: Contraction | None = None
) -> Tensor:
    """Return M, the inner products of the filters' gradients: M_cc' = <m_c, m_c'>.

    Args:
        x: The convolution's input, (N, C_in, H, W), not padded.
        S: d g_c / d A_c(p), (N, C, rows, columns).
        geometry: The convolution.
        contraction: Which way; the cheaper one where None.

    Returns:
        M, (N, C, C).

    Example:
        One pixel of value 3, one filter of 1x1: m = 3 and M = 9.

        >>> conv = ConvGeometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
        >>> filter_grams(torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1), conv)
        tensor([[[9.]]])
    """
    if contraction is None:
        contraction = cheaper(geometry, x.shape[1], S.shape[1], x.shape[2], x.shape[3])
    x = geometry.pad(x)
    if contraction == "explicit":
        m = _filter_gradients(x, S, geometry)
        return torch.bmm(m, m.mT)
    gram = _patch_gram(x, geometry, S.shape[2], S.shape[3])
    S = S.flatten(2)
    return torch.bmm(torch.bmm(S, gram), S.mT)


def quadratic_forms(M: Tensor, Q: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the per-sample trace and kappa from M, Q and the centred class vectors b.

    Args:
        M: (N, C, C), see `filter_grams`.
        Q: (C, C), W W^T.
        b: (N, K, C), sqrt(p_k) (v_k - V^T p). The centred form is used because
            V^T diag(p) V - (V^T p)(V^T p)^T cancels catastrophically for confident nets.

    Returns:
        (trace, kappa), each (N,).
    """
    trace = (M.diagonal(dim1=1, dim2=2) * b.square().sum(1)).sum(1)
    kappa = (torch.bmm(b, M * Q) * b).sum((1, 2))
    return trace, kappa
