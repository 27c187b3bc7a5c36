"""What becomes of a convolution's positions, however it is written down."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsearch.flatness.pooling import pooling

if TYPE_CHECKING:
    from collections.abc import Callable


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def attend(query: Tensor, x: Tensor, heads: int = 1) -> Tensor:
    """Attention as written by hand: (N, P, C) for the queries of x, or of a parameter."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, x, x))
    weights = (q @ k.mT / math.sqrt(k.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def with_token(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros(len(x), 1, x.shape[2]), x], 1)


class Fused(nn.Module):
    """torch's attention layer, with positions in front of samples inside."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.queries = queries

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(x)
        query = torch.ones(len(x), 1, 6) if self.queries == 1 else x
        return self.attention(query, x, x, need_weights=False)[0]


GLOBAL = {
    "mean": lambda x: x.mean((2, 3)),
    "flattened positions": lambda x: x.flatten(2).mean(2),
    "one after the other": lambda x: x.mean(3).mean(2),
    "module": lambda x: nn.AdaptiveAvgPool2d(1)(x).flatten(1),
    "maximum": lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "behind a linear layer": lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(5, 6)).mean((
        1,
        2,
    )),
    "an operation that is not known": lambda x: x.logsumexp((2, 3)),
    "behind patches": lambda x: (torch.ones(5, 54) @ F.unfold(x, 3)).mean(2),
    "strides": lambda x: F.conv2d(x, torch.ones(6, 6, 4, 4)).flatten(1),
    "product with weights": lambda x: (x.flatten(2) @ torch.ones(16, 1)).squeeze(-1),
    "product with a vector": lambda x: x.flatten(2) @ torch.ones(16),
    "einsum": lambda x: torch.einsum("nchw,hw->nc", x, torch.ones(4, 4)),
    "one query": lambda x: attend(torch.ones(len(x), 1, 6), tokens(x), 2)[:, 0],
    "one query, fused": lambda x: Fused(1)(x)[:, 0],
    "one query, one kernel": lambda x: F.scaled_dot_product_attention(
        torch.ones(len(x), 1, 1, 6), tokens(x)[:, None], tokens(x)[:, None]
    ).flatten(1),
    "attention, then the mean": lambda x: attend(tokens(x), tokens(x)).mean(1),
    "attention, then the mean, fused": lambda x: Fused(16)(x).mean(1),
    "windows": lambda x: (
        x
        .unflatten(2, (2, 2))
        .unflatten(4, (2, 2))
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(-1, 4, 6)
        .mean(1)
        .view(len(x), 4, 6)
        .mean(1)
    ),
    "with a token of the mean": lambda x: attend(
        torch.cat([tokens(x).mean(1, keepdim=True), tokens(x)], 1), tokens(x)
    )[:, 0],
}
FLATTENED = {
    "dense": lambda x: F.linear(x.flatten(1), torch.ones(2, 96)),
    "pooled to some positions": lambda x: F.linear(
        F.adaptive_avg_pool2d(x, 3).flatten(1), torch.ones(2, 54)
    ),
    "tokens": lambda x: F.linear(tokens(x).reshape(len(x), -1), torch.ones(2, 96)),
}
NONE = {
    "one position": lambda x: tokens(x)[:, 0],
    "a slice": lambda x: tokens(x)[:, :1].flatten(1),
    "token": lambda x: attend(with_token(tokens(x)), with_token(tokens(x)), 3)[:, 0],
    "queries of all": lambda x: attend(tokens(x), tokens(x))[:, 0],
    "queries of all, fused": lambda x: Fused(16)(x)[:, 0],
    "windows": lambda x: (
        x
        .unflatten(2, (2, 2))
        .unflatten(4, (2, 2))
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(-1, 4, 6)[:, 0]
        .view(len(x), 4, 6)[:, 0]
    ),
}
WAYS = {"global": GLOBAL, "flattened": FLATTENED, "none": NONE}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, tails in WAYS.items() for name in tails]
)
@pytest.mark.parametrize("n", [2, 4, 6])  # as many as rows, or as channels
def test_how_positions_are_pooled(kind: str, name: str, n: int) -> None:
    tail: Callable[[Tensor], Tensor] = WAYS[kind][name]
    output = torch.randn(n, 6, 4, 4, requires_grad=True) * 1
    assert pooling(tail(output), output.grad_fn) == kind
