"""Convolutions without a convolution: refused by name; what only looks alike is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import flatsearch
from flatsearch import UnsupportedModelError
from tests.flatness import oracle
from tests.flatness.nets import GapByMean, images

if TYPE_CHECKING:
    from collections.abc import Callable

OFFSETS = [(i, j) for i in range(3) for j in range(3)]


class By(nn.Module):
    """A function of the image and a layer or a kernel of its own."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor], own: Any) -> None:
        super().__init__()
        self.function = function
        self.own = own if isinstance(own, nn.Module) else nn.Parameter(0.3 * torch.randn(own))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.own)


def maps(columns: Tensor, x: Tensor, change: int = -2) -> Tensor:
    return columns.reshape(len(x), -1, x.shape[2] + change, x.shape[3] + change)


def slices(x: Tensor) -> list[Tensor]:
    rows, columns = x.shape[2] - 2, x.shape[3] - 2
    return [x[..., i : i + rows, j : j + columns] for i, j in OFFSETS]


def channels_last(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def strided(x: Tensor) -> Tensor:
    n, c, rows, columns = x.shape
    strides = x.contiguous().stride()
    return x.contiguous().as_strided((n, c, rows - 2, columns - 2, 3, 3), strides + strides[2:])


def indexed(x: Tensor) -> Tensor:
    rows, columns = (torch.arange(s - 2)[:, None] + torch.arange(3) for s in x.shape[2:])
    return x[:, :, rows[:, None, :, None], columns[None, :, None, :]]


def windows(x: Tensor) -> Tensor:
    return x.unfold(2, 3, 1).unfold(3, 3, 1)


def in_a_buffer(x: Tensor, w: Tensor) -> Tensor:
    columns = x.new_zeros(len(x), x.shape[1], 9, x.shape[2] - 2, x.shape[3] - 2)
    for k, part in enumerate(slices(x)):
        columns[:, :, k] = part
    return maps(w @ columns.view(len(x), w.shape[1], -1), x)


def padded_slices(x: Tensor, layer: nn.Module) -> Tensor:
    parts = [
        F.pad(x, (1, 1, 1, 1))[..., i:, j:][..., : len(x[0, 0]), : x.shape[3]] for i, j in OFFSETS
    ]
    return channels_last(layer, torch.cat(parts, 1))


def written(x: Tensor, w: Tensor) -> Tensor:
    rows, columns = x.shape[2:]
    out = x.new_zeros(len(x), 5, rows + 2, columns + 2)
    for i, j in OFFSETS:
        out[..., i : i + rows, j : j + columns] += torch.einsum("nchw,oc->nohw", x, w[:, :, i, j])
    return out


def fourier(x: Tensor, w: Tensor) -> Tensor:
    kernel, size = torch.fft.rfft2(w, s=x.shape[2:]), x.shape[2:]
    return torch.fft.irfft2(torch.einsum("nchw,ochw->nohw", torch.fft.rfft2(x), kernel), s=size)


def without_gradient(x: Tensor, layer: nn.Module) -> Tensor:
    with torch.no_grad():
        return maps(layer(F.unfold(x, 3).mT).mT, x)


class Product(torch.autograd.Function):
    """A matrix product with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(w, x)
        return w @ x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        w, x = ctx.saved_tensors
        return (g @ x.mT).sum(0), w.mT @ g


ONE_BY_ONE = "nchw,oc->nohw"
PATCHES = "nchwij,ocij->nohw"
FULL = (5, 4, 3, 3)
UNFOLD = "multiplied with patches that unfold gives"
SLICES = "multiplied with shifted slices"
# How, what with, and why it is refused.
BY_HAND: dict[str, tuple[Callable[[Tensor, Any], Tensor], Callable[[], Any], str]] = {
    "unfold": (lambda x, w: maps(w @ F.unfold(x, 3), x), lambda: (5, 36), UNFOLD),
    "view": (lambda x, w: maps(w.view(5, -1) @ F.unfold(x, 3), x), lambda: FULL, UNFOLD),
    "linear": (
        lambda x, layer: maps(layer(F.unfold(x, 3).mT).mT, x),
        lambda: nn.Linear(36, 5),
        UNFOLD,
    ),
    "weight norm": (
        lambda x, layer: maps(layer(F.unfold(x, 3).mT).mT, x),
        lambda: parametrizations.weight_norm(nn.Linear(36, 5)),
        UNFOLD,
    ),
    "depthwise": (
        lambda x, w: maps((F.unfold(x, 3).unflatten(1, (4, 9)) * w).sum(2), x),
        lambda: (4, 9, 1),
        UNFOLD,
    ),
    "pieces": (
        lambda x, w: maps(
            sum(w[k] @ p for k, p in enumerate(F.unfold(x, 3).unflatten(1, (4, 9)).unbind(2))), x
        ),
        lambda: (9, 5, 4),
        UNFOLD,
    ),
    "vmap": (
        lambda x, w: maps(torch.vmap(lambda one: w @ F.unfold(one[None], 3)[0])(x), x),
        lambda: (5, 36),
        UNFOLD,
    ),
    "hand-written": (
        lambda x, w: maps(Product.apply(w, F.unfold(x, 3)), x),
        lambda: (5, 36),
        UNFOLD,
    ),
    "centred": (
        lambda x, w: maps(w @ centred(F.unfold(x, 3)), x),
        lambda: (5, 36),
        UNFOLD,
    ),
    "activated": (
        lambda x, w: maps(w @ leaky(F.unfold(x, 3)), x),
        lambda: (5, 36),
        UNFOLD,
    ),
    "normalised": (
        lambda x, layers: maps(layers(F.unfold(x, 3).mT).mT, x),
        lambda: nn.Sequential(nn.LayerNorm(36), nn.Linear(36, 5)),
        UNFOLD,
    ),
    "windows": (lambda x, w: torch.einsum(PATCHES, windows(x), w), lambda: FULL, UNFOLD),
    "strides": (
        lambda x, w: torch.einsum(PATCHES, strided(x), w),
        lambda: FULL,
        UNFOLD.replace("unfold", "as_strided"),
    ),
    "index": (
        lambda x, w: torch.einsum(PATCHES, indexed(x), w),
        lambda: FULL,
        UNFOLD.replace("unfold", "getitem"),
    ),
    "stack": (
        lambda x, w: torch.einsum("knchw,kco->nohw", torch.stack(slices(x)), w),
        lambda: (9, 4, 5),
        SLICES,
    ),
    "rolled": (
        lambda x, f: channels_last(f, torch.cat([x, x.roll(1, 2), x.roll(-1, 2)], 1)),
        lambda: nn.Linear(12, 5),
        SLICES,
    ),
    "padded": (padded_slices, lambda: nn.Linear(36, 5), SLICES),
    "buffer": (in_a_buffer, lambda: (5, 36), SLICES),
    "shifts": (
        lambda x, w: sum(
            torch.einsum(ONE_BY_ONE, part, w[:, :, i, j])
            for part, (i, j) in zip(slices(x), OFFSETS, strict=True)
        ),
        lambda: FULL,
        SLICES,
    ),
    "rolls": (
        lambda x, w: sum(x.roll((i, j), (2, 3)) * w[:, i, j, None, None] for i, j in OFFSETS),
        lambda: (4, 3, 3),
        SLICES,
    ),
    "fourier": (fourier, lambda: FULL, "multiplied with a Fourier transform"),
    "fold": (
        lambda x, w: F.fold(w @ x.flatten(2), (x.shape[2] + 2, x.shape[3] + 2), 3),
        lambda: (45, 4),
        "its products are added up by fold",
    ),
    "written": (written, lambda: FULL, "its products are added up by slices"),
    "swapped": (
        lambda x, w: x * F.conv2d(w, x.mean((2, 3), keepdim=True)).transpose(0, 1),
        lambda: (1, 4, 1, 1),
        "convolved with what depends on the images",
    ),
    "no gradient": (without_gradient, lambda: nn.Linear(36, 5), "no gradient reaches it"),
}


def network(middle: nn.Module) -> nn.Sequential:
    channels = middle(torch.ones(2, 4, 6, 6)).shape[1]
    layers = [nn.Conv2d(2, 4, 3), nn.Tanh(), middle, nn.Tanh(), GapByMean()]
    return nn.Sequential(*layers, nn.Linear(channels, 3))


@pytest.mark.parametrize("name", BY_HAND)
def test_refused_by_name(name: str) -> None:
    torch.manual_seed(0)
    function, make, why = BY_HAND[name]
    model = network(By(function, make()))
    with pytest.raises(UnsupportedModelError) as caught:
        flatsearch.relative_flatness(model, images(), layers="all")
    assert why in str(caught.value)
    own = "2.own.1" if name == "normalised" else "2.own"
    assert f"layer '{own}'" in str(caught.value)
    if name != "no gradient":  # which the layer in front does not get, either
        # What is convolved behind a pooling is not of the main path.
        for layers in ("last", "main")[: 1 + (name != "swapped")]:
            with pytest.raises(UnsupportedModelError, match=f"layer '{own}'"):
                flatsearch.relative_flatness(model, images(), layers=layers)
        found = flatsearch.relative_flatness(model, images(), "all", skip_unsupported=True)
        assert (list(found.layers), list(found.skipped)) == (["0"], [own])


def test_the_first_layer_too() -> None:
    torch.manual_seed(0)
    first = By(lambda x, w: maps(w @ F.unfold(x, 3), x), (4, 18))
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 5, 3), GapByMean(), nn.Linear(5, 3))
    assert list(flatsearch.relative_flatness(model, images()).layers) == ["2"]
    with pytest.raises(UnsupportedModelError, match=r"layer '0\.own'"):
        flatsearch.relative_flatness(model, images(), layers="all")


class Local(nn.Module):
    """Attention among neighbours, or a kernel that a convolution makes for every position."""

    def __init__(self, *, attention: bool) -> None:
        super().__init__()
        self.attention, self.maps = attention, nn.Conv2d(4, 12 if attention else 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.attention:
            return maps((self.maps(x).flatten(2)[:, None] * near(x)).sum(2), x, 0)
        q, k, v = self.maps(x).chunk(3, 1)
        weights = (q.flatten(2)[:, :, None] * near(k)).sum(1, keepdim=True).softmax(2)
        return maps((weights * near(v)).sum(2), x, 0)


class Generated(nn.Module):
    """A depthwise convolution of each image with its own kernel, which a convolution makes."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv2d(4, 36, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.make(x.mean((2, 3), keepdim=True)).view(-1, 1, 3, 3)
        return F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, groups=len(kernels)).view(
            *x.shape[:2], x.shape[2] - 2, x.shape[3] - 2
        )


