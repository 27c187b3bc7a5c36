"""`FlatnessMeter`: whatever changes between two calls, the second one gives what a fresh one does.

`conftest` lets every other test of this folder measure through a meter's second call, too.
"""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsearch import FlatnessMeter, GapCnn, UnsupportedModelError, relative_flatness
from tests.flatness.nets import CASES, images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flatsearch import FlatnessResult
    from flatsearch.flatness.meter import Normalize


class Changeable(nn.Module):
    """A network that can be changed in many ways, by what belongs to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 5, 3, padding=1)
        self.classifier = nn.Linear(5, 3)
        self.act: Callable[[Tensor], Tensor] = F.relu
        self.scale = torch.ones(())  # neither a parameter nor a buffer
        self.options = {"power": [1.0]}
        self.alpha = nn.Parameter(torch.zeros(()))
        self.way = "plain"
        self.calls = 0
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "mixing":  # nothing of it shows while alpha is 0
            x = x + self.alpha * x.mean(0)
        if self.way == "mixing by comparison":
            x = x * (1 + self.alpha * (x > x.mean(0) + 0.1))
        if self.way == "random":
            x = x + self.alpha * torch.randn_like(x)
        if self.way == "cut":
            x = self.norm(self.stem(x))
            return self._head(x + self.alpha * self.conv(x).mean(1, keepdim=True).detach())
        if self.way == "decides":
            x = x * 2 if float(self.alpha) > 0 else x
        if self.way == "cached":
            self.cache = 2 * self.stem.weight if self.cache is None else self.cache
            return self._head(F.conv2d(x, self.cache))
        if self.way == "counts":
            self.calls += 1
            x = x * self.calls
        return self._head(self.norm(self.stem(x)))

    def _head(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x)) * self.scale * self.options["power"][0]
        return self.classifier(x.mean((2, 3)))


def network(way: str = "plain", seed: int = 0) -> Changeable:
    torch.manual_seed(seed)
    net = Changeable().eval()
    net.way = way
    return net


def train(net: nn.Module) -> None:
    """Take a step, as training does."""
    x, y = images(8, seed=5)
    was = net.training
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    F.cross_entropy(net.train()(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    net.train(was)


@torch.no_grad()
def replace_values(net: Changeable) -> None:
    net.conv.weight.data = torch.randn_like(net.conv.weight)


def add_hook(net: Changeable) -> None:
    net.conv.register_forward_hook(lambda module, given, result: 3 * result)


def smoother(net: Changeable) -> None:
    net.act = F.gelu


def more_power(net: Changeable) -> None:
    net.options["power"][0] = 2.0


CHANGES: dict[str, Callable[[Changeable], object]] = {
    "a step of training": train,
    "statistics": lambda net: net.norm.running_mean.add_(1.0),
    "values": replace_values,
    "mode": lambda net: net.train(),
    "mode of a layer": lambda net: net.norm.train(),
    "hook": add_hook,
    "hook in front": lambda net: net.conv.register_forward_pre_hook(lambda m, x: (2 * x[0],)),
    "another layer": lambda net: setattr(net, "norm", nn.Identity()),
    "another convolution": lambda net: setattr(net, "conv", nn.Conv2d(4, 5, 1)),
    "stride": lambda net: setattr(net.conv, "stride", (2, 2)),
    "a number": lambda net: setattr(net.norm, "eps", 0.5),
    "a function": smoother,
    "a tensor that is an attribute": lambda net: net.scale.mul_(3),
    "another such tensor": lambda net: setattr(net, "scale", torch.tensor(0.5)),
    "a number in a list": more_power,
    "precision": lambda net: net.double().float(),
    "double": lambda net: net.double(),
    "layout": lambda net: net.to(memory_format=torch.channels_last),
    "a class": lambda net: setattr(net.norm, "__class__", nn.Identity),
}


def numbers(result: FlatnessResult) -> str:
    return repr(result)  # NaN is NaN then


def given_to(net: nn.Module, n: int = 6) -> tuple[Tensor, Tensor]:
    x, y = images(n)
    return x.to(next(net.parameters()).dtype), y


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_measured_as_it_is(change: str) -> None:
    net, layers = network(), "all"
    meter = FlatnessMeter(net, layers)
    before = numbers(meter(given_to(net)))
    assert numbers(meter(given_to(net))) == before
    assert meter.proofs == 1
    CHANGES[change](net)
    after = numbers(relative_flatness(net, given_to(net), layers))
    assert numbers(meter(given_to(net))) == after
    if change not in {"precision", "layout", "mode", "mode of a layer"}:
        assert after != before
    assert meter.proofs == (1 if change in {"a step of training", "statistics"} else 2) or (
        change == "a tensor that is an attribute" and meter.proofs == 1
    )


@pytest.mark.parametrize("way", ["mixing", "mixing by comparison", "random", "cut", "cached"])
def test_what_shows_only_with_other_weights(way: str) -> None:
    net = network(way)
    meter = FlatnessMeter(net, "conv")
    for _ in range(2):
        assert numbers(meter(images())) == numbers(relative_flatness(net, images(), "conv"))
    with torch.no_grad():
        net.alpha.fill_(1.0)
        net.stem.weight.mul_(2.0)
    if way == "cached":  # a fresh copy has no cache
        assert numbers(meter(images())) == numbers(relative_flatness(net, images(), "conv"))
        return
    with pytest.raises(UnsupportedModelError) as fresh:
        relative_flatness(net, images(), "conv")
    with pytest.raises(UnsupportedModelError) as again:
        meter(images())
    assert str(again.value) == str(fresh.value)


@pytest.mark.parametrize("way", ["decides", "counts"])
def test_numbers_that_python_sees(way: str) -> None:
    net = network(way)
    meter = FlatnessMeter(net)
    for alpha in (0.0, 0.0, 1.0, 1.0):
        with torch.no_grad():
            net.alpha.fill_(alpha)
        try:
            expected = numbers(relative_flatness(net, images()))
        except UnsupportedModelError:
            with pytest.raises(UnsupportedModelError):
                meter(images())
        else:
            assert numbers(meter(images())) == expected


def test_other_images_batches_and_layouts() -> None:
    net = network()
    meter = FlatnessMeter(net, "all", batch_size=4)
    for seed, n in enumerate((8, 8, 6, 1)):
        x, y = images(n, seed)
        for given in (x, x.to(memory_format=torch.channels_last), x.double()):
            data = [(given[:3], y[:3]), (given[3:], y[3:])] if n > 3 else (given, y)
            expected = relative_flatness(net, data, "all", batch_size=4)
            assert numbers(meter(data)) == numbers(expected)


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_the_proof_is_made_once(dtype: torch.dtype | None) -> None:
    net = network()
    meter = FlatnessMeter(net, "all", dtype=dtype)
    for _ in range(4):
        train(net)
        expected = relative_flatness(net, images(), "all", dtype=dtype)
        assert numbers(meter(images())) == numbers(expected)
    assert meter.proofs == 1


def test_a_loader_that_is_read_once() -> None:
    net = network()
    meter, (x, y) = FlatnessMeter(net), images()
    expected = relative_flatness(net, (x, y)).relative_flatness
    for _ in range(2):
        again = meter(iter([(x[:2], y[:2]), (x[2:], y[2:])]))
        assert again.relative_flatness == pytest.approx(expected)


def test_every_case_after_a_step_of_training() -> None:
    for case in CASES[1::2]:
        net = case.make()
        meter = FlatnessMeter(net, "all", normalize="input")
        meter(images())
        train(net)
        expected = relative_flatness(net, images(), "all", normalize="input")
        assert numbers(meter(images())) == numbers(expected), case.name
        assert meter.proofs == 1, case.name


def test_wrong_data_are_refused_as_ever() -> None:
    meter = FlatnessMeter(network())
    x, y = images()
    meter((x, y))
    with pytest.raises(ValueError, match="targets must be in"):
        meter((x, y + 5))
    with pytest.raises(TypeError, match="floating-point"):
        meter((x.int(), y))
    with pytest.raises(ValueError, match="no samples"):
        meter([])
    with pytest.raises(ValueError, match="`batch_size` must be at least 1 but got 0"):
        FlatnessMeter(network(), batch_size=0)


def test_the_model_is_left_alone() -> None:
    net = GapCnn(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 4, 3).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    meter = FlatnessMeter(net)
    for _ in range(3):
        meter(images())
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


class Factor:
    """An object of the user's, with a number that hooks multiply with."""

    def __init__(self) -> None:
        self.value = 1.0

    def apply(self, x: Tensor) -> Tensor:
        return x * self.value


