"""Memory layouts: what autograd is taken for the truth about must not depend on them.

torch's batch norm is differentiated wrongly on a CPU where its gradient lies otherwise in memory
than its input and one of the two is ambiguous: a single sample, or maps of one row or column.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import flatsearch
from flatsearch.flatness.graph import match_layouts, ordered
from tests.flatness import oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

C = 4
WEIGHT = torch.tensor([0.5, -1.0, 1.5, 2.0], dtype=torch.float64)
KERNEL = torch.linspace(-1, 1, C * C * 9, dtype=torch.float64).view(C, C, 3, 3)


def normed(x: Tensor, *, training: bool = False) -> Tensor:
    mean, variance = WEIGHT.clone(), WEIGHT.abs()
    return F.batch_norm(x, mean, variance, WEIGHT, WEIGHT, training=training)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch norm": normed,
    "batch norm without gain": lambda x: F.batch_norm(x, WEIGHT, WEIGHT.abs()),
    "batch statistics": lambda x: normed(x, training=True),
    "instance norm": F.instance_norm,
    "group norm": lambda x: F.group_norm(x, 2, WEIGHT, WEIGHT),
    "layer norm": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (C,), WEIGHT).permute(0, 3, 1, 2),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "convolution": lambda x: F.conv2d(x, KERNEL, padding=1),
    "depthwise": lambda x: F.conv2d(x, KERNEL[:, :1], padding=1, groups=C),
    "1x1": lambda x: F.conv2d(x, KERNEL[:, :, :1, :1]),
    "transposed convolution": lambda x: F.conv_transpose2d(x, KERNEL),
    "linear": lambda x: F.linear(x.permute(0, 2, 3, 1), KERNEL[:, :, 0, 0]),
    "gelu": F.gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softplus": F.softplus,
    "leaky relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, WEIGHT.abs()),
    "glu": lambda x: F.glu(x, 1),
    "softmax": lambda x: x.flatten(2).softmax(-1),
    "softmax of channels": lambda x: x.softmax(1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "product": lambda x: x.flatten(2).mT @ x.flatten(2),
    "average": lambda x: x.mean((2, 3)),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive average of several": lambda x: F.adaptive_avg_pool2d(x, 2),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, 1),
    "maximum": lambda x: F.max_pool2d(x, 3, 1, 1),
    "average pooling": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "padding": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
}
SHAPES = [(1, C, 2, 3), (2, C, 2, 3), (1, C, 1, 3), (2, C, 1, 3), (2, C, 3, 1)]


def layouts(x: Tensor) -> Iterator[Tensor]:
    """Yield tensors of the same entries, in every order in memory, and with gaps."""
    for order in itertools.permutations(range(x.ndim)):
        back = [order.index(d) for d in range(x.ndim)]
        yield x.permute(order).contiguous().permute(back)
    if x.ndim == 4:
        yield x.flatten(2).mT.contiguous().mT.view(x.shape)
    gaps = torch.zeros([2 * size for size in x.shape], dtype=x.dtype)
    yield gaps[tuple(slice(0, 2 * size, 2) for size in x.shape)].copy_(x)


@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_do_not_depend_on_the_layout(name: str) -> None:
    formula, generator = FORMULAS[name], torch.Generator().manual_seed(0)
    for shape in SHAPES:
        values = torch.randn(shape, dtype=torch.float64, generator=generator)
        wide = torch.cat([values, values.flip(0)])  # several samples, several rows and columns
        if name in {"batch statistics", "local response norm"}:
            wide = values
        x = wide.clone().requires_grad_()
        output = formula(x)
        cotangent = torch.randn(output.shape, dtype=torch.float64, generator=generator)
        match_layouts(ordered(output.grad_fn))
        (expected,) = torch.autograd.grad(output, x, cotangent)
        expected, cotangent = expected[: len(values)], cotangent[: len(values)]
        for source in itertools.islice(layouts(values), 0, None, 5):
            x = source.detach().requires_grad_()
            output = formula(x)
            match_layouts(ordered(output.grad_fn))
            for given in layouts(cotangent):
                (gradient,) = torch.autograd.grad(output, x, given, retain_graph=True)
                assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_second_derivatives_do_not_depend_on_the_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, C, 2, 3, dtype=torch.float64, generator=generator)
    results = []
    for source in layouts(values):
        x = source.detach().requires_grad_()
        output = F.silu(normed(x)).flatten(2).mT.contiguous().mT
        match_layouts(ordered(output.grad_fn))
        (first,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        results += torch.autograd.grad(first.sum(), x)
    for result in results:
        assert torch.allclose(result, results[0], rtol=1e-10)


class Attend(nn.Module):
    """Attention behind a batch norm: gradients come back with their channels last."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1), nn.Conv2d(C, 5, 1)
        self.norm = norm(C)
        if isinstance(self.norm, nn.BatchNorm2d):
            nn.init.normal_(self.norm.running_mean)
            nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.norm(self.q(x)).flatten(2), self.k(x).flatten(2), self.v(x).flatten(2)
        return (v @ (q.mT @ k).softmax(-1).mT).mean(-1)


class Saves(nn.Module):
    """Keeps no activations."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.body, x, use_reentrant=False)
        return y


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("size", [(8, 8), (3, 8)])  # maps of six rows, and of one
def test_one_sample_behind_attention_with_a_checkpoint(
    norm: type[nn.Module], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Saves(nn.Conv2d(2, C, 3)), nn.ReLU(), Attend(norm), nn.Linear(5, 3))
    model = model.double().eval()
    x, y = torch.randn(1, 2, *size, dtype=torch.float64), torch.zeros(1).long()
    result = flatsearch.relative_flatness(model, (x, y), layers=["2.q"])
    trace, kappa = oracle.by_differences(model, x, "2.q")
    assert result.hessian_trace == pytest.approx(trace, rel=1e-6)
    assert result.relative_flatness == pytest.approx(kappa, rel=1e-6)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("size", [(8, 8), (3, 8)])
def test_one_sample_at_a_time_behind_attention(
    norm: type[nn.Module], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.ReLU(), Attend(norm), nn.Linear(5, 3))
    model = model.double().eval()
    x, y = torch.randn(3, 2, *size, dtype=torch.float64), torch.arange(3)
    expected = {
        (n, layer): oracle.by_differences(model, x[:n], layer)
        for n in (1, 3)
        for layer in ("0", "2.q")
    }
    for n, batch_size in ((3, None), (3, 2), (3, 1), (1, None)):
        result = flatsearch.relative_flatness(
            model, (x[:n], y[:n]), layers=["0", "2.q"], batch_size=batch_size
        )
        for layer in ("0", "2.q"):
            trace, kappa = expected[n, layer]
            assert result.layers[layer].hessian_trace == pytest.approx(trace, rel=1e-6)
            assert result.layers[layer].relative_flatness == pytest.approx(kappa, rel=1e-6)
