"""Every convolution of random small networks against the dense matrices.

Which matrix is compared with is decided by what the measure says of itself, and it may say
"gauss-newton" only for networks that have something curved in them.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import flatsearch
from tests.flatness import oracle

SMOOTH = {"gelu": nn.GELU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "tanh": nn.Tanh}
KINKED = {
    "relu": nn.ReLU,
    "in place": lambda: nn.ReLU(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.1),
    "prelu": nn.PReLU,
    "none": nn.Identity,
}
ACTIVATIONS: dict[str, Any] = {**SMOOTH, **KINKED}


class Add(nn.Module):
    """x + f(x), in place or not."""

    def __init__(self, body: nn.Module, *, inplace: bool) -> None:
        super().__init__()
        self.body, self.inplace = body, inplace

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.inplace:
            y += x
            return y
        return x + y


class Cat(nn.Module):
    """Both branches, side by side; the input beside its branch where there is one."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        return torch.cat([*outputs, *([x] if len(outputs) == 1 else [])], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate)


class Attention(nn.Module):
    """Attention of convolutions behind batch norms, beside its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q, self.k = nn.Conv2d(channels, 3, 1), nn.Conv2d(channels, 3, 1)
        self.v, self.norm = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.norm(self.q(x)).flatten(2), self.k(x).flatten(2), self.v(x).flatten(2)
        return x + (v @ (q.mT @ k).softmax(-1).mT).view(x.shape)


class Function(nn.Module):
    """A convolution without a module of torch's."""

    def __init__(self, into: int, out: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(0.3 * torch.randn(out, into, 3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, getattr(self, self.name), padding=1)


class Changing(nn.Conv2d):
    """Clips its input and its output, and returns a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x.clamp(-1, 1)).clamp(-2, 2), x


class First(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)[0]


class Checkpointed(nn.Sequential):
    on = True

    def forward(self, x: Tensor) -> Tensor:
        run = super().forward
        return checkpoint(run, x, use_reentrant=False) if self.on else run(x)


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Pool(nn.Module):
    """Global average pooling, in one of the ways people write it."""

    WAYS = ("module", "mean", "functional", "average", "steps", "sum")

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "mean":
            return x.mean((2, 3))
        if self.way == "functional":
            return F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
        if self.way == "average":
            return F.avg_pool2d(x, x.shape[2:])[:, :, 0, 0]
        if self.way == "steps":
            return x.flatten(2).mean(-1)
        if self.way == "sum":
            return x.sum((-2, -1)) / (x.shape[2] * x.shape[3])
        return torch.flatten(nn.AdaptiveAvgPool2d(1)(x), 1)


@dataclass
class Net:
    """A network, how it is called, and whether anything in it is curved."""

    model: nn.Module
    curved: bool
    seed: int
    classes: int
    samples: int
    batch_size: int | None
    channels_last: bool
    hooked: bool
    parts: tuple[str, ...] = ()

    def drawn(self) -> set[object]:
        """Return what has been drawn."""
        splits = {("samples", self.samples), ("batches of", self.batch_size)}
        return {*self.parts, *splits, ("channels last", self.channels_last), ("hooks", self.hooked)}

    def plain(self) -> nn.Module:
        """Return it as the oracles take it."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if isinstance(module, Checkpointed):
                module.on = False
        return model

    def dressed(self) -> nn.Module:
        """Return it as it is measured."""
        model = copy.deepcopy(self.model)
        if self.hooked:
            for module in model.modules():
                module.register_full_backward_hook(lambda m, into, out: None)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def images(self) -> tuple[Tensor, Tensor]:
        torch.manual_seed(self.seed)
        x = torch.randn(self.samples, 2, 9, 8, dtype=torch.float64)
        y = torch.randint(0, self.classes, (self.samples,))
        return x.to(memory_format=torch.channels_last) if self.channels_last else x, y


def conv(draw: Any, into: int, out: int, *, keep_size: bool) -> nn.Conv2d:
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (3, 1)]))
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 4) if into % g == out % g == 0]))
    options: dict[str, Any] = {"groups": groups, "bias": draw(st.booleans())}
    if keep_size:
        options["padding"] = "same"
    else:
        options["stride"] = draw(st.sampled_from([1, 2, (1, 2)]))
        options["padding"] = draw(st.sampled_from([0, 1, (0, 1)]))
        options["dilation"] = draw(st.sampled_from([1, 1, (2, 1)]))
    options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "replicate"]))
    return nn.Conv2d(into, out, kernel, **options)


