"""Convolutions that are written as something else.

A kernel may be multiplied with patches that have been gathered before: by `F.unfold`, by strides,
by an index, by joining shifted slices. It may be taken apart and multiplied with shifted slices, be
multiplied with a Fourier transform, or its products may be scattered by `F.fold`. No convolution is
recorded then, so what the forward pass calls is followed: every tensor that is computed from the
images carries a mark that says what it is, as long as it is only moved.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch._C import _functorch as functorch
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from flatsearch.flatness.watch import Arguments, Named

__all__ = ["ByHand", "Patches", "unwrapped"]

_MARK = "_flatsearch_mark"
_GATHERING = re.compile("unfold|im2col|as_strided")
_SCATTERING = re.compile("fold|col2im")
_CUTTING = re.compile("getitem|narrow|slice|select|roll|index|take|gather")
_SPLITTING = re.compile("getitem|narrow|slice|select|split|chunk|unbind")
_ADDED = "its products are added up by {}"
_PATCHES = "multiplied with patches that {} gives"
_SLICES = "multiplied with shifted slices"
_NO_VALUES = re.compile("_like$|^new_")
_PRODUCT = re.compile("mul|mm|einsum|linear|dot$|inner")


class ByHand(NamedTuple):
    """A product with a parameter that is a convolution.

    Attributes:
        weight: What was multiplied; a parameter, or computed from some.
        node: The operation as recorded; None if it was not.
        how: What makes it a convolution, in words.
    """

    weight: Tensor
    node: Any
    how: str


class _Mark(NamedTuple):
    """How a tensor comes from the images.

    Attributes:
        how: What a product with it is; empty for nothing special.
        base: What it was cut from.
        by: The product with a parameter that it is.
        source: Stands for the patches that it is computed from, and from nothing else.
    """

    how: str = ""
    base: Tensor | None = None
    by: ByHand | None = None
    source: object = None


def unwrapped(value: Any) -> Any:
    """Return the tensor inside of the wrappers of `torch.vmap`, whose graph is recorded."""
    while isinstance(value, Tensor) and functorch.is_functorch_wrapped_tensor(value):
        value = functorch.get_unwrapped(value)
    return value


def _mark(tensor: Tensor) -> _Mark | None:
    """Return how a tensor comes from the images; None if it does not."""
    return getattr(unwrapped(tensor), _MARK, None)


def _whole(product: ByHand) -> Tensor | None:
    """Return the parameter that a product is made with a piece of; None if it is with all of it."""
    whole = product.weight._base
    return None if whole is None or product.weight.numel() == whole.numel() else whole


def _root(x: Tensor) -> Tensor:
    while (mark := _mark(x)) is not None and mark.base is not None:
        x = mark.base
    return x


def _joined(result: Any, marks: list[tuple[Tensor, _Mark]]) -> _Mark:
    """Return the mark of several marked tensors together: patches if they are slices of one.

    Patches combined with one another, a mean taken off for example, are patches.
    """
    source = marks[0][1].source
    if source is not None and all(mark.source is source for _, mark in marks):
        sizes = [part.numel() for part, mark in marks if mark.how]
        kept = isinstance(result, Tensor) and bool(sizes) and result.numel() >= max(sizes)
        return next(m for _, m in marks if m.how) if kept else _Mark(source=source)
    numbers = sum(part.numel() for part, _ in marks)
    if all(mark.base is None for _, mark in marks) or not (
        isinstance(result, Tensor) and result.numel() == numbers
    ):
        return _Mark()
    bases = [part if mark.base is None else mark.base for part, mark in marks]
    if any(base is not bases[0] for base in bases):  # each has been padded on its own
        bases = [_root(base) for base in bases]
    # A map that is padded with a piece of its own is hardly larger.
    overlapping = all(base is bases[0] for base in bases) and numbers >= 1.5 * bases[0].numel()
    return _Mark(_SLICES) if overlapping else _Mark()


class Patches:
    """Follows the images through a forward pass.

    Attributes:
        found: The convolutions by hand.
    """

    def __init__(self) -> None:
        self.found: list[ByHand] = []
        self._met: dict[tuple[int, int], tuple[Any, ...]] = {}

    def begin(self, x: Tensor) -> None:
        """Mark the images."""
        setattr(x, _MARK, _Mark())

    def see(self, function: Any, args: Arguments, kwargs: Named, result: Any) -> None:
        """Follow one call."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marks = [(one, mark) for one in given if (mark := _mark(one)) is not None]
        if not marks:
            return
        name = getattr(function, "__name__", "")
        if _NO_VALUES.search(name):
            return
        if name == "__setitem__":
            after, result = self._written(args[0], *marks[-1]), args[0]
        elif weights := [one for one in given if one.requires_grad and _mark(one) is None]:
            node = getattr(unwrapped(result), "grad_fn", None)
            by = ByHand(max(weights, key=Tensor.numel), node, "")
            after = self._combined(name, given, by, marks)
        elif len(marks) == 1 or name == "add_":
            after = self._moved(name, *marks[-1], result)
        else:
            after = _joined(result, marks)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                setattr(unwrapped(leaf), _MARK, after)

    def _combined(
        self, name: str, given: list[Tensor], by: ByHand, marks: list[tuple[Tensor, _Mark]]
    ) -> _Mark:
        """Return the mark of what is made of marked tensors and parameters."""
        if _PRODUCT.search(name):
            for x, mark in marks:
                if mark.how:
                    self.found.append(by._replace(how=mark.how))
                elif mark.base is not None and self._overlap(_whole(by), mark.base, x.numel()):
                    self.found.append(by._replace(how=_SLICES))
            return _Mark(by=by)
        if "conv" in name and given[0] is by.weight and given[1] is marks[0][0]:
            self.found.append(by._replace(how="convolved with what depends on the images"))
        (_, mark), *others = marks
        same = "add" in name or (mark.how and "norm" in name)
        return mark if same and not others else _Mark()

    def _written(self, whole: Tensor, x: Tensor, mark: _Mark) -> _Mark:
        """Return the mark of what a marked tensor is written into."""
        if mark.by is not None and self._overlap(_whole(mark.by), whole, x.numel()):
            self.found.append(mark.by._replace(how=_ADDED.format("slices")))
        filled = mark.base is not None and self._overlap(whole, mark.base, x.numel())
        return _Mark(_SLICES) if filled else _Mark()

    def _overlap(self, whole: Tensor | None, base: Tensor, more: int) -> bool:
        """Return whether the slices of a tensor that have met another have more numbers than it."""
        if whole is None:
            return False
        *_, before = self._met.get((id(whole), id(base)), (0,))
        self._met[id(whole), id(base)] = whole, base, before + more  # which keeps the ids in use
        return before > 0 and before + more > base.numel()

    def _moved(self, name: str, x: Tensor, mark: _Mark, result: Any) -> _Mark:
        """Return the mark of what one marked tensor is made into."""
        if _GATHERING.search(name):
            return _Mark(_PATCHES.format(name.strip("_")), source=object())
        if mark.by is not None and _SCATTERING.search(name):
            self.found.append(mark.by._replace(how=_ADDED.format(name)))
            return _Mark()
        if not isinstance(result, Tensor):
            return mark if _SPLITTING.search(name) else _Mark()
        if "fft" in name:
            return _Mark("multiplied with a Fourier transform") if result.is_complex() else _Mark()
        if _CUTTING.search(name):
            if result.numel() > x.numel():
                return _Mark(_PATCHES.format(name.strip("_")))
            cut = mark.base is not None and mark.base.numel() >= x.numel()
            return mark if mark.how or cut else _Mark(base=x)
        if name == "pad":
            return _Mark(base=x)
        kept = result.numel() >= x.numel() and (mark.how or "norm" not in name)
        real = x.is_complex() and not result.is_complex()
        return mark if kept and not real else _Mark(source=mark.source)
