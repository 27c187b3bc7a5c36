"""A CUDA device that computes on the CPU, for tests of everything that happens on a device.

Its tensors say that they are on cuda:0, do not mix with others, and count every time that the host
waits for a number of theirs. What it cannot show: kernels that CUDA lacks, its rounding, streams,
graphs, memory, and the names of cuDNN's nodes.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_ATEN = torch.ops.aten
# They give the host a number, or a shape that depends on numbers.
_WAITING = {
    _ATEN._local_scalar_dense.default,
    _ATEN._unique2.default,
    _ATEN.bincount.default,
    _ATEN.equal.default,
    _ATEN.is_nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.nonzero.default,
    _ATEN.unique_consecutive.default,
    _ATEN.unique_dim.default,
}
_INDEXING = {
    _ATEN._index_put_impl_.default,
    _ATEN._unsafe_index.Tensor,
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
}
_Generator, _to = torch.Generator, torch.Tensor.to


class _DeviceGenerator(torch.Generator):
    """Draws on the CPU, and says that it is on the device."""

    device = property(lambda _: CUDA)  # type: ignore[assignment]


class _OnDevice(torch.Tensor):
    """A tensor on the device: a shell around one on the CPU."""

    inside: torch.Tensor

    @staticmethod
    def __new__(cls, inside: torch.Tensor) -> _OnDevice:
        shell = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            layout=inside.layout,
            device=CPU,
        )
        shell.inside = inside
        return shell

    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)  # type: ignore[assignment]
    is_cpu = property(lambda _: False)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"_OnDevice({self.inside!r})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        assert FakeCuda.running is not None, "a tensor of a fake device that has been stopped"
        return FakeCuda.running.compute(function, args, kwargs or {})

    def get_device(self) -> int:
        return 0

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.inside.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inside.untyped_storage()

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.to("cpu")

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                twin: Any = _OnDevice(self.inside.detach().clone())
            if getattr(self, "_is_param", False):
                twin = torch.nn.Parameter(twin, self.requires_grad)
            memo[id(self)] = twin.requires_grad_(self.requires_grad)
        return memo[id(self)]


# Operations are given another object of Python, for the same generator.
_generators: dict[int, _DeviceGenerator] = {}


class _MakesGenerators(type):
    """Makes the class that stands for `torch.Generator`."""

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        if torch.device(device).type != "cuda":
            return _Generator("cpu")
        generator = _DeviceGenerator("cpu")
        _generators[generator._cdata] = generator  # type: ignore[attr-defined]
        return generator

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _Generator)


class _AnyGenerator(metaclass=_MakesGenerators):
    """Stands for `torch.Generator`."""


def _moved(tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand for `Tensor.to`."""
    other = args[0] if args else kwargs.get("other")
    if isinstance(other, torch.Tensor):
        return _moved(tensor, other.device, other.dtype)
    known = {name: value for name, value in kwargs.items() if name != "copy"}
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **known)
    if not isinstance(tensor, _OnDevice):
        return _to(tensor, *args, **kwargs)
    if device is not None and device.type == "cpu":
        return _ATEN._to_copy.default(tensor, dtype=dtype, device=CPU)
    if dtype not in {None, tensor.dtype} or kwargs.get("copy"):
        tensor = _ATEN._to_copy.default(tensor, dtype=dtype)
    if layout is not None and not tensor.is_contiguous(memory_format=layout):
        tensor = _ATEN.clone.default(tensor, memory_format=layout)
    return tensor