class Slotted:
    __slots__ = ("value",)


class SlottedAndMore(Slotted):
    """Its objects have slots and other attributes."""


class Named(dict[str, float]):
    """A container with attributes."""


class Listed(list[float]):
    """Another one, empty."""


FACTOR = 1.0
GLOBAL = Changeable().eval()


def behind_a_method(net: Changeable) -> Callable[[], object]:
    factor = Factor()
    apply = factor.apply
    net.conv.register_forward_hook(lambda module, given, result: apply(result))
    return lambda: setattr(factor, "value", 3.0)


def behind_a_partial(net: Changeable) -> Callable[[], object]:
    factor = Factor()
    apply = functools.partial(Factor.apply, factor)
    net.conv.register_forward_hook(lambda module, given, result: apply(result))
    return lambda: setattr(factor, "value", 3.0)


def behind_a_global_name(net: Changeable) -> Callable[[], object]:
    globals()["GLOBAL"], globals()["FACTOR"] = net, 1.0

    def hook(module: nn.Module, given: object, result: Tensor) -> Tensor:
        return result * sum(FACTOR for _ in range(1) if module is GLOBAL.conv)

    net.conv.register_forward_hook(hook)
    return lambda: globals().update(FACTOR=3.0)


def of(owner: object) -> Callable[[Changeable], Callable[[], object]]:
    """Let an attribute of an object be the factor."""

    def prepare(net: Changeable) -> Callable[[], object]:
        own = copy.copy(owner)
        own.value, own.other = 1.0, ""  # type: ignore[attr-defined]
        net.owner = own  # type: ignore[assignment]
        net.act = Owned(net)
        return lambda: setattr(own, "value", 3.0)

    return prepare


