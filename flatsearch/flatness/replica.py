"""A copy of a model that can be run and differentiated without a trace in the model.

Modules may keep tensors in eval mode, count their calls, change buffers or parameters in place,
and other threads may use them at the same time. So it is never the model itself that is run, but
a copy: everything that belongs to a module and can change is copied (containers, tensors, objects
of the user's classes, the closures of hooks), and its tensors have the measure's precision. It
shares no storage with the model: a forward pass may renormalise a weight in place.

What is left behind: hooks on gradients, which are not part of what the model computes, and
compiled versions of it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import enum
import functools
import random
import sys
import types
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from flatsearch.errors import UnsupportedModelError

__all__ = [
    "CONSTANTS",
    "DEEP",
    "OFTEN_EMPTY",
    "SIMPLE",
    "attributes",
    "changed",
    "global_names",
    "has_hooks",
    "is_foreign",
    "modules_with_gradient_hooks",
    "replicate",
    "unwrapped",
]

_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HOOKS_ON_GRADIENTS = ("_backward_hooks", "_backward_pre_hooks")
CONSTANTS = (type(None), bool, int, float, str, type, enum.Enum, types.ModuleType, torch.dtype)
# What most of a module's attributes are, and names.
SIMPLE = {type(None), bool, int, float, str}
DEEP = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random)
OFTEN_EMPTY = (dict, OrderedDict, list, set)
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_FOREIGN = {*sys.stdlib_module_names, "numpy", "torch"} - {"__main__"}


def is_foreign(value: Any) -> bool:
    """Return whether an object stays as it is: no class of the user's, or nothing to change.

    An empty object that is found by a global name stays too: it is there to be told from others.
    """
    home = type(value).__module__
    if home.partition(".")[0] in _FOREIGN and not isinstance(value, _NAMESPACES):
        return True
    if getattr(value, "__dict__", None) or any(_slots(value)):
        return False
    names = vars(sys.modules[home]) if home in sys.modules else {}
    return not hasattr(value, "__dict__") or any(value is other for other in names.values())


def _slots(value: Any) -> Iterator[tuple[str, Any]]:
    for kind in type(value).__mro__:
        if "__slots__" in vars(kind):
            for name, member in vars(kind).items():
                if isinstance(member, types.MemberDescriptorType):
                    yield name, member


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, also those in slots."""
    result = dict(getattr(value, "__dict__", {}))
    for name, member in _slots(value):
        with contextlib.suppress(AttributeError):  # an empty one
            result[name] = member.__get__(value, type(value))
    return result


