"""What a recorded graph proves about a tail, and above all what it must not prove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from flatsearch.flatness.proof import Proof, examine

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


def look(tail: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor] | None = None) -> Proof:
    output = torch.randn(SHAPE, requires_grad=True)
    edge = get_gradient_edge(output)
    features = tail(output)
    logits = F.linear(features, torch.randn(2, 3), torch.randn(2))
    return examine(logits if head is None else head(features), features, {"a": edge})


def facts(proof: Proof) -> tuple[bool, bool, bool]:
    """Channelwise, linear, pointwise."""
    return "a" in proof.channelwise, "a" in proof.linear, "a" in proof.pointwise


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
    assert facts(look(LINEAR[name])) == (True, True, True)
    assert look(LINEAR[name]).samplewise


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_tails(name: str) -> None:
    assert facts(look(POINTWISE[name])) == (True, False, True)


@pytest.mark.parametrize("name", CHANNELWISE_ONLY)
def test_smooth_behind_pooling(name: str) -> None:
    assert facts(look(CHANNELWISE_ONLY[name])) == (True, False, False)


@pytest.mark.parametrize("name", NOTHING)
def test_tails_that_mix(name: str) -> None:
    channelwise, _, pointwise = facts(look(NOTHING[name]))
    assert not channelwise
    assert not pointwise


def test_a_gain_that_depends_on_the_map() -> None:
    assert facts(look(lambda x: gap(norm(x, weight=x.mean((0, 2, 3)))))) == (False, False, False)


def test_batch_statistics_are_not_linear() -> None:
    assert "a" not in look(lambda x: gap(norm(x, training=True))).linear


@pytest.mark.parametrize("tail", [lambda x: gap(Squared.apply(x)), lambda x: gap(torch.sin(x))])
def test_unknown_operations_prove_nothing(tail: Callable[[Tensor], Tensor]) -> None:
    proof = look(tail)
    assert facts(proof) == (False, False, False)
    assert not proof.samplewise


COUPLED = {
    "mean over samples": lambda x: gap(x - x.mean(0, keepdim=True)),
    "negative dimension": lambda x: gap(x - x.mean(-4, keepdim=True)),
    "a sample": lambda x: gap(x + x[0]),
    "transposed": lambda x: gap(x.transpose(0, 1)),
    "permuted": lambda x: gap(x.permute(1, 0, 2, 3)),
    "rolled": lambda x: gap(x.roll(1, 0)),
    "other rank": lambda x: gap(x + gap(x)),
    "joined": lambda x: torch.cat([gap(x)[:1], gap(x)[:2]], 0),
    "joined, negative": lambda x: torch.cat([gap(x)[:1], gap(x)[:2]], -2),
    "stacked": lambda x: torch.stack([x[0], x[1], x[2]], 0).mean((2, 3)),
    "unbound": lambda x: gap(x + x.unbind(0)[1]),
    "batch statistics": lambda x: gap(norm(x, training=True)),
    "maximum": lambda x: gap(x + x.amax(0, keepdim=True)),
    "as weights": lambda x: gap(x) @ gap(x),
    "as kernels": lambda x: gap(F.conv2d(torch.ones(SHAPE), x)),
    "shuffled": lambda x: gap(x[[1, 0, 2]]),
    "everything": lambda x: gap(x) + x.mean(),
    "layer norm": lambda x: F.layer_norm(gap(x), (3, 3)),
    "reshaped": lambda x: gap(x).reshape(9).reshape(3, 3).T,
}
UNCOUPLED = {
    "convolution": lambda x: gap(F.conv2d(x, torch.ones(3, 3, 2, 2))),
    "depthwise": lambda x: gap(F.conv2d(x, torch.ones(3, 1, 2, 2), groups=3)),
    "dense": lambda x: torch.cat([gap(x), gap(F.relu(x))], 1)[:, :3],
    "dense, negative": lambda x: torch.cat([x, x], -3).mean((2, 3))[:, 3:],
    "gate": lambda x: gap(x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
    "channels last": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)).mean((1, 2)),
    "group norm": lambda x: gap(F.group_norm(x, 1)),
    "linear": lambda x: F.linear(gap(x), torch.ones(3, 3), torch.ones(3)),
    "shuffle": lambda x: gap(x.transpose(1, 2).contiguous()),
    "split": lambda x: gap(torch.cat(x.split(1, 1), 1)),
    "attention": lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT).mean(2),
    "maximum": lambda x: x.amax((2, 3)),
    "padded": lambda x: gap(F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "upsampled": lambda x: gap(F.interpolate(x, scale_factor=2, mode="bilinear")),
}
LINEAR_ONLY = [
    "convolution", "dense", "dense, negative", "linear", "shuffle", "split", "maximum",
    "padded", "upsampled", "depthwise",
]  # fmt: skip


@pytest.mark.parametrize("name", COUPLED)
def test_networks_that_mix_samples(name: str) -> None:
    proof = look(COUPLED[name])
    assert not proof.samplewise
    assert not proof.channelwise


@pytest.mark.parametrize("name", UNCOUPLED)
def test_networks_that_keep_samples_apart(name: str) -> None:
    proof = look(UNCOUPLED[name])
    assert proof.samplewise
    assert ("a" in proof.linear) == (name in LINEAR_ONLY)


def test_derivatives_that_cannot_be_differentiated_again() -> None:
    assert facts(look(lambda x: gap(F.hardsigmoid(x)))) == (True, True, False)
    assert facts(look(lambda x: gap(F.hardsigmoid(F.silu(x))))) == (True, False, False)


def test_depthwise_convolutions_keep_channels() -> None:
    assert facts(look(UNCOUPLED["depthwise"])) == (True, True, True)
    smooth = look(lambda x: gap(F.silu(F.conv2d(x, torch.ones(3, 1, 2, 2), groups=3))))
    assert facts(smooth) == (True, False, False)
    twice = look(lambda x: gap(F.conv2d(x, torch.ones(6, 1, 2, 2), groups=3)[:, :3]))
    assert "a" not in twice.channelwise


HEADS = {
    "scaled": lambda g: 2 * F.linear(g, torch.ones(2, 3)),
    "two": lambda g: F.linear(F.linear(g, torch.ones(3, 3)), torch.ones(2, 3)),
    "rectified": lambda g: F.relu(F.linear(g, torch.ones(2, 3))),
    "with a skip": lambda g: F.linear(g, torch.ones(2, 3)) + g[:, :2],
    "of itself": lambda g: F.linear(g, g[:2]),
    "biased by itself": lambda g: torch.addmm(g, g, torch.ones(3, 3)),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_are_not_one_linear_layer(name: str) -> None:
    assert not look(gap, HEADS[name]).channelwise
    assert look(gap, lambda g: F.linear(g, torch.ones(2, 3))).channelwise


def test_several_convolutions_are_judged_apart() -> None:
    first = torch.randn(SHAPE, requires_grad=True)
    edges = {"first": get_gradient_edge(first)}
    second = F.conv2d(F.silu(first), torch.randn(3, 3, 1, 1))
    edges["second"] = get_gradient_edge(second)
    # a constant gate as far as the second is concerned
    features = gap(F.relu(second) * torch.sigmoid(first))
    proof = examine(F.linear(features, torch.ones(2, 3)), features, edges)
    assert proof.linear == {"second"}
    assert proof.channelwise == {"second"}
    assert proof.samplewise
