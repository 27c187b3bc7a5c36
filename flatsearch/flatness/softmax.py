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
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SoftmaxRoot"]


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

    def column(self, k: int) -> Tensor:
        """Return L[:, k] of every sample, (N, K); k from 0 to K - 2."""
        j = self._others[:, k : k + 1]
        u_j = self._u.gather(1, j)
        result = self._u * self._h * (-u_j / (1 + self._peak))
        return result.scatter_add(1, j, u_j)

    def times(self, V: Tensor | None) -> Tensor:
        """Return b = L^T V, (N, K - 1, C), of a matrix V (K, C), the identity where None.

        b_k = u_j (v_j - s / (1 + u_q)) with s = V^T p + u_q v_q, and b^T b is
        V^T (diag(p) - p p^T) V.
        """
        if V is None:
            V = torch.eye(self._u.shape[1], dtype=self._u.dtype, device=self._u.device)
        s = self._p @ V + self._peak * V[self._q[:, 0]]
        centred = V[self._others] - (s / (1 + self._peak))[:, None, :]
        return centred * self._u.gather(1, self._others)[:, :, None]

    def diagonal(self) -> Tensor:
        """Return the diagonal of L L^T, p_k (1 - p_k), (N, K)."""
        others = self._p.gather(1, self._others).sum(1, keepdim=True)
        # 1 - p_q as a sum, which does not cancel
        return self._p * (1 - self._p).scatter(1, self._q, others)
