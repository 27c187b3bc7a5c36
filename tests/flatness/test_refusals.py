"""What the derivation does not cover is refused by name, never measured wrongly."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.ao.nn.quantized.dynamic import Linear as Dynamic
from torch.nn.utils import parametrizations

import flatsearch
from flatsearch import NonFiniteError, UnsupportedModelError
from tests.flatness import oracle
from tests.flatness.nets import CASES, GapByMean, images

if TYPE_CHECKING:
    from collections.abc import Callable


def head(channels: int = 4) -> list[nn.Module]:
    return [GapByMean(), nn.Linear(channels, 3)]


class SqueezeExcite(nn.Module):
    """A gate computed from all channels: the tail mixes them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.conv2d(x.mean((2, 3), keepdim=True), self.fc.weight))


class CrossSample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 0.1 * x.mean(0, keepdim=True)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shared(F.relu(self.shared(self.stem(x)))))


class Reused(nn.Module):
    """The kernel is used once as a module and once more as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(self.stem(x), self.conv.weight, padding=1))
        return F.relu(self.conv(x))


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class TiedTwin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1)
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(self.stem(x)))))


class OneMemory(TiedTwin):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = nn.Parameter(self.a.weight.data)


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) + self.b(x))


class Scaled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(2, 4, 3, **options)  # type: ignore[arg-type]


class Temperature(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.1


class Video(nn.Module):
    """Frames as samples of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        return F.relu(self.conv(x.repeat(2, 1, 1, 1))).unflatten(0, (2, n)).mean(0)


class Attention(nn.Module):
    """Patches, self-attention, and the first token: a small vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 4, 2, stride=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.fc(tokens[:, 0])


class FunctionalHead(nn.Module):
    """A classifier that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.V = conv(), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.conv(x)).mean((2, 3)), self.V)


class Clipped(nn.Conv2d):
    """Linear for small images only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1e3, 1e3)


class OnceMore(nn.Module):
    """The kernel is used again, for images that are not among those looked at first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)) + F.relu(F.conv2d(F.relu(x - 50), self.conv.weight))


class Penalised(nn.Module):
    """No first derivative in its kernels shows the second term."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = sum((w - w.detach()).square().sum() for w in (self.conv.weight, self.fc.weight))
        return self.fc(self.conv(x).mean((2, 3))) + hidden * torch.eye(3)[0]


class OwnStatistics(nn.Module):
    """Batch statistics in front of the measured layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(F.batch_norm(x, None, None, training=True)).mean((2, 3)))


class GainFromSamples(nn.Module):
    """As many samples as channels, at times."""

    def forward(self, x: Tensor) -> Tensor:
        g = x.mean((2, 3))
        gain = x.mean((1, 2, 3))
        return F.layer_norm(g, (g.shape[1],), gain[: g.shape[1]].repeat(4)[: g.shape[1]])


