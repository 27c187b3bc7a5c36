"""A measured model is as it was: everything in it, and what it computes, to the bit."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import threading
import types
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsearch
from flatsearch.flatness.replica import replicate
from tests.flatness import oracle
from tests.flatness.nets import GapByMean, images

if TYPE_CHECKING:
    from collections.abc import Callable


class Cached(nn.Module):
    """Keeps tensors that it computes in eval mode, by device, as attention biases are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4, 1, 1))
        self.cache: dict[str, Tensor] = {}
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.bias * 2
        self.last = x + self.cache[key]
        return self.last


class Counts(nn.Module):
    """A buffer, a tensor that is none, a number and a list that change with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.mean, self.number, self.seen = torch.zeros(4), 0, deque([1.0], maxlen=3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        self.number += 1
        self.seen.append(float(self.number))
        return x


class Clamped(nn.Module):
    """Changes a parameter in place, another one by its data."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.gain.clamp_(0.1)
        self.shift.data = self.shift.data.clamp(-0.1, 0.1)
        return x * self.gain + self.shift.view(-1, 1, 1)


class Merged(nn.Module):
    """Adds to its weight, by its data, when it goes to eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.update = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.ones(1))
        self.merged = False

    def train(self, mode: bool = True) -> Merged:
        if not mode and not self.merged:
            self.weight.data += self.update.data
        elif mode and self.merged:
            self.weight.data -= self.update.data
        self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight if self.merged else self.weight + self.update)


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.rand_like(x)


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.rand(1, generator=self.generator)


class Empty:
    """Has no attributes until a forward pass gives it some."""


NOTHING = Empty()


class Keeps(nn.Module):
    """Keeps what it computes on an empty object, and knows another one by its identity."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.other = Empty(), NOTHING

    def forward(self, x: Tensor) -> Tensor:
        assert self.other is NOTHING
        if not hasattr(self.kept, "scale"):
            self.kept.scale = x.new_full((), 2.0)
        return x * self.kept.scale


class Helper:
    def __init__(self) -> None:
        self.kept: list[Tensor] = []


class Collects(nn.Module):
    """Uses what a hook of its own has put aside, with an object that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.kept, self.helper = nn.Conv2d(4, 4, 1), [], Helper()
        self.conv.register_forward_hook(lambda m, a, out: self.kept.append(out))
        self.parent = weakref.ref(self)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.clear()
        y = F.relu(self.conv(x)) + self.kept[0]
        self.helper.kept.append(y)
        owner = self.parent()
        assert owner is self
        return y


class Patched(nn.Module):
    """Its forward pass is replaced on the instance, in the ways libraries do it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(4, 4, 1), 2.0

        def scaled(module: nn.Module, x: Tensor) -> Tensor:
            return module.conv(x) * module.scale

        if way == "partial":
            self.forward = functools.partial(scaled, self)
        elif way == "method":
            self.forward = types.MethodType(scaled, self)
        else:
            self.forward = lambda x: scaled(self, x)


class Fails(nn.Module):
    """After it has changed something."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.left = passes
        self.counts = Counts()

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        torch.rand(3)
        if self.left < 0:
            raise ArithmeticError("broken")
        return self.counts(x)


class Shared(nn.Module):
    """One module in two places, and one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.again, self.gain = self.norm, self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        assert self.again is self.norm
        return self.norm(x) * self.gain.view(-1, 1, 1)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "cached": Cached,
    "counts": Counts,
    "keeps": Keeps,
    "clamped": Clamped,
    "merged": Merged,
    "draws": Draws,
    "own generator": OwnGenerator,
    "collects": Collects,
    "partial": lambda: Patched("partial"),
    "method": lambda: Patched("method"),
    "closure": lambda: Patched("closure"),
    "shared": Shared,
    "dropout": lambda: nn.Dropout(0.5),
    "norm": lambda: nn.BatchNorm2d(4),
    "fails at once": lambda: Fails(0),
    "fails later": lambda: Fails(3),
    "is refused": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


def network(body: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), body, nn.Conv2d(4, 4, 3), GapByMean(), nn.Linear(4, 3)
    )


