"""Whoever calls a convolution: measured where the derivation holds, refused by name elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DeformConv2d

import flatsearch
from flatsearch import UnsupportedModelError
from tests.flatness import oracle
from tests.flatness.nets import GapByMean, images

if TYPE_CHECKING:
    from collections.abc import Callable


class Own(nn.Module):
    """A convolution with a parameter of its own, as a function or an operation."""

    def __init__(self, call: Callable[..., Tensor] = F.conv2d, name: str = "weight") -> None:
        super().__init__()
        self.call, self.name = call, name
        self.register_parameter(name, nn.Parameter(torch.randn(5, 4, 3, 3) * 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, getattr(self, self.name))


class ClippedInput(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-1, 1))


class RoundedInput(nn.Conv2d):
    """Quantises what it convolves; constant almost everywhere in its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((4 * x).round() / 4)


class SamePadding(nn.Conv2d):
    """TensorFlow's padding: more of it at the end, and how much depends on the image's size."""

    def forward(self, x: Tensor) -> Tensor:
        missing = [
            max((-(size // -s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, s, k, d in zip(
                x.shape[2:], self.stride, self.kernel_size, self.dilation, strict=True
            )
        ]
        rows, columns = missing
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Pair(nn.Conv2d):
    """Returns a tuple, as partial convolutions do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class First(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)[0]


class Checkpointed(nn.Sequential):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


class Reentrant(Checkpointed):
    reentrant = True


def network(conv: nn.Module, channels: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.Tanh(),
        conv,
        nn.BatchNorm2d(channels),
        nn.SiLU(),
        GapByMean(),
        nn.Linear(channels, 3),
    )


def block() -> list[nn.Module]:
    return [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1)]


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return network(nn.Conv2d(4, 5, 3))


# How a network is built, what its last convolution is called, and how an oracle can build it.
MEASURED: dict[str, tuple[Any, str, Any]] = {
    "a function": (lambda: network(Own()), "2", None),
    "under another name": (lambda: network(Own(name="filters")), "2.filters", None),
    "an operation": (
        lambda: network(Own(torch.ops.aten.conv2d.default)),
        "2",
        lambda: network(Own()),
    ),
    "by keyword, with strides": (
        lambda: network(Own(lambda x, w: F.conv2d(x, weight=w, stride=2, dilation=(1, 2)))),
        "2",
        None,
    ),
    "clipped input": (lambda: network(ClippedInput(4, 5, 3)), "2", None),
    "rounded input": (lambda: network(RoundedInput(4, 5, 3)), "2", None),
    "padding as in TensorFlow": (lambda: network(SamePadding(4, 5, (3, 2), 2)), "2", None),
    "a tuple": (lambda: network(First(Pair(4, 5, 3))), "2.0", None),
    "checkpointed": (
        lambda: network(Checkpointed(*block())),
        "2.3",
        lambda: network(nn.Sequential(*block())),
    ),
    "a copy of the kernel": (
        lambda: network(Own(lambda x, w: F.conv2d(x, w.clone(memory_format=torch.channels_last)))),
        "2",
        lambda: network(Own()),
    ),
    "made in inference mode": (
        made_in_inference_mode,
        "2",
        lambda: network(nn.Conv2d(4, 5, 3)),
    ),
    "channels last": (
        lambda: network(nn.Conv2d(4, 5, 3)).to(memory_format=torch.channels_last),
        "2",
        None,
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_measured(name: str) -> None:
    torch.manual_seed(0)
    build, last, plain = MEASURED[name]
    model, (x, y) = build(), images()
    same = (plain or build)()
    same.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    assert (result.kind, list(result.layers)) == ("hessian", [last])
    trace, kappa = oracle.by_hessian(same, x, y, last)
    assert result.hessian_trace == pytest.approx(trace, rel=1e-9)
    assert result.relative_flatness == pytest.approx(kappa, rel=1e-9)
    every = flatsearch.relative_flatness(model, (x, y), layers="all", dtype=torch.float64)
    assert [*every.layers][:: len(every.layers) - 1] == ["0", last]
    for layer, measured in every.layers.items():
        trace, kappa = oracle.by_kernel_gradients(same, x, [layer])[layer]
        assert measured.hessian_trace == pytest.approx(trace, rel=1e-9)
        assert measured.relative_flatness == pytest.approx(kappa, rel=1e-9)


def test_the_input_is_the_convolutions_on_every_image() -> None:
    # What is clipped does not show on the images that are looked at first.
    torch.manual_seed(0)
    model = nn.Sequential(ClippedInput(2, 4, 3), nn.ReLU(), GapByMean(), nn.Linear(4, 3)).double()
    x, y = torch.randn(96, 2, 8, 8).double(), torch.arange(96) % 3
    x[:64].clamp_(-1, 1)
    x[64:] *= 5
    result = flatsearch.relative_flatness(model, (x, y))
    trace, kappa = oracle.by_hessian(model, x, y, "0")
    assert result.hessian_trace == pytest.approx(trace, rel=1e-9)
    assert result.relative_flatness == pytest.approx(kappa, rel=1e-9)


def test_names_of_functional_layers() -> None:
    torch.manual_seed(0)
    model, data = network(Own(name="filters")), images()
    expected = flatsearch.relative_flatness(model, data)
    assert list(expected.layers) == ["2.filters"]
    assert flatsearch.relative_flatness(model, data, layers="2.filters") == expected
    with pytest.raises(UnsupportedModelError, match=r"'2' is a Own; convolutions: 0, 2.filters;"):
        flatsearch.relative_flatness(model, data, layers="2")
    model = network(Own())
    expected = flatsearch.relative_flatness(model, data)
    for name in ("2", "2.weight"):
        assert flatsearch.relative_flatness(model, data, layers=name) == expected


class TwoConvs(nn.Module):
    """Two kernels in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(0.3 * torch.randn(4, 4, 3, 3))
        self.weight2 = nn.Parameter(0.3 * torch.randn(5, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.weight1, padding=1).tanh(), self.weight2)


def test_every_kernel_of_a_module_is_a_layer() -> None:
    torch.manual_seed(0)
    model, (x, y) = network(TwoConvs()), images()
    found = flatsearch.relative_flatness(model, (x, y), layers="all", dtype=torch.float64)
    assert list(found.layers) == ["0", "2.weight1", "2.weight2"]
    for layer, (trace, _) in oracle.by_kernel_gradients(model, x, list(found.layers)).items():
        assert found.layers[layer].hessian_trace == pytest.approx(trace, rel=1e-9)
    assert list(flatsearch.relative_flatness(model, (x, y)).layers) == ["2.weight2"]


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.conv = nn.Conv2d(4, 18, 3), DeformConv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offsets(x))


class Unrolled(nn.Conv2d):
    """A 1x1 convolution as a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", x, self.weight[:, :, 0, 0])


class Experts(nn.Module):
    """Kernels that are mixed for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.route = nn.Parameter(torch.randn(3, 5 * 4 * 9)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, _, *size = x.shape
        kernels = (self.route(x.mean((2, 3))).sigmoid() @ self.weight).view(5 * n, 4, 3, 3)
        y = F.conv2d(x.reshape(1, -1, *size), kernels, groups=n)
        return y.view(n, 5, *y.shape[2:])


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.conv(x)


class Inference(Frozen):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.conv(x)


class Merging(torch.autograd.Function):
    """A convolution inside of a hand-written operation."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.save_for_backward(x, w)
        return F.conv2d(x, w)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def,override]
        x, w = ctx.saved_tensors
        return (
            torch.nn.grad.conv2d_input(x.shape, w, g),
            torch.nn.grad.conv2d_weight(x, w.shape, g),
        )


def pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(4, 5, 3), "weight", 0.5)


UTILS = "torch.nn.utils"
CONV = "model.get_submodule('2'), 'weight'"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "deformable": (Deformed, "layer '2.conv': DeformConv2d is not covered"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 5, 3), "'2': ConvTranspose2d is not covered"),
    "weight norm": (
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 5, 3)),
        f"layer '2': its kernel is not used as one plain convolution: it is reparametrised"
        f" (WeightNorm): {UTILS}.parametrize.remove_parametrizations({CONV}) makes it plain",
    ),
    "spectral norm": (
        lambda: parametrizations.spectral_norm(nn.Conv2d(4, 5, 3)),
        f"(SpectralNorm): {UTILS}.parametrize.remove_parametrizations({CONV}) makes it plain",
    ),
    "old weight norm": (
        lambda: old_weight_norm(nn.Conv2d(4, 5, 3)),
        f"(WeightNorm): {UTILS}.remove_weight_norm({CONV}) makes it plain",
    ),
    "old spectral norm": (
        lambda: old_spectral_norm(nn.Conv2d(4, 5, 3)),
        f"(SpectralNorm): {UTILS}.remove_spectral_norm({CONV}) makes it plain",
    ),
    "pruned": (pruned, f"(L1Unstructured): {UTILS}.prune.remove({CONV}) makes it plain"),
    "matrix product": (
        lambda: Unrolled(4, 5, 1),
        "layer '2': its kernel is not used as one plain convolution, but by S",
    ),
    "experts": (Experts, "layer '2': its kernel is not used as one plain convolution"),
    "under no_grad": (Frozen, "layer '2.conv': the logits depend on it, but no gradient"),
    "in inference mode": (Inference, "a part of the model runs in torch.inference_mode, and"),
    "reentrant": (
        lambda: Reentrant(*block()),
        "layer '2.3': the logits depend on it, but no gradient reaches it",
    ),
    "hand-written": (
        lambda: Own(Merging.apply),
        "layer '2': its kernel is not used as one plain convolution, but by Merging",
    ),
    "scripted": (
        lambda: torch.jit.trace(nn.Conv2d(4, 5, 3), torch.ones(1, 4, 6, 6)),
        "layer '2' is TorchScript, which hides its kernels and operations",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_never_left_out(name: str) -> None:
    torch.manual_seed(0)
    build, message = REFUSED[name]
    model, data = network(build()), images()
    for layers in ("last", "all"):
        with pytest.raises(UnsupportedModelError) as caught:
            flatsearch.relative_flatness(model, data, layers=layers)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_layers_that_are_not_covered_can_be_left_out() -> None:
    torch.manual_seed(0)
    layers = [network(Deformed())[2], nn.ReLU(), nn.ConvTranspose2d(5, 5, 3)]
    model, data = network(nn.Sequential(*layers)), images()
    with pytest.raises(UnsupportedModelError) as caught:
        flatsearch.relative_flatness(model, data, layers="all")
    for part in ("layer '2.0.conv': Deform", "; layer '2.2': Conv", "skip_unsupported=True"):
        assert part in str(caught.value)
    result = flatsearch.relative_flatness(model, data, layers="all", skip_unsupported=True)
    assert list(result.layers) == ["0", "2.0.offsets"]
    assert list(result.skipped) == ["2.0.conv", "2.2"]
    assert result.skipped["2.2"] == "ConvTranspose2d is not covered, only plain 2d convolutions"
    expected = flatsearch.relative_flatness(model, data, layers=["0", "2.0.offsets"])
    assert result.relative_flatness == expected.relative_flatness
    assert expected.skipped == {}
    # There is nothing to be measured instead.
    for wanted in ("last", ["2.2"]):
        with pytest.raises(UnsupportedModelError, match=r"layer '2\.2'") as caught:
            flatsearch.relative_flatness(model, data, layers=wanted, skip_unsupported=True)
        assert "skip" not in str(caught.value)


class InSingle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * 2


def test_models_that_insist_on_a_precision() -> None:
    torch.manual_seed(0)
    model, data = network(nn.Sequential(InSingle(), nn.Conv2d(4, 5, 3))), images()
    flatsearch.relative_flatness(model, data)
    with pytest.raises(UnsupportedModelError, match=r"cannot be computed in torch\.float64"):
        flatsearch.relative_flatness(model, data, dtype=torch.float64)
