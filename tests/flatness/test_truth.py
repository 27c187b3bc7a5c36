"""Hooks, memory formats and modes: the same network has the same number, or is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as everywhere
from torch.nn.modules.module import (
    register_module_backward_hook,
    register_module_full_backward_hook,
)
from torch.utils.flop_counter import FlopCounterMode

import flatsearch
from flatsearch import UnsupportedModelError
from tests.flatness import oracle
from tests.flatness.nets import Apply, GapByMean, images

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatsearch import FlatnessResult


def network(
    function: Callable[[Tensor], Tensor] = F.gelu, pool: nn.Module | None = None
) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(4, 5, 3),
        Apply(function),
        nn.AdaptiveAvgPool2d(1) if pool is None else pool,
        nn.Flatten(),
        nn.Linear(5, 3),
    ).double()


def data() -> tuple[Tensor, Tensor]:
    x, y = images()
    return x.double(), y


def measure(model: nn.Module, x: Tensor | None = None, **options: Any) -> FlatnessResult:
    return flatsearch.relative_flatness(
        model, (data()[0] if x is None else x, data()[1]), **options
    )


def same(result: FlatnessResult, expected: FlatnessResult) -> None:
    assert result.kind == expected.kind
    assert list(result.layers) == list(expected.layers)
    assert result.relative_flatness == pytest.approx(expected.relative_flatness, rel=1e-9)
    assert result.hessian_trace == pytest.approx(expected.hessian_trace, rel=1e-9)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), GapByMean(), nn.AvgPool2d(6)])
def test_channels_last(layers: str, pool: nn.Module) -> None:
    model, (x, y) = network(pool=pool), data()
    expected = measure(model, layers=layers)
    assert expected.kind == ("hessian" if layers == "last" else "gauss-newton")
    if layers == "last":
        kappa = oracle.by_hessian(model, x, y, "2")[1]
        assert expected.relative_flatness == pytest.approx(kappa, rel=1e-9)
    last = x.to(memory_format=torch.channels_last)
    same(measure(model, last, layers=layers), expected)
    same(measure(model.to(memory_format=torch.channels_last), layers=layers), expected)
    same(measure(model, last, layers=layers, batch_size=1), expected)


def observed(model: nn.Sequential, change: float) -> None:
    """Put hooks on gradients that only look at them if `change` is 1."""
    for module in model:
        module.register_full_backward_hook(
            lambda m, into, out: (
                None if change == 1 else tuple(None if g is None else g * change for g in into)
            )
        )
        module.register_full_backward_pre_hook(lambda m, out: None)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_hooks_on_modules_that_only_look(layers: str) -> None:
    expected, model = measure(network(), layers=layers), network()
    observed(model, 1)
    same(measure(model, layers=layers), expected)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_hooks_on_modules_that_change_gradients(layers: str) -> None:
    model = network()
    model[2].register_full_backward_hook(lambda m, into, out: (2 * into[0],))
    if layers == "last":  # what it changes is in front
        same(measure(model), measure(network()))
    else:
        with pytest.raises(UnsupportedModelError, match="a hook of layer '2' changes gradients"):
            measure(model, layers=layers)
    model = network()
    model[3].register_full_backward_pre_hook(lambda m, out: (out[0] * 2,))
    with pytest.raises(UnsupportedModelError, match="a hook of layer '3' changes gradients"):
        measure(model, layers=layers)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize(
    "register", [register_module_full_backward_hook, register_module_backward_hook]
)
def test_hooks_on_all_modules(
    layers: str, register: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everywhere, "_global_is_full_backward_hook", None)  # both kinds, in turn
    model, expected = network(), measure(network(), layers=layers)
    handle = register(lambda m, into, out: None)
    try:
        same(measure(model, layers=layers), expected)
    finally:
        handle.remove()
    handle = register(lambda m, into, out: tuple(None if g is None else 2 * g for g in into))
    try:
        with pytest.raises(UnsupportedModelError, match="because of hook on the gradients of all"):
            measure(model, layers=layers)
    finally:
        handle.remove()


def hooking(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        y = F.gelu(x)
        if y.requires_grad:
            y.register_hook(change)
            y.retain_grad()
        return y

    return function


def test_hooks_on_tensors() -> None:
    seen: list[Tensor] = []
    same(measure(network(hooking(seen.append)), layers="all"), measure(network(), layers="all"))
    with pytest.raises(UnsupportedModelError, match="puts on a tensor changes gradients"):
        measure(network(hooking(lambda g: 3 * g)))


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.abs().mean()
    return x / scale


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        return x.round()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        return g


def noted(x: Tensor) -> Tensor:
    float(x.detach().mean())  # nothing comes of it
    return F.gelu(x)


def with_node_hook(x: Tensor) -> Tensor:
    y = F.gelu(x)
    if y.grad_fn is not None:
        y.grad_fn.register_prehook(lambda gradients: (gradients[0] * 3,))
    return y


def with_saved_hooks(x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t * 3):
        return x.sigmoid()


class ChangedByData(nn.Conv2d):
    """Changes what it has convolved, and autograd cannot know."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x.data.mul_(2)
        return y


