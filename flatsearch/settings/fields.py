"""A setting as a field of a dataclass, with everything that is to be known of it.

The command line with its help, the checks, the configuration file, the record in the study and the
documentation are made from these fields: adding a setting is adding a field.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import MISSING, Field, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from flatsearch.settings.values import Choice, Names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsearch.settings.values import Accepts

__all__ = ["REQUIRED", "Setting", "SettingsRecord", "same", "setting"]

# The default of a setting that has none.
REQUIRED: Any = MISSING
_KEY = "setting"
_Record = TypeVar("_Record", bound="SettingsRecord")


@dataclass(frozen=True)
class Setting:
    """What is to be known of a setting, beside its name.

    Attributes:
        default: The value where none is given; None also means that it may be None.
        accepts: Its other values.
        help: A noun phrase, without its default and the names of a choice.
        more: Sentences that follow them.
        unset: What holds where the value is None.
        group: The heading in the command line's help.
        flag: The option's name on the command line, where it is not the setting's own with dashes.
        metavar: The value's name in the help.
        positional: Whether it is given without an option's name.
        many: Whether it is a tuple, one argument for each.
        hidden: Whether the help is silent about it.
        joined: Whether workers that join the run take it over.
        compared: Whether trials under other values are another study's: their numbers are others.
        environment: The variable of the environment that may hold it, if one may.
    """

    default: Any
    accepts: Accepts
    help: str
    more: str = ""
    unset: str = ""
    group: str = "options"
    flag: str = ""
    metavar: str | None = None
    positional: bool = False
    many: bool = False
    hidden: bool = False
    joined: bool = False
    compared: bool = True
    environment: str = ""

    def check(self, name: str, value: object) -> None:
        """Raise a `SettingsError` if the value is not accepted."""
        if value is None and self.default is None:
            return
        for part in value if self.many and isinstance(value, tuple) else (value,):
            self.accepts.check(name, part)

    def option(self, name: str) -> str:
        """Return what the setting is called on the command line."""
        if self.positional:
            return (self.metavar or name).upper()
        return self.flag or "--" + name.replace("_", "-")

    @property
    def default_text(self) -> str:
        """The default, or what holds without a value; empty if there is nothing to say."""
        if self.default is None:
            return self.unset
        if self.default is REQUIRED or self.default is False or self.many:
            return ""
        if self.default is True:
            return "on"
        if isinstance(self.default, tuple):
            return ",".join(self.default)
        return str(self.default)

    @property
    def explanation(self) -> str:
        """The help, with the names of a choice and the default."""
        names = f": {self.accepts}" if isinstance(self.accepts, Choice) else ""
        default = f" (default: {self.default_text})" if self.default_text else ""
        return f"{self.help}{names}{default}" + (f". {self.more}" if self.more else "")


def setting(default: Any, accepts: Accepts, help: str, **facts: Any) -> Any:  # noqa: A002
    """Return a field for a `SettingsRecord`; the arguments are `Setting`'s."""
    return _field(Setting(default, accepts, help, **facts))


def same(record: type[SettingsRecord], name: str, **changed: Any) -> Any:
    """Return a field for the setting of another record, the same or with other facts."""
    known = record.settings()[name]
    return _field(dataclasses.replace(known, **changed) if changed else known)


def _field(made: Setting) -> Any:
    return dataclasses.field(default=made.default, metadata={_KEY: made})


class SettingsRecord:
    """A frozen dataclass of settings, each of which is checked when it is made.

    Raises:
        SettingsError: If a value is not accepted.
    """

    def __init_subclass__(cls) -> None:
        # Dataclasses keep what they inherit here; their own fields still are attributes.
        fields: dict[str, Field[Any]] = getattr(cls, "__dataclass_fields__", {})
        fields = fields | {n: made for n, made in vars(cls).items() if isinstance(made, Field)}
        lines = [inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:"]
        for name, made in fields.items():
            text = made.metadata[_KEY].explanation
            lines.append(f"    {name}: {text[:1].upper()}{text[1:]}.")
        cls.__doc__ = "\n".join(lines)

    def __post_init__(self) -> None:
        for name, known in self.settings().items():
            value = getattr(self, name)
            if isinstance(value, list):  # JSON and TOML have no tuples
                object.__setattr__(self, name, value := tuple(value))
            elif isinstance(value, str) and isinstance(known.accepts, Names):
                object.__setattr__(self, name, value := known.accepts.parse(value))
            known.check(name, value)

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        """Return what is to be known of each setting, by name."""
        return {f.name: f.metadata[_KEY] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls: type[_Record], stored: Mapping[str, Any]) -> _Record:
        """Return the record of which `to_dict` gave these entries, among others."""
        return cls(**{name: stored[name] for name in cls.settings() if name in stored})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        values = {name: getattr(self, name) for name in self.settings()}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