class Listed(nn.Module):
    """A convolution in a list, which torch takes for no part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Conv2d(4, 4, 3)]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


class Slope(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda z: z.pow(3).sum())(x)


class Heaviside(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.heaviside(x, x.new_ones(()))


class OwnGradient(nn.Module):
    """Adds a gradient in the images to what it gives, as energy-based models do."""

    def __init__(self, *, kept: bool) -> None:
        super().__init__()
        self.conv, self.kept = nn.Conv2d(2, 4, 3, padding=1), kept

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad() if self.kept else contextlib.nullcontext():
            z = x.detach().requires_grad_()
            energy = F.softplus(self.conv(z)).sum()
            return torch.cat([x, torch.autograd.grad(energy, z, create_graph=True)[0]], 1)


REFUSED = {
    "layer '0.conv': its kernel is used 2 times": lambda: nn.Sequential(OnceMore(), *head()),
    "layer 'conv': its kernel is not used as one plain convolution, but also by Sub": Penalised,
    "the logits of one depend on others of its batch": OwnStatistics,
    "the model mixes samples: the logits": lambda: nn.Sequential(
        conv(), GainFromSamples(), nn.Linear(4, 3)
    ),
    "mixes samples": lambda: nn.Sequential(conv(), nn.ReLU(), CrossSample(), *head()),
    "without running statistics": lambda: nn.Sequential(
        conv(), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), *head()
    ),
    "layer '0.shared': its kernel is used 2 times": lambda: nn.Sequential(Twice(), *head()),
    "'0.conv': its kernel is used 2 times": lambda: nn.Sequential(Reused(), *head()),
    "used 2 times in one pass, shared by 0.a.weight and 0.b.weight": lambda: nn.Sequential(
        TiedTwin(), *head()
    ),
    "its kernel lies in the memory of '0.": lambda: nn.Sequential(OneMemory(), *head()),
    "layer '0': its kernel is not used as one plain": lambda: nn.Sequential(
        StandardisedConv(2, 4, 3), nn.ReLU(), *head()
    ),
    "reparametrised": lambda: nn.Sequential(
        parametrizations.weight_norm(conv()), nn.ReLU(), *head()
    ),
    "layer '0': its positions are flattened": lambda: nn.Sequential(
        conv(), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ),
    "layer 'patches', the last convolution, is not followed by global pooling": Attention,
    "for 2 samples, not one map of channels for each": lambda: nn.Sequential(Video(), *head()),
    "ConvTranspose2d is not covered": lambda: nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3), nn.ReLU(), *head()
    ),
    "no convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3)),
    "of at least 2 classes": lambda: nn.Sequential(conv(), nn.ReLU(), GapByMean(), nn.Linear(4, 1)),
    "logits of shape (N, K)": lambda: nn.Sequential(conv(), nn.ReLU()),
    "no parameters": lambda: GapByMean(),
    "on a meta device": lambda: nn.Sequential(conv(), *head()).to("meta"),
    "behind the measured layers has no derivative": lambda: nn.Sequential(
        conv(), Heaviside(), *head()
    ),
    "no derivative in autograd": lambda: nn.Sequential(conv(), GapByMean(), Dynamic(4, 3)),
    "computes in torch.float16 behind": lambda: nn.Sequential(conv(), *head(), Halved()),
    "no parameter of the model, but of something": lambda: nn.Sequential(
        conv(), nn.ReLU(), Listed(), *head()
    ),
    "differentiates by torch.func": lambda: nn.Sequential(conv(), Slope(), *head()),
    "lazy layer": lambda: nn.Sequential(nn.LazyConv2d(4, 3), *head()),
}


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("message", REFUSED)
def test_refused_with_a_reason(message: str, layers: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError) as caught:
        flatsearch.relative_flatness(REFUSED[message](), images(), layers=layers)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gradient_in_the_forward_pass() -> None:
    model = nn.Sequential(OwnGradient(kept=True), nn.Conv2d(4, 4, 1), *head())
    result = flatsearch.relative_flatness(model, images(), layers="all", skip_unsupported=True)
    assert list(result.layers) == ["1"]
    assert "but also by ConvolutionBackward" in result.skipped["0.conv"]
    model[0] = OwnGradient(kept=False)
    with pytest.raises(UnsupportedModelError, match="cannot be run under torch"):
        flatsearch.relative_flatness(model, images())


# Beyond the closed form: a backward pass per class.
GENERAL = {
    "clipped output": lambda: nn.Sequential(Clipped(2, 4, 3), *head()),
    "gate": lambda: nn.Sequential(conv(), SqueezeExcite(4), *head()),
    "image by image": lambda: nn.Sequential(ByImage(2, 4, 3), nn.ReLU(), *head()),
    "layer norm": lambda: nn.Sequential(
        conv(), nn.ReLU(), GapByMean(), nn.LayerNorm(4), nn.Linear(4, 3)
    ),
    "two linear layers": lambda: nn.Sequential(
        conv(), GapByMean(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
    ),
    "groups": lambda: nn.Sequential(conv(groups=2), nn.ReLU(), *head()),
    "depthwise with a multiplier": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, stride=2), nn.GELU(), *head()
    ),
    "no linear layer": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), GapByMean()),
    "scaled logits": lambda: Scaled(conv(), nn.ReLU(), *head()),
    "temperature": lambda: nn.Sequential(conv(), nn.ReLU(), GapByMean(), Temperature(4, 3)),
    "weight norm in the head": lambda: nn.Sequential(
        conv(), nn.ReLU(), GapByMean(), parametrizations.weight_norm(nn.Linear(4, 3))
    ),
    "functional head": FunctionalHead,
    "mixing channels": lambda: nn.Sequential(conv(), nn.ReLU(), Weak(), *head()),
    "dead stem": lambda: nn.Sequential(
        conv(), nn.Threshold(1e9, 0.0), nn.Conv2d(4, 4, 3), nn.ReLU(), *head()
    ),
}


class ByImage(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(super().forward)(x)


class Weak(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-4 * x.roll(1, dims=1)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("name", GENERAL)
def test_beyond_the_closed_form(name: str, layers: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = GENERAL[name](), images(8)
    batches = [(x[:4], y[:4]), (-x[4:], y[4:])]
    result = flatsearch.relative_flatness(model, batches, layers=layers, dtype=torch.float64)
    # The last convolution of "gate" is the gate's, which is only multiplied with the map.
    curved = name == "layer norm" or (name == "gate" and layers == "all")
    assert result.kind == ("gauss-newton" if curved else "hessian")
    for layer, measured in result.layers.items():
        # Batch by batch, because one of the models looks at the whole batch.
        parts = [
            oracle.by_hessian(model, a, b, layer)
            if result.kind == "hessian"
            else oracle.by_gauss_newton(model, a, layer)
            for a, b in batches
        ]
        trace, kappa = (sum(values) / 2 for values in zip(*parts, strict=True))
        assert measured.hessian_trace == pytest.approx(trace, rel=1e-9)
        assert measured.relative_flatness == pytest.approx(kappa, rel=1e-9)


def test_one_result_has_one_kind() -> None:
    # The last layer's second derivatives could be included, the first one's cannot.
    torch.manual_seed(0)
    model = nn.Sequential(conv(), nn.GELU(), nn.Conv2d(4, 4, 3), nn.GELU(), *head())
    x, y = images()
    last = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    every = flatsearch.relative_flatness(model, (x, y), layers="all", dtype=torch.float64)
    assert (last.kind, every.kind) == ("hessian", "gauss-newton")
    assert last.relative_flatness == pytest.approx(oracle.by_hessian(model, x, y, "2")[1])
    for name in ("0", "2"):
        expected = oracle.by_gauss_newton(model, x, name)[1]
        assert every.layers[name].relative_flatness == pytest.approx(expected, rel=1e-9)


def test_named_layers() -> None:
    model = CASES[0].make()
    every = flatsearch.relative_flatness(model, images(), layers="all", dtype=torch.float64)
    assert list(every.layers) == ["0", "2"]
    for layers in ("0", ["0"], ["2", "0"]):
        some = flatsearch.relative_flatness(model, images(), layers=layers, dtype=torch.float64)
        for name, layer in some.layers.items():
            expected = every.layers[name].relative_flatness
            assert layer.relative_flatness == pytest.approx(expected, rel=1e-12)
    last = flatsearch.relative_flatness(model, images())
    assert flatsearch.relative_flatness(model, images(), layers=["2"]) == last


@pytest.mark.parametrize(("layer", "what"), [("9", "is unknown"), ("5", "is a Flatten")])
def test_unknown_layer_names_list_the_known(layer: str, what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{what}; convolutions: 0, 2; classifier: 6"):
        flatsearch.relative_flatness(CASES[0].make(), images(), layers=layer)


def test_parallel_convolutions_are_measured_together() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(Parallel(), *head()), images()
    result = flatsearch.relative_flatness(model, (x, y), layers="all", dtype=torch.float64)
    assert list(result.layers) == ["0.a", "0.b"]
    expected = [oracle.by_hessian(model, x, y, name) for name in ("0.a", "0.b")]
    for layer, (trace, kappa) in zip(result.layers.values(), expected, strict=True):
        assert layer.hessian_trace == pytest.approx(trace, rel=1e-10)
        assert layer.relative_flatness == pytest.approx(kappa, rel=1e-10)
    assert result.relative_flatness == pytest.approx(sum(k for _, k in expected), rel=1e-10)


def test_input_changed_in_place_after_the_convolution() -> None:
    class Accumulate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x.add_(F.relu(self.conv(x)))

    class Plain(Accumulate):
        def forward(self, x: Tensor) -> Tensor:
            return x + F.relu(self.conv(x))

    torch.manual_seed(0)
    body = Accumulate()
    model = nn.Sequential(nn.Conv2d(2, 4, 1), body, *head())
    plain = Plain()
    plain.load_state_dict(body.state_dict())
    same = nn.Sequential(model[0], plain, model[2], model[3])
    x, y = images()
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    expected = oracle.by_hessian(same, x, y, "1.conv")[1]
    assert result.relative_flatness == pytest.approx(expected, rel=1e-10)


def test_not_finite() -> None:
    x, y = images()
    x[2, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        flatsearch.relative_flatness(CASES[0].make(), (x, y))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda x, y: [], ValueError, "no samples"),
        (lambda x, y: (x[:0], y[:0]), ValueError, "no samples"),
        (lambda x, y: (x, y + 1), ValueError, r"\[0, 2\].*range from 1 to 3|range from"),
        (lambda x, y: (x, y - 5), ValueError, "range from"),
        (lambda x, y: (x, y[:3]), ValueError, "6 class indices"),
        (lambda x, y: (x, y.float()), ValueError, "class indices"),
        (lambda x, y: (x, F.one_hot(y)), ValueError, "class indices"),
        (lambda x, y: ((x * 10).to(torch.uint8), y), TypeError, "floating-point"),
        (lambda x, y: [x, x, x], ValueError, "iterable of such batches"),
        (lambda x, y: (x.numpy(), y.numpy()), (TypeError, ValueError), "tensors|batches"),
    ],
)
def test_malformed_data(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        flatsearch.relative_flatness(CASES[0].make(), data(*images()))  # type: ignore[operator]


def test_models_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module but got function"):
        flatsearch.relative_flatness(lambda x: x, images())  # type: ignore[arg-type]


def test_where_there_are_no_values() -> None:
    model, (x, y) = CASES[0].make(), images()
    with FakeTensorMode() as fake:
        unreal = fake.from_tensor(x)
        with pytest.raises(UnsupportedModelError, match="modes that compute without values"):
            flatsearch.relative_flatness(model, (x, y))
        made = CASES[0].make()
    with pytest.raises(UnsupportedModelError, match="made in FakeTensorMode: its weights"):
        flatsearch.relative_flatness(made, (x, y))
    for values in (unreal, x.to("meta"), x.to_sparse()):
        with pytest.raises(TypeError, match="inputs must be dense tensors with values"):
            flatsearch.relative_flatness(model, (values, y))

    def inside(z: Tensor) -> Tensor:
        with pytest.raises(UnsupportedModelError, match=r"inside of torch\.func transforms"):
            flatsearch.relative_flatness(model, (z, y))
        return z

    torch.vmap(inside)(x[None])


def test_images_with_a_graph_of_their_own() -> None:
    model, (x, y) = CASES[0].make(), images()
    expected = flatsearch.relative_flatness(model, (x, y))
    assert flatsearch.relative_flatness(model, (2 * (x / 2).requires_grad_(), y)) == expected


def test_parts_in_threads() -> None:
    class Threaded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(super().forward, x).result()

    model = nn.Sequential(conv(), nn.ReLU(), Threaded(4, 4, 3), *head())
    with pytest.raises(UnsupportedModelError, match="run in threads of their own"):
        flatsearch.relative_flatness(model, images())


class Failing(nn.Module):
    """Does not take what a measurement does, but works."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.left = way, 3

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.way == "gradients" and x.requires_grad:
            raise ValueError("no gradients")
        if self.way == "precision" and x.dtype != torch.float32:
            raise ValueError("single only")
        if self.way == "values" and not x.isfinite().all():
            raise ValueError("not finite")
        if self.way == "at times" and self.left < 0:
            raise ValueError("tired")
        return x