def test_inputs_that_are_changed_by_their_data() -> None:
    for place, changed in ((0, ChangedByData(2, 4, 3, padding=1)), (2, ChangedByData(4, 5, 3))):
        model = network()
        model[place] = changed.double()
        with pytest.raises(UnsupportedModelError, match="autograd's derivatives are not those of"):
            measure(model, layers="all")


UNTRUE: dict[str, Callable[[Tensor], Tensor]] = {
    "straight through": StraightThrough.apply,
    "straight through, detached": lambda x: x + (x.round() - x).detach(),
    "gate without gradient": lambda x: x * x.detach().sigmoid(),
    "scale as a number": lambda x: x / float(x.abs().max()),
    "scale by data": lambda x: x / x.data.std(),
    "scale without gradient": without_gradient,
    "new tensor": lambda x: x * x.new_tensor(x.sigmoid()),
    "operator": lambda x: x * torch.ops.aten.detach.default(x.sigmoid()),
    "parameter": lambda x: x * nn.Parameter(x.sigmoid()),
    "hook on an operation": with_node_hook,
    "hooks on what is saved": with_saved_hooks,
    "fake quantisation": lambda x: torch.fake_quantize_per_tensor_affine(
        x.float(), 0.5, 0, -8, 7
    ).double(),
}


@pytest.mark.parametrize("name", UNTRUE)
def test_derivatives_that_are_not_those_of_the_logits(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="autograd's derivatives are not those of"):
        measure(network(UNTRUE[name]))


class Unknown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        raise ValueError("no formula")


def doubling(module: nn.Module, into: Any, out: Any) -> Any:
    return tuple(None if g is None else 2 * g for g in into)


BETWEEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "straight through": (StraightThrough.apply, "because of StraightThroughBackward"),
    "gate without gradient": (lambda x: x * x.detach().sigmoid(), "because of a tensor that is"),
    "without a formula": (Unknown.apply, "through UnknownBackward: no formula"),
    "half precision": (lambda x: x.half().to(x.dtype), "computes in torch.float16"),
    "hook": (torch.clone, "hook of layer '1' changes gradients"),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_only_what_is_in_front_of_an_untrue_derivative_is_left_out(name: str) -> None:
    function, message = BETWEEN[name]
    model = network()
    model[1] = Apply(function)
    expected = measure(model, layers=["2"])
    if name == "hook":
        model[1].register_full_backward_hook(doubling)
    for layers in ("all", ["0"]):
        with pytest.raises(UnsupportedModelError, match=message) as caught:
            measure(model, layers=layers)
        assert str(caught.value).startswith("layer '0': ")
        assert ("skip_unsupported" in str(caught.value)) == (layers == "all")
    result = measure(model, layers="all", skip_unsupported=True)
    same(result, expected)
    assert list(result.skipped) == ["0"]
    assert message in result.skipped["0"]
    same(measure(model), expected)


