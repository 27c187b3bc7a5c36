"""What a model does in a forward pass that the recorded graph does not show."""

from __future__ import annotations

import contextlib
import random
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from flatsearch.flatness.patches import Patches, unwrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Arguments",
    "Calls",
    "Named",
    "RandomState",
    "Watch",
    "address",
    "input_of",
    "is_differentiable",
    "keep_random_state",
    "kernel_of",
    "other_generators",
    "weight_of",
    "without_hooks",
]

# Of a call: those by place, and those by name.
Arguments = tuple[Any, ...]
Named = Mapping[str, Any]

_HOOKS = {Tensor.register_hook, Tensor.retain_grad}
# What is computed from the result is a constant to autograd.
_CUTS = {
    Tensor.__float__,
    Tensor.__int__,
    Tensor.detach,
    Tensor.detach_,
    Tensor.item,
    Tensor.numpy,
    Tensor.tolist,
    torch.detach,
}
_NODE = Tensor.grad_fn.__get__  # type: ignore[union-attr]
# What gives access past autograd, which does not notice changes then.
_PAST = {_NODE, Tensor.data.__get__, Tensor.numpy}  # type: ignore[attr-defined]
# They say something of a tensor's shape only.
_WITHOUT_VALUES = {"empty_like", "new_empty", "new_ones", "new_zeros", "ones_like", "zeros_like"}
# In the names of what may draw random numbers, beside others.
_RANDOM = re.compile(
    "attention|bernoulli|cauchy|drop|exponential|fractional|geometric|gumbel|lobpcg|lowrank"
    "|multinomial|normal|poisson|rand|rrelu|uniform"
)


class Calls(TorchFunctionMode):
    """A context in which what a model calls goes through `call`."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Return what `call` returns."""
        return self.call(function, args, kwargs or {})

    def call(self, function: Any, args: Arguments, kwargs: Named) -> Any:
        """Return what the function returns."""
        return function(*args, **kwargs)


class without_hooks(Calls):  # noqa: N801 - a context
    """Leaves out the hooks that a model puts on tensors.

    They see gradients that are nobody's, or change them; and tensors in front of the measured
    layers do not even take hooks.

    Attributes:
        left_out: Whether there was one.
    """

    left_out = False

    def call(self, function: Any, args: Arguments, kwargs: Named) -> Any:
        """Return what the function returns; for a hook a handle of none."""
        if function in _HOOKS:
            self.left_out = True
            return RemovableHandle(OrderedDict())
        return super().call(function, args, kwargs)


def other_generators() -> tuple[object, ...]:
    """Return the states of Python's and NumPy's generators of random numbers, to be compared."""
    _, keys, place, *_ = np.random.get_state(legacy=True)  # noqa: NPY002
    return random.getstate(), np.asarray(keys).tobytes(), place