@pytest.mark.parametrize(
    ("way", "error", "message"),
    [
        ("gradients", UnsupportedModelError, "cannot be recorded by autograd: no gradients"),
        ("precision", UnsupportedModelError, r"cannot be computed in torch\.float64.*: single"),
        ("at times", ValueError, "tired"),
    ],
)
def test_why_a_model_fails(way: str, error: type[Exception], message: str) -> None:
    model = nn.Sequential(conv(), Failing(way), *head())
    with pytest.raises(error, match=message):
        flatsearch.relative_flatness(model, images(), dtype=torch.float64)


def test_hidden_kernels_of_a_model_that_takes_no_nan() -> None:
    model = nn.Sequential(conv(), nn.Conv2d(4, 4, 1), Failing("values"), *head())
    model[1].forward = torch.no_grad()(model[1].forward)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError, match="layer '1': the logits depend on it"):
        flatsearch.relative_flatness(model, images())


def test_graphs_that_do_not_give_back_what_they_keep() -> None:
    class Mutable(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                return super().forward(x)

    model = nn.Sequential(conv(), nn.ReLU(), Mutable(4, 4, 3), *head())
    with pytest.raises(UnsupportedModelError, match="layer '2': the model cannot be differen"):
        flatsearch.relative_flatness(model, images())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_on_the_way() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nested = torch.nested.as_nested_tensor(list(x.unbind(0)))
            return torch.nested.to_padded_tensor(nested, 0.0)

    torch.manual_seed(0)
    plain = nn.Sequential(conv(), nn.ReLU(), nn.Identity(), *head())
    model = nn.Sequential(plain[0], Nested(), *plain[1:])
    result = flatsearch.relative_flatness(model, images())
    expected = flatsearch.relative_flatness(plain, images())
    assert result.relative_flatness == pytest.approx(expected.relative_flatness, rel=1e-5)


def test_a_last_convolution_whose_kernel_is_detached() -> None:
    class Detached(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight.detach())

    model = nn.Sequential(conv(), nn.ReLU(), Detached(4, 4, 3), *head())
    with pytest.raises(UnsupportedModelError, match="layer '2': the logits depend on it"):
        flatsearch.relative_flatness(model, images())
    model = nn.Sequential(Detached(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), *head())
    assert list(flatsearch.relative_flatness(model, images()).layers) == ["2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1 but got 0"),
        ({"dtype": torch.float16}, "`dtype` must be torch.float32 or torch.float64"),
        ({"normalize": "output"}, "`normalize` must be None or 'input' but got 'output'"),
    ],
)
def test_malformed_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flatsearch.relative_flatness(CASES[0].make(), images(), **options)  # type: ignore[arg-type]