def global_names(code: types.CodeType) -> set[str]:
    """Return the names that a function looks for outside, those within it too."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return {*code.co_names, *(name for part in inner for name in global_names(part))}


def has_hooks(wrapper: nn.Module) -> bool:
    """Return whether a wrapper has forward hooks of its own, which what is in it does not have."""
    return any(vars(wrapper).get(hooks) for hooks in _FORWARD_HOOKS)


def unwrapped(module: nn.Module, name: str = "") -> nn.Module:
    """Return the module that `torch.compile` or data parallelism has been put around, if any.

    Args:
        module: Any module.
        name: The layer's; empty for the model.

    Returns:
        The module itself if it is no such wrapper.

    Raises:
        UnsupportedModelError: If the wrapper has hooks of its own, which what is in it has not.
    """
    parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    inner = getattr(module, "module" if parallel else "_orig_mod", None)
    if not isinstance(inner, nn.Module):
        return module
    if has_hooks(module):
        where = f"layer {name!r}" if name else "the model"
        raise UnsupportedModelError(
            f"{where} has hooks on the {type(module).__name__} around it; put them on the module"
            " itself"
        )
    return unwrapped(inner, name)


def modules_with_gradient_hooks(model: nn.Module) -> list[str]:
    """Return the names of the modules with hooks on gradients."""
    return [
        name
        for name, module in model.named_modules()
        if any(getattr(module, hooks, None) for hooks in _HOOKS_ON_GRADIENTS)
    ]


def replicate(
    model: nn.Module, dtype: torch.dtype | None, *, gradient_hooks: bool = False
) -> nn.Module:
    """Return a copy of a model in eval mode.

    Args:
        model: Any module; it is only read.
        dtype: The precision of the copy's floating-point tensors; None for what they have.
        gradient_hooks: Whether the hooks on gradients are copied too.

    Returns:
        The copy, none of whose parameters requires a gradient; those of other modules that it
        refers to may.

    Raises:
        UnsupportedModelError: If a part of it cannot be copied; names it.
    """
    copier = _Copier(model, dtype, gradient_hooks=gradient_hooks)
    result: nn.Module = copier(model)
    try:
        result.eval()
    except NotImplementedError:  # programs by torch.export have no modes
        for module in result.modules():
            module.training = False
    return result


class _Copier:
    """Copies whatever may belong to a module; what is met twice is copied once."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype | None, *, gradient_hooks: bool
    ) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._own = {id(parameter) for parameter in model.parameters()}
        self._dtype, self._gradient_hooks = dtype, gradient_hooks
        self._copies: dict[int, tuple[Any, Any]] = {}  # with the originals, to keep them alive

    def __call__(self, value: Any) -> Any:
        if type(value) in SIMPLE or isinstance(value, CONSTANTS):
            return value
        if id(value) in self._copies:
            return self._copies[id(value)][1]
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            return self._keep(value, self._tensor(value))
        if isinstance(value, (dict, list, set, deque, tuple)):
            return self._container(value)
        if isinstance(value, types.MethodType):
            owner = self(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            parts = (self(value.func), self(value.args), self(value.keywords))
            return self._keep(value, type(value)(parts[0], *parts[1], **parts[2]))
        if isinstance(value, weakref.ref):
            target = value()
            return value if id(target) not in self._names else weakref.ref(self(target))
        if isinstance(value, torch.Generator):
            twin = torch.Generator(value.device)
            return self._keep(value, twin.set_state(value.get_state()))
        if isinstance(value, DEEP):
            return self._keep(value, copy.deepcopy(value))
        return self._object(value)

    def _keep(self, value: Any, twin: Any) -> Any:
        self._copies[id(value)] = (value, twin)
        return twin

    def _module(self, module: nn.Module) -> Any:
        if isinstance(module, torch.jit.ScriptModule):
            name = self._names.get(id(module), "")
            where = f"layer {name!r} is" if name else "the model is"
            raise UnsupportedModelError(
                f"{where} TorchScript, which hides its kernels and operations;"
                " measure the module that it was made from, or torch.export's"
            )
        inner = unwrapped(module, self._names.get(id(module), ""))
        if inner is not module:
            return self._keep(module, self(inner))
        twin = self._keep(module, object.__new__(type(module)))
        attributes = dict(module.__dict__)
        attributes["_compiled_call_impl"] = None
        twin.__dict__.update({name: self(value) for name, value in attributes.items()})
        if not self._gradient_hooks:
            for hooks in _HOOKS_ON_GRADIENTS:
                setattr(twin, hooks, OrderedDict())
        return twin

    def _tensor(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise UnsupportedModelError(
                "a parameter of a lazy layer has no shape yet; run the model once before"
            )
        data = tensor.detach()
        if self._dtype is not None and data.is_floating_point() and not data.is_quantized:
            data = data.to(self._dtype)
        alias = data.data_ptr() == tensor.data_ptr() if data.layout == torch.strided else True
        if alias:
            data = data.clone()
        if not isinstance(tensor, nn.Parameter):
            return data
        return nn.Parameter(data, tensor.requires_grad and id(tensor) not in self._own)

    def _container(self, value: Any) -> Any:
        if isinstance(value, tuple):
            items = [self(item) for item in value]
            if all(a is b for a, b in zip(items, value, strict=True)):
                return value
            named = hasattr(value, "_fields")
            return self._keep(value, type(value)(*items) if named else type(value)(items))
        kind = type(value)
        if not value and kind in OFTEN_EMPTY and not getattr(value, "__dict__", None):
            return self._keep(value, kind())  # a module has a dozen, mostly of hooks
        twin = self._keep(value, copy.copy(value))
        if isinstance(value, dict):
            twin.clear()
            for key, item in value.items():
                twin[self(key)] = self(item)
        elif isinstance(value, list):
            twin[:] = [self(item) for item in value]
        else:
            items = [self(item) for item in value]
            twin.clear()
            twin.update(items) if isinstance(value, set) else twin.extend(items)
        self._attributes(value, twin)
        return twin

    def _function(self, function: types.FunctionType) -> Any:
        """Return a function over copies of what it has closed over, or finds by a global name."""
        names = function.__globals__
        mine = {
            name: names[name]
            for name in global_names(function.__code__)
            if id(names.get(name)) in self._names
        }
        if not (function.__closure__ or function.__defaults__ or mine):
            return function
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        scope = (
            {**names, **{name: self(module) for name, module in mine.items()}} if mine else names
        )
        twin = types.FunctionType(
            function.__code__, scope, function.__name__, function.__defaults__, cells
        )
        self._keep(function, twin)
        twin.__dict__.update(function.__dict__)
        twin.__kwdefaults__ = self._of_function(function.__kwdefaults__)
        twin.__defaults__ = self._of_function(function.__defaults__)
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # an empty cell
                cell.cell_contents = self._of_function(original.cell_contents)
        return twin

    def _of_function(self, value: Any) -> Any:
        """Return a copy of what a function refers to, as far as a module may be behind it.

        A closure may have hold of anything, whole data sets: tensors and objects in it stay.
        """
        if id(value) in self._copies:
            return self._copies[id(value)][1]
        if isinstance(value, (nn.Module, types.MethodType, types.FunctionType, functools.partial)):
            return self(value)
        if isinstance(value, (list, dict, set, deque)):
            twin = self._keep(value, copy.copy(value))
            if isinstance(value, (list, dict)):
                for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                    twin[key] = self._of_function(item)
            return twin
        if isinstance(value, tuple) and type(value) is tuple:
            return tuple(self._of_function(item) for item in value)
        return value

    def _object(self, value: Any) -> Any:
        """Return a copy of an object of the user's classes that has something to change."""
        kind = type(value)
        if isinstance(value, Iterator) and type(value).__module__ == "itertools":
            with contextlib.suppress(TypeError), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                return self._keep(value, copy.copy(value))
        if is_foreign(value):
            return value
        try:
            twin = copy.copy(value)
        except Exception:  # an object may refuse to be copied in any way
            return value
        if twin is value or type(twin) is not kind:
            return value
        self._keep(value, twin)
        self._attributes(value, twin)
        return twin

    def _attributes(self, value: Any, twin: Any) -> None:
        """Give a copy of an object copies of what it has."""
        own = getattr(value, "__dict__", {})
        if own:
            vars(twin).update({name: self(item) for name, item in own.items()})
        for _, member in _slots(value):
            with contextlib.suppress(AttributeError):  # an empty one
                member.__set__(twin, self(member.__get__(value, type(value))))


def changed(model: nn.Module, twin: nn.Module, dtype: torch.dtype | None = None) -> bool:
    """Return whether a copy in a precision, once run, has other parameters, or other values."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(model.parameters(), twin.parameters())]  # noqa: B905
    wanted = [dtype if dtype and a.is_floating_point() else a.dtype for a, _ in pairs]
    if any(a.shape != b.shape or b.dtype != to for (a, b), to in zip(pairs, wanted, strict=True)):
        return True
    return bool(torch.stack([(a.to(b.dtype) != b).any() for a, b in pairs]).any())