class Branch(nn.Module):
    """One of little effect, with a derivative that is its own or not."""

    def __init__(self, effect: float, *, own: bool) -> None:
        super().__init__()
        self.main, self.side = nn.Conv2d(4, 5, 3), nn.Conv2d(4, 5, 3)
        self.effect, self.own = effect, own

    def forward(self, x: Tensor) -> Tensor:
        side = self.side(x)
        bent = side.tanh() if self.own else side
        return self.main(x) + self.effect * (bent + (side.tanh() - bent).detach())


@pytest.mark.parametrize("effect", [1.0, 1e-6, 1e-8, 1e-10, 1e-13])
def test_derivatives_of_a_branch_of_little_effect(effect: float) -> None:
    for own in (True, False):
        model = network()
        model[2] = Branch(effect, own=own).double()
        result = measure(model, layers=["2.main", "2.side"], skip_unsupported=True)
        if own or effect < 1e-9:  # below what differences of the logits can tell
            assert sorted(result.layers) == ["2.main", "2.side"]
        else:
            assert list(result.layers) == ["2.main"]
            assert "autograd's derivatives are not those" in result.skipped["2.side"]


def test_what_is_detached_and_not_used_does_no_harm() -> None:
    same(measure(network(noted), layers="all"), measure(network(), layers="all"))


@pytest.mark.parametrize("layers", ["last", "all"])
def test_modes_of_the_caller(layers: str) -> None:
    model, expected, given = network(), measure(network(), layers=layers), data()
    for mode in (
        FlopCounterMode(display=False),
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.save_on_cpu(),
        torch.device("cpu"),
        torch.device("meta"),
    ):
        with mode:
            result = flatsearch.relative_flatness(model, given, layers=layers)
        same(result, expected)


def compiled_layer(model: nn.Sequential) -> tuple[nn.Module, nn.Module]:
    model[2] = torch.compile(model[2], backend="eager")
    return model, model[2]


def compiled(model: nn.Sequential) -> tuple[nn.Module, nn.Module]:
    wrapper: nn.Module = torch.compile(model, backend="eager")
    return wrapper, wrapper


def parallel(model: nn.Sequential) -> tuple[nn.Module, nn.Module]:
    return (wrapper := nn.DataParallel(model)), wrapper


@pytest.mark.parametrize("wrap", [compiled_layer, compiled, parallel])
def test_hooks_on_what_is_around_a_module(
    wrap: Callable[[nn.Sequential], tuple[nn.Module, nn.Module]],
) -> None:
    model, wrapper = wrap(network())
    meter = flatsearch.FlatnessMeter(model)
    meter(data())
    wrapper.register_forward_hook(lambda module, given, result: 3 * result)
    with pytest.raises(UnsupportedModelError, match="put them on the module itself"):
        meter(data())


def unflattened(program: torch.export.ExportedProgram) -> list[nn.Module]:
    """Return a program as modules, which PyTorch 2.6 fails to make of it."""
    old = torch.__version__.startswith("2.6")
    return [] if old else [torch.export.unflatten(program)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("layers", ["last", "all"])
def test_compiled_and_exported(layers: str) -> None:
    model, x = network(), data()[0]
    expected = measure(model, layers=layers)
    program = torch.export.export(
        model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},)
    )
    for exported in (program.module(), *unflattened(program)):
        result = measure(exported, layers=layers)
        assert result.relative_flatness == pytest.approx(expected.relative_flatness, rel=1e-9)
        assert result.kind == expected.kind
    fixed = torch.export.export(model, (x[:3],))
    for exported in (fixed.module(), *unflattened(fixed)):
        with pytest.raises(flatsearch.UnsupportedModelError, match="does not take 2 images at a"):
            measure(exported, layers=layers)
    wrapped = nn.Sequential(torch.compile(model[:4], backend="eager"), *model[4:])
    result = measure(wrapped, layers=layers)
    assert result.relative_flatness == pytest.approx(expected.relative_flatness, rel=1e-9)
    inner = network(torch.compile(F.gelu, backend="eager"))
    same(measure(inner, layers=layers), expected)
    model.compile(backend="eager")
    same(measure(model, layers=layers), expected)
