"""Numbers, values and settings as text."""

from __future__ import annotations

__all__ = ["count_of", "duration", "number", "setting", "value"]


def count_of(count: int, what: str) -> str:
    """Return a count of things.

    Example:
        >>> count_of(1, "trial"), count_of(2, "trial")
        ('1 trial', '2 trials')
    """
    return f"{count:,} {what}" + ("" if count == 1 else "s")


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
    """Return a metric as it is read: accuracies in thousandths, counts and times with a unit.

    Example:
        >>> value("accuracy", 0.98765), value("flatness", 3.21987), value("parameters", 1234)
        ('0.988', '3.22', '1.23k')
        >>> value("memory", 20480), value("noise_loss", 0.0001234)
        ('20.5 kB', '0.000123')
    """
    if name.endswith("accuracy"):
        return f"{x:.3f}"
    if name.endswith("memory"):
        count = number(x)
        return f"{count} B" if count[-1].isdigit() else f"{count[:-1]} {count[-1]}B"
    if name.endswith("latency"):
        return f"{x:.3g} ms"
    if name in {"parameters", "flops"}:
        return number(x)
    return f"{x:.0f}" if 1000 <= abs(x) < 1e6 else f"{x:.3g}"


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


def setting(given: object) -> str:
    """Return a setting's value.

    Example:
        >>> setting(["accuracy", "flatness"]), setting(8)
        ('accuracy, flatness', '8')
    """
    return ", ".join(map(str, given)) if isinstance(given, list) else str(given)