class Clamped(nn.Sequential):
    """Logits that are cut off, but not those of the images that are looked at first."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if float(x.abs().max()) > 2 else logits.clamp(-0.01, 0.01)


def test_the_classifier_is_checked_on_every_batch() -> None:
    torch.manual_seed(0)
    model, (x, y) = Clamped(conv(), nn.ReLU(), *head()), images(8)
    flatsearch.relative_flatness(model, (3 * x, y))
    with pytest.raises(UnsupportedModelError, match="logits are not"):
        flatsearch.relative_flatness(model, [(3 * x, y), (x / 10, y)])


def test_outputs_captured_by_others_are_seen() -> None:
    class Kept(nn.Module):
        """The convolution's raw output is used a second time, as a skip."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)
            self.kept: list[Tensor] = []
            self.conv.register_forward_hook(lambda m, a, out: self.kept.append(out))

        def forward(self, x: Tensor) -> Tensor:
            self.kept.clear()
            return F.gelu(self.conv(x)) + 0.5 * self.kept[0]

    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(Kept(), *head()), images()
    result = flatsearch.relative_flatness(model, (x, y), dtype=torch.float64)
    model[0].kept.clear()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)
            self.conv.load_state_dict(model[0].conv.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x)
            return F.gelu(out) + 0.5 * out

    expected = oracle.by_hessian(nn.Sequential(Plain(), *model[1:]), x, y, "0.conv")[1]
    assert result.relative_flatness == pytest.approx(expected, rel=1e-10)


