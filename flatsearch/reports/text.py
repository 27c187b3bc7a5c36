"""Numbers, values and settings as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsearch.record.trial import TrialRecord
    from flatsearch.spaces.space import Value

__all__ = ["describe", "duration", "in_words", "number", "setting", "value"]


def number(count: float) -> str:
    """Return a count with a unit.

    Example:
        >>> number(26734), number(12), number(1_500_000)
        ('26.7k', '12', '1.5M')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def value(name: str, x: float) -> str:
    """Return a metric as it is read: accuracies with four digits, counts with a unit.

    Example:
        >>> value("accuracy", 0.98765), value("flatness", 3.21987), value("parameters", 1234)
        ('0.9877', '3.22', '1.23k')
    """
    if name == "accuracy":
        return f"{x:.4f}"
    if name in {"latency", "batch_latency"}:
        return f"{x:.3g} ms"
    return number(x) if name in {"parameters", "flops", "memory"} else f"{x:.3g}"


def duration(seconds: float) -> str:
    """Return a time with a unit, with two digits.

    Example:
        >>> [duration(seconds) for seconds in (0.034, 4.7, 38, 754, 5400, 200_000)]
        ['0.034 s', '4.7 s', '38 s', '13 min', '90 min', '56 h']
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            digits = 0 if seconds >= 9.5 * size else 1
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def describe(trial: TrialRecord) -> str:
    """Return an architecture and its recipe in a few words."""
    if trial.architecture is None:
        return ", ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items()
        )
    rounded = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in trial.recipe.items()}
    return in_words({**trial.architecture.values, **rounded})


def in_words(values: Mapping[str, Value]) -> str:
    """Return an architecture's values on one line.

    Example:
        >>> in_words({"kernel": 3, "widths": (8, 16)})
        'kernel=3 widths=8-16'
    """
    return " ".join(
        f"{key}={'-'.join(map(str, item)) if isinstance(item, (list, tuple)) else item}"
        for key, item in values.items()
    )


def setting(given: object) -> str:
    """Return a setting's value.

    Example:
        >>> setting(["accuracy", "flatness"]), setting(8)
        ('accuracy, flatness', '8')
    """
    return ", ".join(map(str, given)) if isinstance(given, list) else str(given)
