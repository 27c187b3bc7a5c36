"""Whether a model is still what it was: everything that belongs to it but its tensors' values.

Goes the ways that `replica` goes, so that what would be copied is what is compared: modules with
all of their attributes, containers, numbers, hooks and what they close over, objects of the user's
classes. What is shared with copies, not copied, counts as the same while it is the same object.
"""

from __future__ import annotations

import functools
import hashlib
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from flatsearch.flatness.replica import (
    CONSTANTS,
    DEEP,
    OFTEN_EMPTY,
    SIMPLE,
    attributes,
    global_names,
    has_hooks,
    is_foreign,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["State"]

_PLAIN = {Tensor, nn.Parameter, nn.Buffer}
_ITEMS = (dict, list, set, deque, tuple)
_ITEMS_ALONE = {*_ITEMS, OrderedDict}
_OF_PYTHON = 1 << 9  # among the flags of a class
_WITHOUT_MORE = {object, types.SimpleNamespace}


class State:
    """What a model is made of at one moment.

    Attributes:
        tensors: All of its tensors, in an order that a copy's have, too.
        comparable: Whether there is nothing in it whose change would not be seen.

    Args:
        model: Any module; it is only read.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> before = State(model)
        >>> with torch.no_grad():
        ...     _ = model[0].weight.zero_()
        >>> State(model).same(before)
        True
        >>> model[0].stride = (2, 2)
        >>> State(model).same(before)
        False
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: list[Tensor] = []
        self.comparable = True
        self._parts: list[Any] = []
        self._places: dict[tuple[int, bool], int] = {}
        self._alive: list[Any] = []  # so that no other object gets the id of one of these
        self._add(model, shared=False)
        self._versions = [] if not self.comparable else [t._version for t in self.tensors]

    def same(self, other: State) -> bool:
        """Return whether nothing but values of tensors has changed since, or before."""
        comparable = self.comparable and other.comparable
        return comparable and self._parts == other._parts

    def untouched(self, other: State) -> bool:
        """Return whether the values of tensors have not been changed in place either."""
        return self.same(other) and self._versions == other._versions

    def _note(self, value: Any, *parts: object, shared: bool = False) -> bool:
        """Note an object; return whether it is a new one, or has been met only as a shared one."""
        known = self._places.get((id(value), shared))
        if known is not None:
            self._parts.append(known)
            return False
        self._places[id(value), shared] = -1 - len(self._places)
        self._alive.append(value)
        self._parts += parts or (id(value),)
        return True

    def _add(self, value: Any, *, shared: bool) -> None:
        """Add a value.

        Args:
            value: Whatever belongs to a module.
            shared: Whether copies share tensors and objects that are met here: what a function has
                closed over.
        """
        if isinstance(value, CONSTANTS):
            self._parts += (type(value), value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Tensor) and not shared:
            self._tensor(value)
        elif isinstance(value, _ITEMS):
            self._container(value, shared=shared)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        else:
            self._object(value, shared=shared)

    def _object(self, value: Any, *, shared: bool) -> None:
        if isinstance(value, types.MethodType):
            self._parts.append(value.__func__)
            self._add(value.__self__, shared=False)  # copied wherever it is met
        elif isinstance(value, functools.partial):
            if self._note(value):
                self._all((value.func, value.args, value.keywords), shared=False)
        elif isinstance(value, weakref.ref):
            self._note(value, id(value()))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            content = hashlib.blake2b(np.ascontiguousarray(value).tobytes()).digest()
            self._note(value, value.shape, value.dtype.str, content)
        elif isinstance(value, (torch.Generator, Iterator, *DEEP)):
            self.comparable = False
        elif self._note(value, id(value), type(value), shared=shared) and not (
            shared or is_foreign(value)
        ):
            # What is written in C may have more than its attributes.
            kinds = {kind for kind in type(value).__mro__ if not kind.__flags__ & _OF_PYTHON}
            self.comparable = self.comparable and kinds <= _WITHOUT_MORE
            self._named(attributes(value), shared=False)

    def _all(self, values: Iterable[Any], *, shared: bool) -> None:
        for value in values:
            self._add(value, shared=shared)

    def _container(self, value: Any, *, shared: bool) -> None:
        kind = type(value)
        limits = getattr(value, "maxlen", None) if isinstance(value, deque) else None
        if not value and kind in _ITEMS_ALONE:
            self._parts += (kind, limits)
        elif self._note(value, kind, len(value), limits, shared=shared):
            self._items(value, shared=shared)
            if isinstance(value, defaultdict):
                self._add(value.default_factory, shared=True)
            if kind not in _ITEMS_ALONE:
                self._named(attributes(value), shared=shared)

    def _items(self, value: Any, *, shared: bool) -> None:
        if isinstance(value, set) and not all(isinstance(item, CONSTANTS) for item in value):
            self.comparable = False  # a copy's order is another one
        if isinstance(value, dict):
            self._named(value, shared=shared)
        else:
            self._all(value, shared=shared)

    def _named(self, values: Mapping[Any, Any], *, shared: bool) -> None:
        for name, value in values.items():
            for one in (name, value):
                # What nearly all are, without the calls that tell them from others.
                kind = type(one)
                if kind in SIMPLE:
                    self._parts += (kind, one)
                elif kind in OFTEN_EMPTY and not one:
                    self._parts += (kind, None)
                else:
                    self._add(one, shared=shared)

    def _module(self, module: nn.Module) -> None:
        if "_orig_mod" in module._modules:  # what torch.compile wraps
            # With hooks of its own it is refused.
            self.comparable = self.comparable and not has_hooks(module)
            self._add(module._orig_mod, shared=False)
        elif self._note(module):
            self._parts.append(type(module))
            attributes = dict(module.__dict__)
            attributes.pop("_compiled_call_impl", None)
            self._named(attributes, shared=False)

    def _tensor(self, tensor: Tensor) -> None:
        plain = type(tensor) in _PLAIN and tensor.layout == torch.strided
        if not plain or tensor.is_quantized or tensor.is_inference():
            self.comparable = False
        elif self._note(
            tensor,
            type(tensor),
            tensor.dtype,
            tensor.device,
            tensor.shape,
            tensor.stride(),
            tensor.requires_grad,
            tensor.data_ptr(),
        ):
            self.tensors.append(tensor)

    def _function(self, function: types.FunctionType) -> None:
        if not self._note(function):
            return
        names = function.__globals__
        if any(isinstance(names.get(name), nn.Module) for name in global_names(function.__code__)):
            self.comparable = False  # a copy has all of the global names as they were
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # empty
                content = None
            self._add(content, shared=True)
        given = (function.__code__, function.__defaults__, function.__kwdefaults__)
        self._all((*given, vars(function)), shared=True)