def test_models_that_change_their_input() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.5).mul_(2.0)

    torch.manual_seed(0)
    tail = [conv(), nn.ReLU(), *head()]
    x, y = images()
    before = x.clone()
    changing = flatsearch.relative_flatness(nn.Sequential(InPlace(), *tail), (x, y))
    assert torch.equal(x, before)
    plain = flatsearch.relative_flatness(nn.Sequential(*tail), ((x - 0.5) * 2, y))
    assert changing.relative_flatness == pytest.approx(plain.relative_flatness, rel=1e-6)


def test_hand_written_derivatives_are_gauss_newton() -> None:
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
            s = torch.sigmoid(x)
            ctx.derivative = s + x * s * (1 - s)  # not differentiable any more
            return x * s

        @staticmethod
        def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
            return g * ctx.derivative

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Swish.apply(x)

    torch.manual_seed(0)
    stem, (x, y) = conv(), images()
    ours = nn.Sequential(stem, Module(), *head())
    same = nn.Sequential(stem, nn.SiLU(), *ours[2:])
    result = flatsearch.relative_flatness(ours, (x, y), dtype=torch.float64)
    assert result.kind == "gauss-newton"
    expected = oracle.by_gauss_newton(same, x, "0")[1]
    assert result.relative_flatness == pytest.approx(expected, rel=1e-10)