def picture(root: nn.Module) -> dict[str, Any]:
    """Return everything that can be told apart about a module and what is in it, by its path."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def look(path: str, value: Any) -> None:
        found[path] = value if isinstance(value, (int, float, str)) else id(value)
        if isinstance(value, Tensor):
            found[f"{path}, bits"] = value.tolist()
            found[f"{path}, form"] = (value.dtype, value.stride(), value.requires_grad, type(value))
            found[f"{path}, grad"] = (
                value.is_leaf and value.grad is not None and value.grad.tolist()
            )
        elif isinstance(value, torch.Generator):
            found[f"{path}, state"] = value.get_state().tolist()
        elif id(value) not in seen and not isinstance(value, (type, types.FunctionType)):
            seen.add(id(value))
            if isinstance(value, dict):
                inside = [*value.items()]
            elif isinstance(value, (list, tuple, set, deque)):
                inside = [*enumerate(value)]
            else:
                inside = [*getattr(value, "__dict__", {}).items()]
            for key, item in inside:
                look(f"{path}.{key}", item)

    look("model", root)
    return found


def _network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return network(MODULES[name]()).eval()


OPTIONS: list[dict[str, Any]] = [
    {"layers": "last"},
    {"layers": "all", "dtype": torch.float64, "normalize": "input"},
    {"layers": "head", "batch_size": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_nothing_in_a_model_changes(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, (x, y) = network(MODULES[name]()), images(5)
    observed: list[Any] = []
    model[0].register_full_backward_hook(lambda *_: observed.append("backward"))
    model[1].register_forward_hook(lambda *_: observed.append("forward"))
    model[3].to(memory_format=torch.channels_last)
    model[3].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model.train()
    model[1].eval()
    before, generator = picture(model), torch.get_rng_state()
    try:
        flatsearch.relative_flatness(model, (x, y), **options)
        failed = False
    except (ArithmeticError, flatsearch.UnsupportedModelError):
        failed = True
    assert failed == (name in {"fails at once", "fails later", "is refused"})
    assert observed == []
    assert picture(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", [name for name in MODULES if "fails" not in name])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_computes_the_same_afterwards(name: str, dtype: torch.dtype) -> None:
    x, y = images(5)
    # and a second one that is never measured: some compute something else with every call
    model, twin, outputs = _network_of(name), _network_of(name), []
    for one in (model, twin):
        torch.manual_seed(1)
        outputs.append([one(x).detach()])
    for layers in ("last", "all"):
        if name != "is refused":
            flatsearch.relative_flatness(model, (x, y), layers=layers, dtype=dtype)
        for one, seen in zip((model, twin), outputs, strict=True):
            seen.append(one(x).detach())
    for measured, plain in zip(*outputs, strict=True):
        assert torch.equal(measured, plain)


@pytest.mark.parametrize("name", ["cached", "collects", "partial", "method", "closure", "shared"])
def test_the_copy_is_what_is_measured(name: str) -> None:
    model, (x, y) = _network_of(name), images(5)
    results = flatsearch.relative_flatness(model, (x, y), layers="all", dtype=torch.float64)
    assert "0" in results.layers
    expected = oracle.by_kernel_gradients(model, x, list(results.layers), copied=False)
    for layer, result in results.layers.items():
        trace, kappa = expected[layer]
        assert result.hessian_trace == pytest.approx(trace, rel=1e-9)
        assert result.relative_flatness == pytest.approx(kappa, rel=1e-9)


def test_no_storage_is_shared() -> None:
    model = network(nn.BatchNorm2d(4))
    twin = replicate(model, torch.float32)
    pairs = zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)


class Scaled(Tensor):
    """Integers times a scale, without memory of its own, as quantised weights are."""

    parts: tuple[Tensor, Tensor]

    @staticmethod
    def __new__(cls, whole: Tensor, scale: Tensor) -> Scaled:
        make: Any = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        wrapper: Scaled = make(cls, whole.shape, dtype=scale.dtype)
        wrapper.parts = whole, scale
        return wrapper

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(*args[0].parts)
        plain = lambda x: x.parts[0] * x.parts[1] if isinstance(x, cls) else x  # noqa: E731
        return function(*map(plain, args), **(kwargs or {}))


@pytest.mark.parametrize("layers", ["last", "head"])
def test_weights_without_memory_of_their_own(layers: str) -> None:
    torch.manual_seed(0)
    model = network(nn.BatchNorm2d(4))
    expected = flatsearch.relative_flatness(model, images(), layers=layers)
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            whole, half = (2 * layer.weight.data), torch.tensor(0.5)
            layer.weight = nn.Parameter(Scaled(whole, half), requires_grad=False)
    result = flatsearch.relative_flatness(model, images(), layers=layers)
    assert result.relative_flatness == pytest.approx(expected.relative_flatness)
    assert result.nu == pytest.approx(expected.nu)


class Renormalised(nn.Module):
    """Scales its weight down in place where it is too large."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.norm() > 3:
            with torch.no_grad():
                self.weight.mul_(2 / self.weight.norm())
        return x * self.weight


def test_a_weight_that_is_renormalised_later() -> None:
    layer = Renormalised()
    model, data = network(layer), images(6)
    meter = flatsearch.FlatnessMeter(model)
    meter(data)
    layer.weight.data.mul_(3)
    before = picture(model)
    expected = flatsearch.relative_flatness(model, data)
    assert meter(data) == expected
    assert picture(model) == before


def test_weights_that_some_batches_change() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 4:
                with torch.no_grad():
                    self.weight.mul_(0.5)
            return x * self.weight

    model = network(Halved())
    before = picture(model)
    with pytest.raises(flatsearch.UnsupportedModelError, match="is changed by the forward pass"):
        flatsearch.relative_flatness(model, images(6))
    assert picture(model) == before


@dataclasses.dataclass
class Slotted:
    """Counts calls in a slot."""

    __slots__ = ("calls",)
    calls: int


class CountsElsewhere(nn.Module):
    """Counts its calls in an object."""

    def __init__(self, counter: Any) -> None:
        super().__init__()
        self.counter = counter

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.counter, Iterator):
            next(self.counter)
        else:
            self.counter.calls += 1
        return x


@pytest.mark.parametrize(
    "counter",
    [types.SimpleNamespace(calls=0), argparse.Namespace(calls=0), Slotted(0), itertools.count()],
)
def test_counters_are_left_alone(counter: Any) -> None:
    model = network(CountsElsewhere(counter))
    before = repr(counter)
    flatsearch.relative_flatness(model, images(6))
    assert repr(counter) == before


class Approximate(nn.Module):
    """Draws random numbers of which nothing comes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x + 0 * torch.svd_lowrank(self.weight, q=3)[1].max()


def test_random_numbers_of_an_approximation() -> None:
    model, data = network(Approximate()), images(6)
    before = torch.get_rng_state()
    flatsearch.relative_flatness(model, data)
    assert torch.equal(before, torch.get_rng_state())


def test_one_model_measured_in_several_threads() -> None:
    torch.manual_seed(0)
    model, data = network(Cached()), images(16)
    before = picture(model)
    expected = flatsearch.relative_flatness(model, data, layers="all")
    results: list[object] = []

    def measure() -> None:
        with contextlib.suppress(Exception):  # fewer results then
            results.extend(
                flatsearch.relative_flatness(model, data, layers="all") for _ in range(3)
            )

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 12
    assert picture(model) == before
