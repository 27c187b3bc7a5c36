"""An architecture in a few words, whatever space it is of."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = ["short_form", "varied"]

# What is said without its name, since it is known by its kind.
_WIDTHS = "widths"
_DEPTHS = ("blocks", "depths", "layers")
_FIRST = ("block", *_DEPTHS, _WIDTHS)
_SHORT = {"pre_activation": "pre-act", "squeeze_excitation": "SE"}


def short_form(values: Mapping[str, Any], names: Collection[str] | None = None) -> str:
    """Return values by name in a few words.

    Widths, and what is a word itself, stand without a name; what is not so is not mentioned.

    Args:
        values: Of an architecture, a recipe, or any parameters.
        names: Those that are said; all where None.

    Returns:
        One line, with a centred dot between the values; empty where there is nothing to say.

    Example:
        >>> short_form({"activation": "relu", "block": "basic", "blocks": (3, 3), "kernel": 5,
        ...             "pre_activation": True, "residual": False, "widths": (24, 48)})
        'basic 3-3 · 24-48 · relu · kernel 5 · pre-act'
        >>> short_form({"widths": [56] * 4, "lr": 0.012345}, {"widths"})
        '4x56'
    """
    shown = {k: v for k, v in values.items() if names is None or k in names}
    block = shown.get("block")
    depth = next((name for name in _DEPTHS if name in shown), None)
    parts = []
    if isinstance(block, str) and depth is not None:
        parts.append(f"{block} {_value(shown[depth])}")
        shown = {k: v for k, v in shown.items() if k not in {"block", depth}}
    order = [*(k for k in _FIRST if k in shown), *(k for k in shown if k not in _FIRST)]
    parts += [_part(name, shown[name]) for name in order]
    return " · ".join(filter(None, parts))


def varied(all_values: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the names whose values are not the same in all; all names where none differs.

    Example:
        >>> sorted(varied([{"kernel": 3, "width": 8}, {"kernel": 3, "width": 9}]))
        ['width']
    """
    known = list(all_values)
    names = {name for values in known for name in values}
    seen = {name: {repr(values.get(name)) for values in known} for name in names}
    return frozenset(name for name in names if len(seen[name]) > 1) or frozenset(names)


def _part(name: str, value: Any) -> str:
    if value is None or value is False or value == ():
        return ""
    label = _SHORT.get(name, name.replace("_", " "))
    if value is True:
        return label
    if name == _WIDTHS or isinstance(value, str):
        return _value(value)
    return f"{label} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        runs = [(item, len(list(run))) for item, run in groupby(map(_value, value))]
        return "-".join(f"{n}x{item}" if n > 3 else "-".join([item] * n) for item, n in runs)
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("_", " ")