class Owned:
    def __init__(self, net: Changeable) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        owner: Factor = self.net.owner  # type: ignore[assignment]
        return x.relu() * owner.value


class Made:
    def __init__(self) -> None:
        self.factors = defaultdict[str, float](lambda: 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        assert self.factors.default_factory is not None
        return x.relu() * self.factors.default_factory()


def of_a_factory(net: Changeable) -> Callable[[], object]:
    net.act = made = Made()
    return lambda: setattr(made.factors, "default_factory", lambda: 3.0)


COPIED = {
    "method": behind_a_method,
    "partial": behind_a_partial,
    "global name": behind_a_global_name,
    "dict": of(Named(a=1.0)),
    "empty list": of(Listed()),
    "slots": of(SlottedAndMore()),
    "factory": of_a_factory,
}


@pytest.mark.parametrize("kind", COPIED)
def test_whatever_is_copied_is_compared(kind: str) -> None:
    net = network()
    change = COPIED[kind](net)
    meter = FlatnessMeter(net)
    before = [numbers(meter(images())) for _ in range(2)]
    change()
    after = numbers(meter(images()))
    assert after == numbers(relative_flatness(net, images())) != before[-1]
    assert before[0] == before[1]


class Straight(torch.autograd.Function):
    """The forward pass of a clamp with a backward pass of its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.clamp(x, -0.2, 0.2)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Flagged(Changeable):
    """Does something else while a flag of its class is set."""

    flag = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x + self.alpha * x.mean(0)) if len(x) > 2 else self.stem(x))
        x = self.conv(x)
        if self.way == "inference mode":
            with torch.inference_mode(self.flag):
                gate = x.mean((2, 3), keepdim=True).sigmoid()
            x = x * gate.clone()
        if self.way == "backward pass":
            x = Straight.apply(x) if self.flag else torch.clamp(x, -0.2, 0.2)
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("way", ["inference mode", "backward pass", "mixing"])
def test_the_same_calls_in_another_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Flagged().eval()
    net.way = way
    meter = FlatnessMeter(net, "conv")
    meter(images(6))
    meter(images(6))
    monkeypatch.setattr(Flagged, "flag", True)
    if way == "mixing":
        net.alpha.data.fill_(1.0)
    with pytest.raises(UnsupportedModelError, match=r"mixes samples|derivatives are not those"):
        meter(images(6))


class SetOnce(Changeable):
    """Takes a scale from the first images that it is given, without a trace in the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("most", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.most.data.copy_(torch.where(self.most > 0, self.most, x.abs().mean()))
        return super().forward(x / self.most)


def test_values_that_are_set_past_autograd() -> None:
    torch.manual_seed(0)
    net = SetOnce().eval()
    meter = FlatnessMeter(net)
    expected = numbers(relative_flatness(net, images()))
    assert [numbers(meter(images())) for _ in range(3)] == [expected] * 3


class Stream:
    """Batches that can be read once, which does not show."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = iter(batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.chain(self.batches)


@pytest.mark.parametrize("normalize", [None, "input"])
def test_a_stream_is_measured_whole(normalize: Normalize | None) -> None:
    net, (x, y) = network(), images(8)
    batches = [(x[:4], y[:4]), (x[4:], y[4:]), (x[:3], y[:3])]
    meter = FlatnessMeter(net, "all", normalize, batch_size=4)
    meter(batches[:2])
    expected = relative_flatness(net, batches, "all", normalize, batch_size=4)
    assert numbers(meter(Stream(batches))) == numbers(expected)


def test_meters_are_copied_and_pickled() -> None:
    meter = FlatnessMeter(network())
    expected = numbers(meter(images()))
    for twin in (copy.deepcopy(meter), pickle.loads(pickle.dumps(meter))):
        assert numbers(twin(images())) == expected