class RandomState:
    """The states of the generators of random numbers that a model may draw from.

    They are the process's, so they are set back only if the model is seen to draw: other threads
    draw too. Those of Python's `random` and of NumPy are not set back: who has drawn is not seen.

    Attributes:
        drawn: Whether it has been seen to.
        elsewhere: Whether something may have been drawn from `random`, NumPy or a generator of the
            model's own.

    Args:
        device: The model's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first = self.current()
        self.drawn = self.elsewhere = False

    def current(self) -> list[Tensor]:
        """Return the states."""
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def notice(self, before: list[Tensor]) -> None:
        """Note whether something has been drawn since."""
        pairs = zip(before, self.current(), strict=True)
        self.drawn = self.drawn or not all(torch.equal(a, b) for a, b in pairs)

    @property
    def draws(self) -> bool:
        """Whether the model may draw random numbers, from whatever generator."""
        return self.drawn or self.elsewhere

    @contextlib.contextmanager
    def watching_others(self) -> Iterator[None]:
        """Note whether something is drawn from `random` or NumPy inside."""
        before = other_generators()
        yield
        self.elsewhere = self.elsewhere or other_generators() != before

    def restore(self) -> None:
        """Set the states back to those of the beginning, if the model has drawn."""
        if self.drawn:
            torch.set_rng_state(self._first[0])
            if self._device.type == "cuda":
                torch.cuda.set_rng_state(self._first[1], self._device)


@contextlib.contextmanager
def keep_random_state(device: torch.device) -> Iterator[RandomState]:
    """Set the generators of random numbers back afterwards if the model has drawn some.

    Yields:
        What has to be told of operations that may draw.
    """
    state = RandomState(device)
    try:
        yield state
    finally:
        state.restore()


def is_differentiable(value: object) -> bool:
    """Return whether something is a tensor that gradients flow back from."""
    return isinstance(value, Tensor) and value.requires_grad


def _is_constant(value: object) -> bool:
    if not isinstance(value, Tensor):
        return False
    inner: Tensor = unwrapped(value)
    return inner.grad_fn is None and (inner.is_floating_point() or inner.is_complex())


# Missing in PyTorch 2.6, where it is seen when hooks are put on.
_ask_for_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
_put_on = saved_tensors_hooks.__enter__


def _top_hooks() -> Any:
    """Return the hooks that are called with what the graph keeps; None where nobody can ask."""
    return None if _ask_for_hooks is None else _ask_for_hooks(True)


class Watch(without_hooks):
    """Sees what a forward pass calls, whether or not autograd does.

    Attributes:
        cut: Whether something is taken out of the graph, so that autograd's derivatives may be
            those of something else.
        largest: Bytes of the input and the output of the largest convolution.
        convolutions: The kernels of the convolutions, in order.
        addresses: Where they lie in memory.
        patches: Which convolutions are written as something else.

    Args:
        random_state: Told of the operations that draw random numbers.
    """

    def __init__(self, random_state: RandomState) -> None:
        super().__init__()
        self._random = random_state
        self.cut = False
        self.largest = 0
        self._hooks: Any = None
        self.convolutions: list[Tensor] = []
        self.addresses: list[int | None] = []
        self.patches = Patches()

    def __enter__(self) -> Watch:
        """Begin to see."""
        self._hooks = _top_hooks()

        def note_and_put_on(hooks: Any) -> None:
            own = str(getattr(hooks.pack_hook, "__module__", "")).startswith("flatsearch.")
            self.cut = self.cut or not own
            _put_on(hooks)

        if _ask_for_hooks is None:
            saved_tensors_hooks.__enter__ = note_and_put_on  # type: ignore[method-assign]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Cease to see."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if _ask_for_hooks is None:
            saved_tensors_hooks.__enter__ = _put_on  # type: ignore[method-assign]

    def call(self, function: Any, args: Arguments, kwargs: Named) -> Any:
        """Return what the function returns."""
        may_draw = _RANDOM.search(getattr(function, "__name__", ""))
        before = self._random.current() if may_draw else None
        self._random.elsewhere |= kwargs.get("generator") is not None
        result = super().call(function, args, kwargs)
        self.patches.see(function, args, kwargs, result)
        if before is not None:
            self._random.notice(before)
        self.cut = self.cut or function in _PAST or _top_hooks() != self._hooks
        given = [leaf for leaf in tree_leaves((args, kwargs)) if is_differentiable(leaf)]
        if given and not self.cut:
            hidden = isinstance(result, Tensor) and not torch.is_grad_enabled()
            self.cut = (
                hidden
                or function in _CUTS
                or any(
                    _is_constant(leaf) and not any(leaf is other for other in given)
                    for leaf in tree_leaves(result)
                    if getattr(function, "__name__", "") not in _WITHOUT_VALUES
                )
            )
        kernel = kernel_of(function, args, kwargs)
        if kernel is not None:
            x = input_of(args, kwargs)
            self.convolutions.append(kernel)
            self.addresses.append(address(kernel))
            self.largest = max(self.largest, x.nbytes + result.nbytes)
        return result


def address(tensor: Tensor) -> int | None:
    """Return where a tensor lies in memory; None if it is a wrapper around others."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return None


def input_of(args: Arguments, kwargs: Named) -> Tensor:
    """Return what a convolution, linear layer or padding is given, however it was passed."""
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def weight_of(args: Arguments, kwargs: Named) -> Any:
    """Return the second argument, which a layer's weight is; None without one."""
    return args[1] if len(args) > 1 else kwargs.get("weight")


def kernel_of(function: Any, args: Arguments, kwargs: Named) -> Tensor | None:
    """Return the kernel that a convolution is called with; None if the function is no such.

    None too inside of `torch.vmap`, which nothing may be taken out of, and for tensors without
    values, by which `torch.cond` tries its branches.
    """
    if "conv" not in getattr(function, "__name__", ""):
        return None
    tensors = [weight_of(args, kwargs), input_of(args, kwargs)]
    plain = all(isinstance(t, Tensor) and t is unwrapped(t) and not is_fake(t) for t in tensors)
    return tensors[0] if plain else None
