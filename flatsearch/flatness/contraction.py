"""From patches and backpropagated factors to traces and kappa.

Symbols, for one sample (a leading N is the batch):

=====  ============  ==========================================================
W      (C, d)        kernel, one row per filter; d = (C_in / groups) kh kw
Q      (C, C)        W W^T
Z      (d, P)        input patches, one column per output position
G      (P, P)        Z^T Z, the patch Gram matrix
A      (C, P)        the convolution's output
L      (K, K - 1)    L L^T = diag(p) - p p^T, see `softmax`
=====  ============  ==========================================================

**Any convolution.** g_k (C, P) is the derivative of <L_k, logits> with respect to A, and
m_k = g_k Z^T (C, d) that with respect to the kernel. The Gauss-Newton matrix is
sum_k vec(m_k) vec(m_k)^T, hence with rows m_kc and g_kc of filter c

    Tr(H_cc) = sum_k |m_kc|^2         = sum_k g_kc G g_kc^T
    kappa    = sum_k <m_k m_k^T, Q>   = sum_k <G, g_k^T Q g_k>

**Features that treat channels separately**, with a linear classifier V (K, C). There g_k =
diag(b_k) S with one S (C, P) for all classes and b = L^T V (K - 1, C), so one M (C, C) serves all
of them:

    M_cc'    = <m_c, m_c'> = (S G S^T)_cc',     m = S Z^T
    Tr(H_cc) = (b^T b)_cc M_cc
    kappa    = sum_k b_k^T (Q o M) b_k

The traces of the diagonal blocks are all that the trace and nu take (`result`):

    Tr(H)    = sum_c Tr(H_cc)
    nu       = sum_c |w_c|^2 Tr(H_cc) / d       (kappa with diag(Q) / d in place of Q)

Either is reached on one of two ways, both exact. Through the *pixel Gram matrix*: inner products
of padded input pixels once, then G as a sum of kh * kw shifted views, which needs no patches at
all. Or through the *explicit* per-sample kernel gradients m. The first is cheaper on small maps,
the second on large ones; `multiply_adds` counts both. Grouped convolutions always take the
second: G would have to be kept per pair of groups.

For kernels of several groups, Q and the sums over c, c' run over all filters as they stand in W,
whichever group they belong to; that is the definition of kappa applied to the parameter W (C, d).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.flatness.geometry import ConvGeometry

__all__ = [
    "Contracted",
    "Contraction",
    "by_factors",
    "cheaper",
    "factor_entries",
    "factor_norms",
    "filter_grams",
    "multiply_adds",
    "separable_norms",
]

Contraction = Literal["gram", "explicit"]


class Contracted(NamedTuple):
    """What the contraction makes of some samples.

    Attributes:
        traces: Tr(H_cc), (N, C).
        kappa: kappa, (N,).
        terms: The size of what `traces` were summed from, (N, C): sum_kp g_kc(p)^2 G(p, p) through
            the pixels, else the traces themselves, which are sums of squares then. What is much
            smaller than its terms has lost digits.
    """

    traces: Tensor
    kappa: Tensor
    terms: Tensor


# What an operation on M costs in multiply-adds of a matrix product, measured on a CPU.
_SLOW_ENTRIES = 3.0


def multiply_adds(
    geometry: ConvGeometry,
    in_channels: int,
    out_channels: int,
    size: tuple[int, int],
    factors: int | None = None,
) -> dict[Contraction, int]:
    """Return the multiply-adds per sample of both ways.

    With one S for all classes, to M (R pixels of the input; zero padding is not made):

        gram:     C_in R^2  +  kh kw P^2  +  C P^2  +  C^2 P
        explicit: C d P  +  C^2 d

    With F factors g_k each of its own, and r = min(C, d):

        gram:     C_in R^2  +  kh kw P^2  +  F (C P^2  +  C^2 P)
        explicit: F (C d P  +  C d r)

    Args:
        geometry: The convolution.
        in_channels: C_in.
        out_channels: C.
        size: (rows, columns) of the unpadded input.
        factors: F; None for one S.

    Returns:
        The counts by name; only "explicit" for a grouped convolution.

    Example:
        A last map of 8x8 against one of 32x32, both 3x3 kernels:

        >>> from flatsearch.flatness.geometry import ConvGeometry
        >>> conv = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
        >>> multiply_adds(conv, 128, 128, (8, 8))
        {'gram': 2134016, 'explicit': 28311552}
        >>> multiply_adds(conv, 32, 64, (32, 32))
        {'gram': 114294784, 'explicit': 20054016}
    """
    offsets = geometry.kernel[0] * geometry.kernel[1]
    rows, columns = geometry.output_size(*size)
    positions = rows * columns
    fan_in = in_channels // geometry.groups * offsets
    times = 1 if factors is None else factors
    across = out_channels if factors is None else min(out_channels, fan_in)
    explicit = times * out_channels * fan_in * (positions + across)
    if geometry.groups > 1:
        return {"explicit": explicit}
    gram = in_channels * (size[0] * size[1]) ** 2 + offsets * positions**2
    gram += times * (out_channels * positions**2 + out_channels**2 * positions)
    return {"gram": gram, "explicit": explicit}


def cheaper(
    geometry: ConvGeometry,
    in_channels: int,
    out_channels: int,
    size: tuple[int, int],
    factors: int | None = None,
) -> Contraction:
    """Return the way with fewer multiply-adds; the arguments are those of `multiply_adds`.

    Example:
        >>> from flatsearch.flatness.geometry import ConvGeometry
        >>> conv = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
        >>> cheaper(conv, 128, 128, (8, 8)), cheaper(conv, 32, 64, (32, 32))
        ('gram', 'explicit')
    """
    counts = multiply_adds(geometry, in_channels, out_channels, size, factors)
    return min(counts, key=counts.__getitem__)


def _patch_gram(x: Tensor, geometry: ConvGeometry, height: int, width: int) -> Tensor:
    """Return G = Z^T Z, (N, P, P), of an input x (N, C_in, R_h, R_w).

    G(p, q) = sum_u <x(p + u), x(q + u)>: one matrix product over C_in for all pixel pairs,
    then kh * kw shifted views of it are added, instead of a product over C_in * kh * kw. Pixels
    of padding add nothing, and are not made.
    """
    n, _, rows, columns = x.shape
    pixels = x.flatten(2)
    gram = torch.bmm(pixels.mT, pixels)
    if geometry.kernel == (1, 1) and (rows, columns) == (height, width):
        return gram
    gram = gram.view(n, rows, columns, rows, columns)
    total = gram.new_zeros(n, height, width, height, width)
    for r, c, row, column in geometry.overlaps((rows, columns)):
        total[:, r, c, r, c] += gram[:, row, column, row, column]
    return total.view(n, height * width, height * width)


def _kernel_gradients(x: Tensor, g: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return m = g Z^T, (N, F, C, d), of a padded input x and factors g (N, F, C, rows, columns).

    On a CPU one weight gradient per sample is two to three times as fast as unfolding the
    patches, for which memory traffic, not arithmetic, is the cost. A GPU wants few large operations
    instead, and so do many small groups.
    """
    n, in_channels = x.shape[:2]
    factors, channels, height, width = g.shape[1:]
    groups, one_pixel = geometry.groups, geometry.kernel == (1, 1)
    if groups == 1 and not one_pixel and x.device.type == "cpu":
        size = (factors * channels, in_channels, *geometry.kernel)
        gradients = [
            conv2d_weight(  # type: ignore[no-untyped-call]
                x[i : i + 1],
                size,
                g[i : i + 1].flatten(1, 2),
                geometry.stride,
                0,
                geometry.dilation,
            )
            for i in range(n)
        ]
        stacked = torch.stack(gradients) if n > 1 else gradients[0][None]
        return stacked.reshape(n, factors, channels, -1)
    if one_pixel:
        patches = x[:, :, :: geometry.stride[0], :: geometry.stride[1]].flatten(2)
    else:
        patches = F.unfold(x, geometry.kernel, geometry.dilation, 0, geometry.stride)
    # (N, groups, d, P): unfold keeps the offsets of one channel, and so of one group, together
    patches = patches.reshape(n, groups, -1, height * width)
    blocks = g.reshape(n, factors, groups, channels // groups, height * width)
    rows = blocks.transpose(1, 2).flatten(2, 3)  # (N, groups, F C / groups, P)
    m = (rows @ patches.mT).view(n, groups, factors, channels // groups, -1)
    return m.transpose(1, 2).reshape(n, factors, channels, -1)


def filter_grams(x: Tensor, S: Tensor, geometry: ConvGeometry) -> tuple[Tensor, Tensor]:
    """Return M, the inner products of the filters' gradients, and the size of its terms.

    Args:
        x: The convolution's input, (N, C_in, H, W), not padded.
        S: d g_c / d A_c(p), (N, C, rows, columns).
        geometry: The convolution.

    Returns:
        M_cc' = <m_c, m_c'>, (N, C, C), and what its diagonal was summed from, (N, C); see
        `Contracted`.

    Example:
        Two pixels, 3 and 1, one filter of 1x1: m = 3 + 1.

        >>> from flatsearch.flatness.geometry import ConvGeometry
        >>> conv = ConvGeometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
        >>> x = torch.tensor([3.0, 1.0]).view(1, 1, 1, 2)
        >>> filter_grams(x, torch.ones(1, 1, 1, 2), conv)
        (tensor([[[16.]]]), tensor([[16.]]))
    """
    if cheaper(geometry, x.shape[1], S.shape[1], (x.shape[2], x.shape[3])) == "explicit":
        m = _kernel_gradients(geometry.pad(x), S[:, None], geometry)[:, 0]
        M = torch.bmm(m, m.mT)
        return M, M.diagonal(dim1=1, dim2=2)
    gram = _patch_gram(x, geometry, S.shape[2], S.shape[3])
    S = S.flatten(2)
    norms = gram.diagonal(dim1=1, dim2=2)
    return torch.bmm(torch.bmm(S, gram), S.mT), torch.bmm(S.square(), norms[:, :, None])[:, :, 0]


def by_factors(channels: int, positions: int, factors: int) -> bool:
    """Return whether features that treat channels separately are cheaper to do by factors.

    M is C^2 numbers per sample, written and read for little arithmetic, so its multiply-adds count
    threefold. For few positions and classes the factors diag(b_k) S themselves are cheaper.

    Args:
        channels: C.
        positions: P.
        factors: K - 1.

    Returns:
        Whether to call `factor_norms` instead of `filter_grams`.

    Example:
        A 2x2 map and an 8x8 one, ten classes:

        >>> by_factors(512, 4, 9), by_factors(128, 64, 9)
        (True, False)
    """
    cost = factors * (positions + positions**2 / channels)
    return 0 < cost < _SLOW_ENTRIES * (positions + factors + 1)


def separable_norms(
    x: Tensor, S: Tensor, b: Tensor, W: Tensor, Q: Tensor, geometry: ConvGeometry
) -> Contracted:
    """Return each sample's traces and kappa where the features treat channels separately.

    Args:
        x: The convolution's input, (N, C_in, H, W), not padded.
        S: d g_c / d A_c(p), (N, C, rows, columns).
        b: L^T V, (N, K - 1, C).
        W: The kernel, (C, d).
        Q: W W^T, (C, C).
        geometry: The convolution.

    Returns:
        The traces and kappa.
    """
    if by_factors(S.shape[1], S[0, 0].numel(), b.shape[1]):
        columns = [column[:, :, None, None] * S for column in b.unbind(1)]
        return factor_norms(x, columns, W, Q, geometry)
    M, terms = filter_grams(x, S, geometry)
    squares = b.square().sum(1)
    kappa = (torch.bmm(b, M * Q) * b).sum((1, 2))
    return Contracted(M.diagonal(dim1=1, dim2=2) * squares, kappa, terms * squares)


def factor_entries(x: Tensor, factors: Sequence[Tensor], geometry: ConvGeometry) -> int:
    """Return the size of the largest array that `factor_norms` makes of one sample."""
    _, channels, rows, columns = factors[0].shape
    size, pixels = (x.shape[2], x.shape[3]), x.shape[2] * x.shape[3]
    if cheaper(geometry, x.shape[1], channels, size, len(factors)) == "explicit":
        fan_in = x.shape[1] // geometry.groups * geometry.kernel[0] * geometry.kernel[1]
        return max(x[0].numel(), len(factors) * channels * max(rows * columns, fan_in))
    return max(x[0].numel(), len(factors) * channels * rows * columns, pixels**2)


def factor_norms(
    x: Tensor, factors: Sequence[Tensor], W: Tensor, Q: Tensor, geometry: ConvGeometry
) -> Contracted:
    """Return each sample's traces and kappa from factors of any form.

    Args:
        x: The convolution's input, (N, C_in, H, W), not padded.
        factors: g_k = d <L_k, logits> / d A for some k, each (N, C, rows, columns).
        W: The kernel, (C, d).
        Q: W W^T, (C, C).
        geometry: The convolution.

    Returns:
        The traces and kappa, summed over the factors.

    Example:
        One pixel of value 3, one filter w = 2 of 1x1, one factor of 1: m = 3.

        >>> from flatsearch.flatness.geometry import ConvGeometry
        >>> conv = ConvGeometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
        >>> x, W = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1), 2.0)
        >>> factor_norms(x, [torch.ones(1, 1, 1, 1)], W, W @ W.T, conv)[:2]
        (tensor([[9.]]), tensor([36.]))
    """
    _, channels, rows, columns = factors[0].shape
    size = (x.shape[2], x.shape[3])
    if cheaper(geometry, x.shape[1], channels, size, len(factors)) == "explicit":
        m = _kernel_gradients(geometry.pad(x), torch.stack(list(factors), 1), geometry)
        traces = torch.linalg.vector_norm(m, dim=3).square().sum(1)
        if W.shape[1] < channels:  # <m m^T, W W^T> = |W^T m|^2
            kappa = torch.linalg.vector_norm(W.T @ m, dim=(1, 2, 3)).square()
        else:
            kappa = ((Q @ m) * m).sum((1, 2, 3))
        return Contracted(traces, kappa, traces)
    gram = _patch_gram(x, geometry, rows, columns)
    # (N, P, F C): positions first, so that both products are single large ones
    g = torch.stack([factor.flatten(2).mT for factor in factors], 2).flatten(2)
    weighted = torch.bmm(gram, g)
    traces = (weighted * g).view(len(x), -1, channels).sum(1)
    norms = gram.diagonal(dim1=1, dim2=2)
    terms = torch.bmm(norms[:, None], g.square()).view(len(x), -1, channels).sum(1)
    across = g.view(-1, channels) @ Q
    return Contracted(traces, (across.view_as(g) * weighted).sum((1, 2)), terms)
