"""Facts: what is stored of a study or a trial, each with its key, written and read in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from flatsearch.errors import SpaceError, UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["PREFIX", "UNREADABLE", "Fact", "Place", "Record", "from_numbers", "to_numbers", "write"]

# All keys begin with it: what else a study or a trial holds is somebody else's.
PREFIX = "flatsearch:"
_T = TypeVar("_T")
# What comes of an attribute that is not what was written.
UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError, SpaceError)


class Place(Protocol):
    """Where facts are stored: a study, or a trial, or what stands for it."""

    @property
    def user_attrs(self) -> Mapping[str, Any]:
        """The attributes that are stored."""
        ...

    def set_user_attr(self, key: str, value: Any) -> None:
        """Store an attribute."""
        ...


class Record:
    """What is stored of one study or trial; a subclass has its facts.

    Args:
        owner: Whose record it is, for messages.
        attributes: The user attributes of the study or trial.
    """

    def __init__(self, owner: str, attributes: Mapping[str, Any]) -> None:
        self.owner = owner
        self.attributes = attributes

    def damaged(self, key: str, error: Exception) -> None:
        """Do what is to be done where an attribute cannot be read.

        Args:
            key: The attribute's key.
            error: What went wrong.

        Raises:
            UsageError: Names the owner and the key.
        """
        said = str(error) or type(error).__name__
        if isinstance(error, KeyError):
            said = f"{said} is missing"
        raise UsageError(
            f"the record of {self.owner} is damaged, or of another version of flatsearch:"
            f" {key!r}: {said}"
        ) from None


class Fact(Generic[_T]):
    """A fact of a record, stored as the user attribute of its name with the prefix.

    It is read when it is first looked at, and written by `write`.

    Args:
        default: The value where none is stored, as a function of the record: what an earlier
            version stored in another way, or what is to be assumed. None where not given.
        encode: Makes JSON types of a value.
        decode: The inverse.
        stored: The JSON type that it is stored as; not checked where None.
        public: Further attributes, without the prefix, that show the value to people and to
            optuna-dashboard. They are written beside the fact and never read.
        adds: Whether a mapping that is written is added to what is stored.
        key: The name it is stored by, where that is another one.
    """

    def __init__(
        self,
        default: Callable[[Any], _T] = lambda _: None,  # type: ignore[assignment,return-value]
        *,
        encode: Callable[[Any], Any] = lambda value: value,
        decode: Callable[[Any], _T] = lambda stored: stored,
        stored: type | None = None,
        public: Callable[[Any], Mapping[str, Any]] = lambda _: {},
        adds: bool = False,
        key: str | None = None,
    ) -> None:
        self._default = default
        self._encode, self._decode, self._stored = encode, decode, stored
        self._public, self._adds = public, adds
        self._key = key

    def __set_name__(self, owner: type[Record], name: str) -> None:
        self._name = name
        self.key = PREFIX + (self._key or name)

    @overload
    def __get__(self, record: None, kind: type[Record]) -> Fact[_T]: ...

    @overload
    def __get__(self, record: Record, kind: type[Record]) -> _T: ...

    def __get__(self, record: Record | None, kind: type[Record]) -> Fact[_T] | _T:
        if record is None:
            return self
        try:
            stored = record.attributes.get(self.key)
            value = self._default(record) if stored is None else self._read(stored)
        except UNREADABLE as error:
            record.damaged(self.key, error)
            value = self._default(record)  # of a record that says nothing by now
        record.__dict__[self._name] = value  # found before this method from now on
        return value

    def _read(self, stored: Any) -> _T:
        """Return the value that is stored; a list in memory may still be a tuple."""
        kind = list if isinstance(stored, tuple) else type(stored)
        if self._stored is not None and kind is not self._stored:
            raise TypeError(f"a {self._stored.__name__} is expected, not {stored!r:.80}")
        return self._decode(stored)

    def write(self, place: Place, value: _T) -> None:
        """Store the value."""
        stored = self._encode(value)
        shown = self._public(stored)
        known = place.user_attrs if self._adds or shown else {}
        earlier = known.get(self.key, {}) if self._adds else {}
        place.set_user_attr(self.key, {**earlier, **stored} if earlier else stored)
        for key, text in shown.items():
            if key not in known or known[key] != text:  # every write is a transaction
                place.set_user_attr(key, text)


def write(kind: type[Record], place: Place, facts: Mapping[str, Any]) -> None:
    """Store facts of a study or trial.

    Args:
        kind: The class whose facts they are.
        place: The study or the running trial.
        facts: Values by the facts' names; None, which says nothing, is not stored.

    Raises:
        TypeError: If the class has no such fact.
    """
    known = {name: fact for name, fact in vars(kind).items() if isinstance(fact, Fact)}
    for name, value in facts.items():
        if name not in known:
            raise TypeError(unknown_name("fact", name, tuple(known)))
        if value is not None:
            known[name].write(place, value)


def to_numbers(values: Mapping[str, float]) -> dict[str, float | str]:
    """Return numbers by name as JSON, which has no NaN or infinity: they are stored as text."""
    return {name: _to_json(value) for name, value in values.items()}


def from_numbers(stored: Mapping[str, float | str]) -> dict[str, float]:
    """Return the numbers that `to_numbers` made JSON of."""
    return {name: float(value) for name, value in stored.items()}


def _to_json(value: float) -> float | str:
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else str(value)
