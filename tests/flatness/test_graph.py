"""What a recorded graph proves about a tail, and above all what it must not prove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsearch.flatness.graph import Proof, examine

if TYPE_CHECKING:
    from collections.abc import Callable

# N == C == rows on purpose: a shape alone must not prove anything.
SHAPE = (3, 3, 3, 3)


def gap(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def norm(x: Tensor, *, training: bool = False, weight: Tensor | None = None) -> Tensor:
    channels = x.shape[1]
    mean, variance = torch.zeros(channels), torch.ones(channels)
    return F.batch_norm(x, mean, variance, weight, training=training)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        return 2 * g * ctx.saved_tensors[0]


def look(tail: Callable[[Tensor], Tensor]) -> Proof:
    output = torch.randn(SHAPE, requires_grad=True)
    return examine(tail(output), output)


LINEAR = {
    "relu": lambda x: gap(F.relu(x)),
    "in place": lambda x: gap(x.clone().relu_()),
    "norm, residual": lambda x: gap(F.relu(norm(x) + torch.ones(SHAPE))),
    "own residual": lambda x: gap(F.leaky_relu(x) + x),
    "pooling module": lambda x: nn.AdaptiveAvgPool2d(1)(F.relu6(x)).flatten(1),
    "average pooling": lambda x: F.avg_pool2d(F.hardtanh(x), 3).flatten(1),
    "max pooling": lambda x: gap(F.max_pool2d(x, 2)),
    "negative dimensions": lambda x: x.sum((-1, -2)),
    "in steps": lambda x: x.mean(-1, keepdim=True).squeeze(-1).mean(2),
    "select": lambda x: F.avg_pool2d(x, 3)[:, :, 0, 0],
    "hardsigmoid": lambda x: gap(F.hardsigmoid(x)),
}
POINTWISE = {
    "gelu": lambda x: gap(F.gelu(x)),
    "norm silu": lambda x: gap(F.silu(norm(x))),
    "gated by itself": lambda x: gap(x * torch.sigmoid(x)),
    "several": lambda x: gap(F.elu(F.softplus(x)) + F.mish(x) - torch.tanh(F.hardswish(x))),
    "kink behind the pooling": lambda x: F.relu(gap(F.silu(x))),
}
CHANNELWISE_ONLY = {
    "smooth behind pooling": lambda x: gap(F.silu(F.avg_pool2d(x, 2))),
    "smooth behind the mean": lambda x: F.gelu(gap(x)),
    "times its own mean": lambda x: gap(x * x.mean((2, 3), keepdim=True)),
    "smooth behind maximum": lambda x: gap(F.silu(F.max_pool2d(x, 2))),
}
NOTHING = {
    "transposed": lambda x: gap(x.transpose(0, 1)),
    "channels as rows": lambda x: x.transpose(1, 2).mean((2, 3)),
    "mean over channels": lambda x: x.mean((1, 2)),
    "mean over samples": lambda x: x.mean((0, 3)),
    "select a sample": lambda x: gap(x + x[0]),
    "select a sample, as matrix": lambda x: x[0].mean(2),
    "select from behind": lambda x: x.select(-4, 1).mean(-1),
    "other rank": lambda x: gap(x + gap(x)),
    "view across channels": lambda x: x.reshape(3, 9, 3).mean(2)[:, :3],
    "roll": lambda x: gap(x.roll(1, 1)),
    "channel pooling": lambda x: F.avg_pool2d(x.flatten(2), 3).flatten(1).expand(3, 3),
    "softmax": lambda x: gap(x.softmax(1)),
    "layer norm": lambda x: F.layer_norm(gap(x), (3,)),
    "linear": lambda x: F.linear(gap(x), torch.randn(3, 3)),
    "convolution": lambda x: gap(F.conv2d(x, torch.randn(3, 3, 1, 1))),
    "batch statistics": lambda x: gap(norm(x, training=True)),
    "sum of nothing": lambda x: gap(x) + x.sum(),
}


@pytest.mark.parametrize("name", LINEAR)
def test_piecewise_linear_tails(name: str) -> None:
    assert look(LINEAR[name]) == Proof(True, True, True, True)


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_tails(name: str) -> None:
    assert look(POINTWISE[name]) == Proof(True, False, True, True)


@pytest.mark.parametrize("name", CHANNELWISE_ONLY)
def test_smooth_behind_pooling(name: str) -> None:
    assert look(CHANNELWISE_ONLY[name]) == Proof(True, False, False, True)


@pytest.mark.parametrize("name", NOTHING)
def test_tails_that_mix(name: str) -> None:
    proof = look(NOTHING[name])
    assert not proof.channelwise
    assert not proof.pointwise


def test_a_gain_that_depends_on_the_map() -> None:
    proof = look(lambda x: gap(norm(x, weight=x.mean((0, 2, 3)))))
    assert not proof.channelwise
    assert not proof.piecewise_linear


def test_batch_statistics_are_not_linear() -> None:
    assert not look(lambda x: gap(norm(x, training=True))).piecewise_linear


def test_hand_written_derivatives_are_not_trusted() -> None:
    proof = look(lambda x: gap(Squared.apply(x)))
    assert proof == Proof(False, False, False, False)


def test_unknown_operations_prove_nothing() -> None:
    assert look(lambda x: gap(torch.sin(x))) == Proof(False, False, False, True)


def test_the_output_must_be_where_the_graph_begins() -> None:
    start = torch.randn(SHAPE, requires_grad=True)
    output = start * 2
    assert not examine(gap(output), output).channelwise