def near(x: Tensor) -> Tensor:
    return F.unfold(x, 3, padding=1).unflatten(1, (x.shape[1], 9))


def merged(x: Tensor, layer: nn.Module) -> Tensor:
    """Swin's patch merging."""
    parts = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return channels_last(layer, torch.cat(parts, 1))


def box(x: Tensor, layer: nn.Module) -> Tensor:
    return channels_last(
        layer, x[..., 1:] + x[..., :-1] + windows(x).amax((4, 5)).mean((1, 2, 3), keepdim=True)
    )


def tokens(x: Tensor, layer: nn.MultiheadAttention) -> Tensor:
    rows = x.flatten(2).mT
    return maps(layer(rows, rows, rows)[0].mT, x, 0)


OTHERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "dense layers": (lambda: By(lambda x, f: channels_last(f, x), nn.Linear(4, 4)), []),
    "patch merging": (lambda: By(merged, nn.Linear(16, 5)), []),
    "padded with its own": (
        lambda: By(lambda x, f: channels_last(f, torch.cat([x[..., :1], x], 3)), nn.Linear(4, 4)),
        [],
    ),
    "sums of slices": (lambda: By(box, nn.Linear(4, 4)), []),
    "mixed tokens": (lambda: By(lambda x, f: maps(f(x.flatten(2)), x, 0), nn.Linear(36, 36)), []),
    "attention": (lambda: By(tokens, nn.MultiheadAttention(4, 1, batch_first=True)), []),
    "local attention": (lambda: Local(attention=True), ["2.maps"]),
    "involution": (lambda: Local(attention=False), ["2.maps"]),
    "generated kernels": (Generated, ["2.make"]),
    "rolled": (lambda: By(lambda x, f: channels_last(f, x.roll(1, 2)), nn.Linear(4, 4)), []),
    "Fourier mixing": (
        lambda: By(lambda x, f: channels_last(f, x + torch.fft.fft2(x).real), nn.Linear(4, 4)),
        [],
    ),
    "positions": (lambda: By(lambda x, p: (x + p[..., 1:, 1:]).tanh(), (1, 4, 7, 7)), []),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_convolution_is_left_out(name: str) -> None:
    torch.manual_seed(0)
    build, layers = OTHERS[name]
    model, (x, y) = network(build()), images()
    found = flatsearch.relative_flatness(model, (x, y), layers="all", dtype=torch.float64)
    assert list(found.layers) == ["0", *layers]
    for layer, measured in found.layers.items():
        if found.kind == "hessian":
            trace, kappa = oracle.by_hessian(model, x, y, layer)
        else:
            trace, kappa = oracle.by_gauss_newton(model, x, layer)
        assert measured.hessian_trace == pytest.approx(trace, rel=1e-9)
        assert measured.relative_flatness == pytest.approx(kappa, rel=1e-9)
