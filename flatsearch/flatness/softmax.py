"""A square root of the cross-entropy's Hessian in the logits.

For one sample with probabilities p (K,), the Hessian of the cross-entropy in the logits is
diag(p) - p p^T, of rank K - 1. With u = sqrt(p), a unit vector, it is

    diag(u) (I - u u^T) diag(u) = L L^T,       L = diag(u) R,   L of shape (K, K - 1),

where the K - 1 columns of R are an orthonormal basis of the complement of u. They are read off
the Householder reflection R' = I - h h^T / (1 + u_q), h = u + e_q, q = argmax p, which maps u to
-e_q, so that its other columns are that basis. L therefore costs nothing to store: column k,
with j the k-th class other than q, is

    L_ik = u_i (delta_ij - h_i u_j / (1 + u_q)).

One column less than the K of diag(u) (I - u u^T) itself is one backward pass less; and nothing
cancels when p is close to one class, where differences like V^T diag(p) V - (V^T p)(V^T p)^T lose
all digits.

With a thousand classes, K - 1 backward passes are many. `SampledRoot` has fewer columns, drawn for
each sample on its own, with the right sum of quadratic forms in expectation.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SampledRoot", "SoftmaxRoot"]


class SoftmaxRoot:
    """L of every sample of a batch.

    Attributes:
        columns: K - 1.

    Args:
        logits: (N, K).

    Example:
        Two classes with equal logits, diag(p) - p p^T = [[1, -1], [-1, 1]] / 4:

        >>> column = SoftmaxRoot(torch.zeros(1, 2)).column(0)
        >>> column.T @ column
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]])
    """

    def __init__(self, logits: Tensor) -> None:
        n, k = logits.shape
        self.columns = k - 1
        # exp(log p / 2) is still right where p itself underflows
        self._u = torch.exp(logits.log_softmax(1) / 2)
        self._p = self._u.square()
        self._q = self._u.argmax(1, keepdim=True)  # (N, 1)
        # |u| is 1 only up to rounding; this is u_q of the normalised vector
        self._peak = self._u.gather(1, self._q)
        self._h = self._u.scatter_add(1, self._q, torch.ones_like(self._peak))
        others = torch.arange(k - 1, device=logits.device).expand(n, -1)
        self._others = others + (others >= self._q)  # (N, K - 1)

    def column(self, k: int | Tensor) -> Tensor:
        """Return L[:, k] of every sample, (N, K); k from 0 to K - 2, or one for each, (N, 1)."""
        j = self._others[:, k : k + 1] if isinstance(k, int) else self._others.gather(1, k)
        u_j = self._u.gather(1, j)
        result = self._u * self._h * (-u_j / (1 + self._peak))
        return result.scatter_add(1, j, u_j)

    def probabilities(self) -> Tensor:
        """Return the probability of each column's class, (N, K - 1)."""
        return self._p.gather(1, self._others)

    def times(self, V: Tensor | None) -> Tensor:
        """Return b = L^T V, (N, K - 1, C), of a matrix V (K, C), the identity where None.

        b_k = u_j (v_j - s / (1 + u_q)) with s = V^T p + u_q v_q, and b^T b is
        V^T (diag(p) - p p^T) V.
        """
        if V is None:
            V = torch.eye(self._u.shape[1], dtype=self._u.dtype, device=self._u.device)
        # L^T 1 = 0: what all rows have in common only costs digits
        V = V - V.mean(0)
        s = self._p @ V + self._peak * V[self._q[:, 0]]
        centred = V[self._others] - (s / (1 + self._peak))[:, None, :]
        return centred * self._u.gather(1, self._others)[:, :, None]

    def diagonal(self) -> Tensor:
        """Return the diagonal of L L^T, p_k (1 - p_k), (N, K)."""
        others = self.probabilities().sum(1, keepdim=True)
        # 1 - p_q as a sum, which does not cancel
        return self._p * (1 - self._p).scatter(1, self._q, others)


class SampledRoot:
    """Some columns of L, scaled so that a quadratic form's sum over them is right on average.

    Half of them are those of the most probable classes. The others are drawn with chance
    r_k ~ p_k, which is about |L_k|^2, and divided by sqrt(D r_k) for D draws:

        E[sum_d f(l_d)] = sum_k f(L_k)      for f(l) = l^T A l

    Attributes:
        columns: How many.

    Args:
        root: L.
        columns: How many, fewer than K - 1.
        generator: The generator of random numbers, on the CPU.

    Example:
        Three equal classes, one column of two: either of them, times the square root of 2.

        >>> root = SoftmaxRoot(torch.zeros(1, 3))
        >>> drawn = SampledRoot(root, 1, torch.Generator().manual_seed(0)).column(0)
        >>> any(torch.allclose(drawn, root.column(k) * 2**0.5) for k in range(2))
        True
    """

    def __init__(self, root: SoftmaxRoot, columns: int, generator: torch.Generator) -> None:
        self.columns, self._root = columns, root
        certain = columns // 2
        p, order = root.probabilities().double().sort(1, descending=True)
        rest = p[:, certain:]
        rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, 1.0)  # where all have vanished
        ladder = rest.cumsum(1)
        draws = (len(p), columns - certain)
        height = torch.rand(draws, generator=generator, dtype=p.dtype, device="cpu").to(p.device)
        places = torch.searchsorted(ladder, height * ladder[:, -1:], right=True)
        places = places.clamp(max=rest.shape[1] - 1)
        chances = rest.gather(1, places) / ladder[:, -1:]
        drawn = order[:, certain:].gather(1, places)
        self._chosen = torch.cat([order[:, :certain], drawn], 1)
        ones = torch.ones_like(p[:, :certain])
        self._scale = torch.cat([ones, (draws[1] * chances).rsqrt()], 1)

    def column(self, k: int) -> Tensor:
        """Return the k-th of the columns of every sample, (N, K)."""
        column = self._root.column(self._chosen[:, k : k + 1])
        return column * self._scale[:, k : k + 1].to(column.dtype)