def test_blank_first_images_do_not_hide_a_changed_kernel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(StandardisedConv(2, 4, 3, bias=False), nn.ReLU(), *head())
    x, y = images()
    x[:4] = 0
    with pytest.raises(UnsupportedModelError, match="not used as one plain"):
        flatsearch.relative_flatness(model, (x, y))


def test_random_models_are_refused() -> None:
    class AlwaysDropout(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    class Rarely(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.95).to(x))

    class Elsewhere(nn.Module):
        def __init__(self, draw: Callable[[], float]) -> None:
            super().__init__()
            self.draw = draw

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.draw() < 0.6)

    own = torch.Generator().manual_seed(0)
    draws: list[Callable[[], float]] = [
        random.random,
        lambda: float(np.random.rand()),  # noqa: NPY002 - as in older code
        lambda: float(torch.rand((), generator=own)),
    ]
    rare = [*[Rarely()] * 3, *map(Elsewhere, 3 * draws)]
    for changing in (AlwaysDropout(), Counting(), *rare):
        model = nn.Sequential(conv(), nn.ReLU(), changing, *head())
        with pytest.raises(UnsupportedModelError, match="different logits for the same images"):
            flatsearch.relative_flatness(model, images())


def test_precision_switches_are_exact_inside_and_restored() -> None:
    seen: list[object] = []
    matmul = torch.backends.cuda.matmul
    exact = "ieee" if hasattr(matmul, "fp32_precision") else False

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(matmul.fp32_precision if exact else matmul.allow_tf32)
            return x

    model = nn.Sequential(Look(), conv(), nn.ReLU(), *head())
    for wanted in ("medium", "high", "highest"):
        torch.set_float32_matmul_precision(wanted)
        try:
            flatsearch.relative_flatness(model, images())
            assert torch.get_float32_matmul_precision() == wanted
        finally:
            torch.set_float32_matmul_precision("highest")
    assert set(seen) == {exact}


def test_everything_is_restored_when_the_model_fails() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    model = nn.Sequential(conv(), nn.BatchNorm2d(4), Fails(), *head()).train()
    with pytest.raises(RuntimeError, match="broken"):
        flatsearch.relative_flatness(model, images())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_layers_by_keyword_and_inference_tensors() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = conv(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=F.relu(self.conv(input=x)).mean((2, 3)))

    torch.manual_seed(0)
    model = Keyword()
    expected = flatsearch.relative_flatness(model, images())
    assert expected.relative_flatness == pytest.approx(
        oracle.by_hessian(model, *images(), "conv")[1], rel=1e-4
    )
    with torch.inference_mode():
        x, y = images()
        x = x + 0  # made in inference mode
    assert flatsearch.relative_flatness(model, (x, y)) == expected