class Blocks:
    """Draws the parts of one network; `channels` and `curved` follow what has been drawn."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.channels = draw, 4
        self.names = draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=1, max_size=2))
        if draw(st.booleans()):  # half of the networks with kinks only
            self.names = [draw(st.sampled_from(sorted(KINKED)))]
        self.curved = any(name in SMOOTH for name in self.names)

    def act(self) -> nn.Module:
        return ACTIVATIONS[self.draw(st.sampled_from(self.names))]()

    def norm(self, channels: int) -> nn.Module:
        kinds = [nn.BatchNorm2d, nn.BatchNorm2d, nn.Identity]
        return self.draw(st.sampled_from(kinds))(channels)

    def conv(self, out: int, *, keep_size: bool = True) -> nn.Conv2d:
        return conv(self.draw, self.channels, out, keep_size=keep_size)

    def plain(self) -> list[nn.Module]:
        out = self.draw(st.sampled_from([2, 4, 6]))
        layers = [self.conv(out, keep_size=False), self.norm(out), self.act()]
        self.channels = out
        return layers

    def add(self) -> list[nn.Module]:
        body = nn.Sequential(self.conv(self.channels), self.norm(self.channels))
        return [Add(body, inplace=self.draw(st.booleans())), self.act()]

    def dense(self) -> list[nn.Module]:
        layer = Cat(nn.Sequential(self.conv(2), self.act()))
        self.channels += 2
        return [layer]

    def parallel(self) -> list[nn.Module]:
        layer = Cat(self.conv(2), self.conv(3))
        self.channels = 5
        return [layer, self.act()]

    def gate(self) -> list[nn.Module]:
        self.curved = True
        return [Gate(self.channels)]

    def separable(self) -> list[nn.Module]:
        channels = self.channels
        self.channels = 4
        return [
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            self.norm(channels),
            self.act(),
            nn.Conv2d(channels, 4, 1),
        ]

    def attention(self) -> list[nn.Module]:
        self.curved = True
        return [Attention(self.channels)]

    def function(self) -> list[nn.Module]:
        name = self.draw(st.sampled_from(["weight", "filters"]))
        return [Function(self.channels, self.channels, name), self.act()]

    def changing(self) -> list[nn.Module]:
        return [First(Changing(self.channels, self.channels, 3, padding=1)), self.act()]

    def checkpointed(self) -> list[nn.Module]:
        return [Checkpointed(*self.add(), self.conv(self.channels))]

    def reparametrised(self) -> list[nn.Module]:
        conv = self.conv(self.channels)
        return [parametrizations.weight_norm(conv), self.act()]

    def shuffle(self) -> list[nn.Module]:
        return [Shuffle()] if self.channels % 2 == 0 else []

    def pool(self) -> list[nn.Module]:
        return [self.draw(st.sampled_from([nn.AvgPool2d, nn.MaxPool2d]))(2, 1)]

    def head(self, classes: int) -> list[nn.Module]:
        gap = Pool(self.draw(st.sampled_from(Pool.WAYS)))
        kind = self.draw(st.sampled_from(["linear", "linear", "norm", "dropout", "two", "conv"]))
        if kind == "conv":
            return [nn.Conv2d(self.channels, classes, 1), self.act(), gap]
        if kind == "two":
            return [gap, nn.Linear(self.channels, 5), self.act(), nn.Linear(5, classes)]
        between = {"norm": [nn.LayerNorm(self.channels)], "dropout": [nn.Dropout(0.5)]}
        self.curved = self.curved or kind == "norm"
        linear = nn.Linear(self.channels, classes, bias=self.draw(st.booleans()))
        return [gap, *between.get(kind, []), linear]


KINDS = [
    "plain", "plain", "add", "dense", "parallel", "gate", "separable", "shuffle", "pool",
    "attention", "function", "changing", "checkpointed", "reparametrised",
]  # fmt: skip


@st.composite
def nets(draw: Any) -> Net:
    seed, classes = draw(st.integers(0, 10**6)), draw(st.integers(2, 4))
    torch.manual_seed(seed)
    blocks = Blocks(draw)
    layers = [nn.Conv2d(2, blocks.channels, draw(st.integers(1, 3))), blocks.act()]
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        parts.append(draw(st.sampled_from(KINDS)))
        layers += getattr(blocks, parts[-1])()
    layers += blocks.head(classes)
    model = nn.Sequential(*layers).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight, 1, 0.3)
    samples = draw(st.integers(1, 3))
    return Net(
        model,
        blocks.curved,
        seed,
        classes,
        samples,
        draw(st.sampled_from([None, 1, 2])),
        channels_last=draw(st.booleans()),
        hooked=draw(st.booleans()),
        parts=tuple(parts),
    )


def layer_of(name: str) -> str:
    """Return what the layer of a kernel is called."""
    path, _, attribute = name.rpartition(".")
    return path if attribute == "weight" else name


def compare(net: Net, layers: str, known: dict[tuple[str, str], tuple[float, float]]) -> str:
    """Compare the measured convolutions with what is known of the network; return the kind."""
    model, plain, (x, y) = net.dressed(), net.plain(), net.images()
    # torch's batch norm is not differentiated rightly for one sample alone
    twice = (x.repeat(2, 1, 1, 1), y.repeat(2)) if len(x) == 1 else (x, y)
    try:
        before = model(x)
    except RuntimeError:
        reject()  # the map has become smaller than a kernel
    options = {"layers": layers, "batch_size": net.batch_size, "skip_unsupported": True}
    try:
        result = flatsearch.relative_flatness(model, (x, y), **options)  # type: ignore[arg-type]
    except flatsearch.UnsupportedModelError as error:
        reason = str(error)
    else:
        reason = ""
    assert torch.equal(model(x), before)
    if reason:  # the last convolution has no plain kernel
        assert layers == "last"
        assert "is reparametrised (WeightNorm)" in reason
        return "refused"
    kernels = [name for name, value in plain.named_parameters() if value.ndim == 4]
    reparametrised = {name.partition(".param")[0] for name in kernels if "parametrizations" in name}
    if layers == "all":
        names = {layer_of(name) for name in kernels if "parametrizations" not in name}
        assert set(result.layers) == names
        assert set(result.skipped) == reparametrised
    if not net.curved:
        assert result.kind == "hessian"
    total = 0.0
    for name, layer in result.layers.items():
        if (result.kind, name) not in known:
            if result.kind == "hessian":
                found = oracle.by_hessian(plain, *twice, name)
            else:
                found = oracle.by_gauss_newton(plain, twice[0], name)
            known[result.kind, name] = found
        trace, kappa = known[result.kind, name]
        assert layer.hessian_trace == pytest.approx(trace, rel=1e-8, abs=1e-14)
        # kappa may cancel between filters: the scale is that of its terms
        weight = plain.get_parameter(oracle.kernel_of(plain, name)).detach()
        scale = abs(trace) * float(weight.square().sum())
        assert layer.relative_flatness == pytest.approx(kappa, rel=1e-8, abs=1e-12 * scale)
        total += kappa
    assert result.relative_flatness == pytest.approx(total, rel=1e-7, abs=1e-12)
    return result.kind


def test_every_convolution_of_random_networks() -> None:
    kinds: Counter[tuple[str, str, bool]] = Counter()
    drawn: set[object] = set()

    @settings(
        max_examples=45, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(nets())
    def each(net: Net) -> None:
        known: dict[tuple[str, str], tuple[float, float]] = {}
        for layers in ("all", "last"):
            kinds[layers, compare(net, layers, known), net.curved] += 1
        drawn.update(net.drawn())

    each()
    splits = {("samples", n) for n in (1, 2, 3)} | {("batches of", n) for n in (None, 1, 2)}
    forms = {(form, chosen) for form in ("channels last", "hooks") for chosen in (False, True)}
    # All of them with the Hypothesis of today; others draw others.
    assert len(({*KINDS} | splits | forms) - drawn) <= 2
    assert kinds["all", "gauss-newton", True] >= 15
    assert kinds["all", "hessian", False] >= 7
    assert sum(count for (layers, *_), count in kinds.items() if layers == "all") >= 34
    # smooth, but channel by channel up to the features: the second derivatives are included
    assert kinds["last", "hessian", True] >= 3
