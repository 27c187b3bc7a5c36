"""Numbers on their way to and from JSON."""

from __future__ import annotations

import math


def to_json(value: float) -> float | str:
    """JSON has no NaN or infinity; they are stored as text."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def is_number(value: object) -> bool:
    """Return whether a value is a number and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