@pytest.mark.parametrize("layers", [[], None, 3, [3], ""])
def test_layers_must_be_names(layers: object) -> None:
    with pytest.raises((ValueError, TypeError), match="`layers` must be"):
        flatsearch.relative_flatness(CASES[0].make(), images(), layers=layers)  # type: ignore[arg-type]


def test_overflow_is_an_error_where_the_data_cannot_be_read_again_for_float64() -> None:
    model = CASES[0].make()
    with torch.no_grad():
        model[-1].weight.mul_(1e20)
        model[2].weight.mul_(1e-25)
        model[2].bias.zero_()
    with pytest.raises(NonFiniteError, match="overflows"):
        flatsearch.relative_flatness(model, iter([images()]))
    double = flatsearch.relative_flatness(model, images(), dtype=torch.float64)
    again = flatsearch.relative_flatness(model, images())
    assert again.relative_flatness == pytest.approx(double.relative_flatness, rel=1e-9)


def test_standard_error_of_several_layers_is_that_of_their_sum() -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(Parallel(), *head()), images(8)
    options = {"layers": "all", "dtype": torch.float64}
    each = [
        flatsearch.relative_flatness(model, (x[i : i + 1], y[i : i + 1]), **options)  # type: ignore[arg-type]
        for i in range(8)
    ]
    sums = torch.tensor([r.relative_flatness for r in each], dtype=torch.float64)
    result = flatsearch.relative_flatness(model, (x, y), **options)  # type: ignore[arg-type]
    assert result.standard_error == pytest.approx(float(sums.std() / 8**0.5), rel=1e-10)
    assert result.standard_error < sum(r.standard_error for r in result.layers.values())


def test_the_heads_kernel_is_used_once() -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match="not the output of one linear layer"):
        flatsearch.relative_flatness(Penalised(), images(), layers="head")


def test_batches_of_one_do_not_hide_mixed_samples() -> None:
    torch.manual_seed(0)
    for layers in ("last", "all"):
        with pytest.raises(UnsupportedModelError, match="mixes samples"):
            flatsearch.relative_flatness(OwnStatistics(), images(), layers=layers, batch_size=1)
        x, y = images()
        one_by_one = list(zip(x.split(1), y.split(1), strict=True))
        with pytest.raises(UnsupportedModelError, match="mixes samples"):
            flatsearch.relative_flatness(OwnStatistics(), one_by_one, layers=layers)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_mixing_that_begins_with_more_images(layers: str) -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0) if len(x) > 3 else x

    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(Centred(), conv(), nn.ReLU(), *head()), images(5)
    for data in ((x, y), [(x[:1], y[:1]), (x, y)]):
        with pytest.raises(UnsupportedModelError, match="mixes samples"):
            flatsearch.relative_flatness(model, data, layers=layers)
    plain = flatsearch.relative_flatness(model[1:], (x, y), layers=layers)
    small = flatsearch.relative_flatness(model, (x, y), layers=layers, batch_size=3)
    assert small.relative_flatness == pytest.approx(plain.relative_flatness, rel=1e-5)


def test_a_layer_that_some_batches_do_not_use() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = conv(), conv(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            return self.fc((b + a if float(x.mean()) > 0 else a).mean((2, 3)))

    torch.manual_seed(0)
    model, (x, y) = Gated(), images(4)
    x = x.abs()
    result = flatsearch.relative_flatness(
        model, [(x, y), (-x, y)], layers="all", dtype=torch.float64
    )
    expected = oracle.by_hessian(model, x, y, "b")[1] / 2
    assert result.layers["b"].relative_flatness == pytest.approx(expected, rel=1e-9)


def test_magnitudes_of_complex_numbers_are_curved() -> None:
    class Magnitude(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex128) + 0.5j).abs().mean((2, 3))

    torch.manual_seed(0)
    model, (x, _) = nn.Sequential(conv(), Magnitude(), nn.Linear(4, 3)).double(), images()
    result = flatsearch.relative_flatness(model, (x.double(), torch.arange(6) % 3))
    assert result.kind == "gauss-newton"
