"""What a setting accepts, beside the numbers of `flatsearch.errors.Range`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flatsearch.errors import Range, SettingsError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Accepts", "Choice", "Name", "Names", "Quantity", "Switch", "Text"]


class Accepts(Protocol):
    """The values of a setting, in Python and as a text."""

    def check(self, name: str, value: object) -> None:
        """Raise a `SettingsError` that names the setting where the value is not accepted."""

    def parse(self, text: str) -> object:
        """Return the value that a text stands for; the text itself if it stands for none."""
        return text


class Text(Accepts):
    """Any text."""

    def __str__(self) -> str:
        return "text"

    def check(self, name: str, value: object) -> None:  # noqa: D102 - see Accepts
        if not isinstance(value, str):
            raise SettingsError(f"`{name}` must be a text but got {value!r}")


class Name(Text):
    """A text that can be shown and typed, and that every database takes."""

    _LONGEST = 200

    def check(self, name: str, value: object) -> None:  # noqa: D102
        super().check(name, value)
        assert isinstance(value, str)  # noqa: S101 - for the type checker
        if not 0 < len(value) <= self._LONGEST or not value.isprintable():
            raise SettingsError(
                f"`{name}` must be 1 to {self._LONGEST} printable characters but got {value!r:.60}"
            )


class Switch(Accepts):
    """On or off."""

    def __str__(self) -> str:
        return "true or false"

    def check(self, name: str, value: object) -> None:  # noqa: D102
        if not isinstance(value, bool):
            raise SettingsError(f"`{name}` must be True or False but got {value!r}")


@dataclass(frozen=True)
class Choice(Accepts):
    """One of several names.

    Attributes:
        kind: What a name is called, in a message about one that is not known.
        names: The names that are accepted.
    """

    kind: str
    names: Iterable[str]

    def __str__(self) -> str:
        return ", ".join(self.names)

    def check(self, name: str, value: object) -> None:  # noqa: ARG002, D102 - the kind says it
        if value not in tuple(self.names):
            raise SettingsError(unknown_name(self.kind, str(value), self.names))


@dataclass(frozen=True)
class Names(Choice):
    """Several different names, separated by commas in a text.

    Attributes:
        least: How many there must be.

    Example:
        >>> Names("colour", ("red", "green")).parse("red, green")
        ('red', 'green')
    """

    least: int = 0

    def check(self, name: str, value: object) -> None:  # noqa: D102
        if not isinstance(value, tuple) or not all(isinstance(part, str) for part in value):
            raise SettingsError(f"`{name}` must be several names but got {value!r}")
        if len(value) < self.least:
            raise SettingsError(f"`{name}` must name at least {self.least} of: {self}")
        for part in value:
            super().check(name, part)
        if len(set(value)) < len(value):
            raise SettingsError(f"`{name}` has a name twice: {', '.join(value)}")

    def parse(self, text: str) -> object:  # noqa: D102
        return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True)
class Quantity(Range):
    """A positive number whose text has a unit.

    Attributes:
        units: The number that a unit stands for; that of "" where none is written.
        like: What a text looks like, for messages.
        integral: Whether a text stands for a whole number.

    Example:
        >>> time = Quantity(units={"us": 1e-3, "": 1.0, "ms": 1.0}, like="a time such as 2ms")
        >>> time.parse("500us"), time.parse("3"), time.parse("2 days")
        (0.5, 3.0, '2 days')
    """

    above: float | None = 0
    units: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})
    like: str = "a number"
    integral: bool = False

    def describe(self, value: object) -> str:  # noqa: D102
        return self.like if isinstance(value, str) else super().describe(value)

    def parse(self, text: str) -> object:  # noqa: D102
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", text)
        if match is None or match[2] not in self.units:
            return text
        number = float(match[1]) * self.units[match[2]]
        return round(number) if self.integral else number
