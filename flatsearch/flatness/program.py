"""What a forward pass calls: the operations in order, with their arguments and who gets what.

Two passes with the same program are the same function of the weights, buffers and images, so that
what has been proved of the one holds for the other. Numbers that a model takes out of tensors, to
decide on them or to compute with them in Python, are part of its program.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatsearch.flatness.replica import CONSTANTS
from flatsearch.flatness.watch import Calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flatsearch.flatness.watch import Arguments, Named

__all__ = ["Program"]

_PLACE = "_flatsearch_place"
_RUNS = itertools.count(1)
# What is written through it leaves no trace.
_DATA = (Tensor.data.__get__, Tensor.data.__set__)  # type: ignore[attr-defined]
_VALUES = (
    *CONSTANTS, torch.device, torch.layout, torch.memory_format, slice, range, complex, type(...),
)  # fmt: skip


class Program(Calls):
    """Follows a forward pass.

    Attributes:
        steps: What was called; to be compared with that of another pass.
        followed: Whether all of it can be compared: no argument or result that is of an unknown
            kind, no tensor that comes from nowhere.

    Args:
        own: The tensors that belong to the model, in a fixed order.
        x: The tensor that the pass begins with.
    """

    def __init__(self, own: Iterable[Tensor], x: Tensor) -> None:
        super().__init__()
        self.followed = True
        self._own = {id(tensor): -1 - place for place, tensor in enumerate(own)}
        self._count = 0
        self._run = next(_RUNS)
        self._device = x.device.type
        first = (x.dtype, x.device, tuple(x.shape), x.stride(), self._number(x))
        self.steps: list[Any] = [first]

    def call(self, function: Any, args: Arguments, kwargs: Named) -> Any:
        """Return what the function returns."""
        given = self._read(args), self._read(kwargs)
        if function in _DATA and id(args[0]) in self._own:
            self.followed = False
        result = super().call(function, args, kwargs)
        modes = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled(self._device),
        )
        self.steps.append((function, given, modes, self._written(result)))
        return result

    def _number(self, tensor: Tensor) -> int:
        self._count += 1
        setattr(tensor, _PLACE, (self._run, self._count))
        return self._count

    def _place(self, tensor: Tensor) -> int | None:
        own = self._own.get(id(tensor))
        if own is not None:
            return own
        run, place = getattr(tensor, _PLACE, (0, 0))
        return place if run == self._run else None

    def _read(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            place = self._place(value)
            self.followed = self.followed and place is not None
            return place
        return self._plain(value, self._read)

    def _written(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_nested:  # which has no shape
            self.followed = False
            return None
        if isinstance(value, Tensor):
            known = self._place(value)
            place = self._number(value) if known is None else known
            return place, value.requires_grad, value.dtype, tuple(value.shape)
        return self._plain(value, self._written)

    def _plain(self, value: Any, inside: Callable[[Any], Any]) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value), [inside(item) for item in value]
        if isinstance(value, Mapping):
            return [(name, inside(item)) for name, item in value.items()]
        if not isinstance(value, _VALUES):
            self.followed = False
            return None
        return type(value), value