class FakeCuda(TorchDispatchMode):
    """Within it there is one CUDA device.

    Attributes:
        waits: How often the host has waited, by the line of ours that made it.
    """

    running: FakeCuda | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._backward = 0
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> FakeCuda:
        if FakeCuda.running is None:
            FakeCuda.running = self
            self._patch()
        return super().__enter__()

    def stop(self) -> None:
        """Take the device away again."""
        self._patches.close()
        FakeCuda.running = None

    def _patch(self) -> None:
        torch._C._ensureCUDADeviceGuardSet()
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._patches.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        answers = {
            "current_device": 0,
            "device_count": 1,
            "empty_cache": None,
            "get_device_name": "fake",
            "get_rng_state_all": [],
            "is_available": True,
            "is_bf16_supported": True,
            "manual_seed": None,
            "manual_seed_all": None,
            "max_memory_allocated": 0,
            "mem_get_info": (60 << 30, 80 << 30),
            "memory_allocated": 0,
            "memory_reserved": 0,
            "reset_peak_memory_stats": None,
            "set_rng_state": None,
            "set_rng_state_all": None,
            "synchronize": None,
            "_lazy_init": None,
        }
        stand_ins: dict[str, Any] = {
            f"torch.cuda.{name}": lambda *_, value=value, **__: value
            for name, value in answers.items()
        }
        state = torch.get_rng_state
        stand_ins["torch.cuda.get_rng_state"] = lambda *_: state()
        stand_ins["torch.Generator"] = _AnyGenerator
        stand_ins["torch.Tensor.to"] = _moved
        stand_ins["torch.Tensor.pin_memory"] = lambda tensor: tensor
        stand_ins["torch.autograd.grad"] = self._in_backward(torch.autograd.grad)
        stand_ins["torch.autograd.backward"] = self._in_backward(torch.autograd.backward)
        for name, value in stand_ins.items():
            self._patches.enter_context(mock.patch(name, value))

    def _in_backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._backward += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._backward -= 1

        return call

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return self.compute(function, args, kwargs or {})

    def compute(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute on the CPU what is asked of the device, or of the CPU."""
        kwargs = dict(kwargs)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        ours = [leaf for leaf in leaves if isinstance(leaf, _OnDevice)]
        others = [leaf for leaf in leaves if not isinstance(leaf, _OnDevice)]
        on_device = self._place(function, args, kwargs, ours, others)
        self._refuse_mixture(function, args, ours, others)
        generator = kwargs.get("generator")
        known = isinstance(generator, _Generator)
        if known and (generator._cdata in _generators) != on_device:  # type: ignore[union-attr]
            raise RuntimeError(f"the generator is of another device ({function})")

        def bare(leaf: Any) -> Any:
            return leaf.inside if isinstance(leaf, _OnDevice) else leaf

        result = function(*tree_map(bare, args), **tree_map(bare, kwargs))
        if not on_device:
            return result
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[place] if place < len(args) else kwargs.get(argument.name)
                if isinstance(given, _OnDevice) and isinstance(result, torch.Tensor):
                    return given
        return tree_map(
            lambda leaf: _OnDevice(leaf) if type(leaf) is torch.Tensor else leaf, result
        )

    def _place(
        self, function: Any, args: Any, kwargs: dict[str, Any], ours: list[Any], others: list[Any]
    ) -> bool:
        """Return whether the result is on the device; count the wait where the host gets it."""
        asked = kwargs.get("device")
        to_device = asked is not None and torch.device(asked).type == "cuda"
        if asked is not None:
            kwargs["device"] = CPU
        on_device = bool(ours) or to_device
        if function is _ATEN._to_copy.default and asked is not None and not to_device:
            on_device = False
            self._wait(function, ours)
        elif function is _ATEN.copy_.default:
            on_device = isinstance(args[0], _OnDevice)
            self._wait(function, [] if on_device else ours)
        elif not ours and not others and asked is None and self._backward:
            on_device = True  # made by the engine, beside its gradients
        elif function in _WAITING:
            self._wait(function, ours)
        elif function in _INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in {torch.bool, torch.uint8}]
            self._wait(function, masks)
        return on_device

    def _refuse_mixture(self, function: Any, args: Any, ours: list[Any], others: list[Any]) -> None:
        if function in {_ATEN._to_copy.default, _ATEN.copy_.default}:
            return
        if function in _INDEXING:
            if ours and not isinstance(args[0], _OnDevice):
                raise RuntimeError("indices should be either on cpu or on the same device")
        elif ours and any(leaf.dim() > 0 for leaf in others):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices,"
                f" cuda:0 and cpu! ({function})"
            )

    def _wait(self, function: Any, waited_for: list[Any]) -> None:
        if not waited_for:
            return
        for frame in reversed(traceback.extract_stack()):
            if "/flatsearch/" in frame.filename or "search_spaces" in frame.filename:
                self.waits[f"{frame.filename}:{frame.lineno} {function}"] += 1
                return
        self.waits[str(function)] += 1
