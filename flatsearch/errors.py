"""The errors flatsearch raises on purpose; everything else that escapes is a bug."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "COUNT",
    "FRACTION",
    "IMAGE_SIZE",
    "SEED",
    "DataError",
    "DivergedError",
    "FlatsearchError",
    "NonFiniteError",
    "OutOfTimeError",
    "Range",
    "SettingsError",
    "SpaceError",
    "StorageError",
    "UnsupportedModelError",
    "UsageError",
    "hide_passwords",
    "shown_storage",
    "unknown_name",
]

# Longer lists of known names are cut down to the nearest ones.
_MOST_NAMES = 24


_PARAMETER = r"([?&](?:password|passwd|pwd|sslpassword)=)"
# In the middle of a text a password ends at a space or a quote; of a URL alone at its last @, or &.
_IN_TEXT = (
    re.compile(r"(://[^\s:/@]{0,200}:)\S{1,500}(@)"),
    re.compile(_PARAMETER + r"[^\s&'\"]+()", re.IGNORECASE),
)
_ALONE = (
    re.compile(r"(://[^:/@]*:).*(@)", re.DOTALL),
    re.compile(_PARAMETER + r"[^&]+()", re.IGNORECASE),
)
_URL = re.compile(r"(?:--[\w-]+=)?[\w+.-]+://")
# What was to be a URL, and no path of Windows.
_NO_URL = re.compile(r"[\w.+-]+:(?!//|\\).*@([^@]*)", re.DOTALL)


def hide_passwords(text: str) -> str:
    """Return a text with three stars in the place of every password in a URL.

    Example:
        >>> hide_passwords("postgresql://me:s3cr@t@db/studies?sslmode=require&password=x")
        'postgresql://me:***@db/studies?sslmode=require&password=***'
    """
    for password in _ALONE if _URL.match(text) else _IN_TEXT:
        text = password.sub(r"\1***\2", text)
    return text


def shown_storage(given: str) -> str:
    """Return what was given for a storage, without a password; it may be no URL.

    Example:
        >>> shown_storage("mysql:/me:secret@db/studies"), shown_storage("./me@work/study.log")
        ('***@db/studies', './me@work/study.log')
    """
    if no_url := _NO_URL.fullmatch(given):
        return f"***@{no_url[1]}"
    return hide_passwords(given)


class FlatsearchError(Exception):
    """Base class. The message is one line that says what was given and what is accepted.

    Args:
        message: The line; passwords in URLs are hidden.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(hide_passwords(message))


class UsageError(FlatsearchError):
    """What was asked for cannot be done as asked; the command line exits with 2."""


class SettingsError(UsageError):
    """A run setting is out of range, or disagrees with the study it should resume."""


class SpaceError(UsageError):
    """A search space is unknown, registered twice, or does not keep its contract."""


class DataError(UsageError):
    """A data set is unknown, missing, empty or malformed."""


class StorageError(UsageError):
    """A study storage cannot be reached, or holds no such study."""


class UnsupportedModelError(UsageError):
    """The closed form does not cover this model; names the layer and the reason."""


class NonFiniteError(FlatsearchError):
    """The model gave NaN or infinite logits where a finite number is needed."""


class OutOfTimeError(FlatsearchError):
    """The time for a run is up, in the middle of a trial."""


class DivergedError(FlatsearchError):
    """Training left the finite numbers; names the epoch."""


@dataclass(frozen=True)
class Range:
    """The numbers that an argument or a setting accepts.

    Attributes:
        least: The smallest number accepted.
        above: The number that must be exceeded.
        below: The number that must not be reached.
        whole: Whether only whole numbers are accepted.
    """

    least: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False

    def __str__(self) -> str:
        bounds = (("at least", self.least), ("above", self.above), ("below", self.below))
        return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)

    def describe(self, value: object) -> str:
        """Return what a message calls the numbers that are accepted, where this was given."""
        if self.whole:
            return "a whole number"
        return "a number" if isinstance(value, str) else "a finite Python number"

    def check(self, name: str, value: object) -> None:
        """Refuse what is no such number, given for an argument or a setting of this name.

        Raises:
            SettingsError: If it is not accepted.

        Example:
            >>> Range(least=1, whole=True).check("epochs", 0)
            Traceback (most recent call last):
            flatsearch.errors.SettingsError: `epochs` must be at least 1 but got 0
        """
        types = (int,) if self.whole else (int, float)
        if not isinstance(value, types) or isinstance(value, bool) or not math.isfinite(value):
            raise SettingsError(f"`{name}` must be {self.describe(value)} but got {value!r}")
        if (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        ):
            raise SettingsError(f"`{name}` must be {self} but got {value}")

    def parse(self, text: str) -> object:
        """Return the number that a text writes; the text itself, for `check`, if it writes none.

        Example:
            >>> Range().parse("1e-3"), Range(whole=True).parse("8"), Range().parse("ten")
            (0.001, 8, 'ten')
        """
        try:
            return int(text) if self.whole else float(text)
        except ValueError:
            return text


# Numbers that the settings of a run and the functions they are passed on to both accept.
COUNT = Range(least=1, whole=True)
FRACTION = Range(above=0, below=1)
IMAGE_SIZE = Range(least=4, whole=True)
SEED = Range(least=0, below=2**32, whole=True)


def unknown_name(kind: str, given: str, known: Iterable[str], *, also: str = "") -> str:
    """Return the one-line message for a name that is not known.

    It lists the known names, with other accepted forms, and suggests one where one is near.

    Example:
        >>> unknown_name("data set", "cifar", ["digits", "cifar10"])
        "unknown data set 'cifar' (did you mean 'cifar10'?); known: cifar10, digits"
    """
    names = sorted(known)
    near = get_close_matches(given, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    if len(names) > _MOST_NAMES:
        names = get_close_matches(given, names, n=_MOST_NAMES) or names[:_MOST_NAMES]
        names.append("...")
    listing = ", ".join(names) or "none"
    return f"unknown {kind} {given!r}{hint}; known: {listing}{also}"
