"""What holds, and where it is from: the command line, a configuration file, the defaults."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.errors import (
    SettingsError,
    UsageError,
    hide_passwords,
    shown_storage,
    unknown_name,
)
from flatsearch.settings import REQUIRED, RunOptions, RunSettings, Setting
from flatsearch.settings.values import Names, Quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsearch.cli.command import Command

__all__ = ["ConfigFile", "Held", "configurable", "in_toml", "read_config", "resolve"]

_FILE = "pyproject.toml"
_KNOWN = {**RunSettings.settings(), **RunOptions.settings()}


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file.

    Attributes:
        name: The file's name, for messages.
        keys: The keys as they are written, by the names of the settings.
        values: The values, by the names of the settings.
    """

    name: str = _FILE
    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """The value of a setting.

    Attributes:
        value: The value; `REQUIRED` if there is none.
        source: "command line", a variable of the environment, a file's name, or "default".
        told: What holds where the value is None.
    """

    value: Any
    source: str
    told: str


def configurable(command: Command) -> set[str]:
    """Return the names of a command's settings that are the very ones of a run."""
    return {name for name, known in command.settings.items() if _KNOWN.get(name) is known}


def read_config(path: str | None) -> ConfigFile:
    """Return a configuration file's table `tool.flatsearch`, or all of it without a table `tool`.

    Where no path is given, it is the working folder's pyproject.toml, if there is one.

    Raises:
        UsageError: If it cannot be read, or has a key that is no setting.
    """
    file = Path(path or _FILE)
    if path is None and not file.exists():
        return ConfigFile()
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table: Any = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{file} is not a TOML file: {error}") from None
    if path is None or "tool" in table:
        for key in ("tool", "flatsearch"):
            table = table.get(key, {})
            if not isinstance(table, dict):
                raise UsageError(f"{file}: {key!r} must be a table but is {table!r}")
    keys: dict[str, str] = {}
    for key in table:
        name = key.replace("-", "_")
        if name not in _KNOWN:
            raise UsageError(f"{file}: {unknown_name('key', key, _KNOWN)}")
        if name in keys:
            raise UsageError(f"{file}: {keys[name]!r} and {key!r} are the same key")
        keys[name] = key
    return ConfigFile(str(file), keys, {name: table[key] for name, key in keys.items()})


def resolve(command: Command, given: Mapping[str, Any], file: ConfigFile) -> dict[str, Held]:
    """Return what holds for a command, by the names of its settings.

    What is given on the command line, as texts, wins over the configuration file.

    Raises:
        SettingsError: If a value on the command line is not accepted.
        UsageError: If one of the file is not; names file and key.
    """
    held, of_the_run = {}, configurable(command)
    for name, known in command.settings.items():
        value, source = known.default, "default"
        if name in given:
            value, source = _parsed(known, given[name]), "command line"
            known.check(name, value)
        elif known.environment and (text := os.environ.get(known.environment)):
            value, source = known.accepts.parse(text), known.environment
            known.check(name, value)
        elif name in file.values and name in of_the_run:
            value, source = _from_file(name, known, file), file.name
        held[name] = Held(value, source, known.unset)
    return held


def _parsed(known: Setting, given: Any) -> Any:
    if isinstance(given, list):
        return tuple(known.accepts.parse(text) for text in given)
    return known.accepts.parse(given) if isinstance(given, str) else given


def _from_file(name: str, known: Setting, file: ConfigFile) -> Any:
    value = file.values[name]
    if isinstance(value, list):
        value = tuple(value)
    # TOML has numbers and lists of its own; these may also be written as on the command line.
    elif isinstance(value, str) and isinstance(known.accepts, (Names, Quantity)):
        value = known.accepts.parse(value)
    try:
        known.check(name, value)
    except SettingsError as error:
        key, said = repr(file.keys[name]), str(error)
        said = said.replace(f"`{name}`", key) if f"`{name}`" in said else f"{key}: {said}"
        raise UsageError(f"{file.name}: {said}") from None
    return value


def in_toml(held: Mapping[str, Held]) -> str:
    """Return what holds as a table for a configuration file, with the sources as comments.

    Example:
        >>> print(in_toml({"epochs": Held(4, "command line", ""), "study": Held(None, "", "S-D")}))
        [tool.flatsearch]
        epochs = 4                                   # command line
        # study: S-D
    """
    lines = ["[tool.flatsearch]"]
    for name, entry in held.items():
        if entry.value is REQUIRED:
            lines.append(f"# {name}: must be given")
        elif entry.value is None:
            lines.append(f"# {name}: {entry.told or 'none'}")
        else:
            value = shown_storage(entry.value) if name == "storage" else entry.value
            shown = hide_passwords(json.dumps(value, ensure_ascii=False))
            line = f"{name} = {shown}"
            lines.append(f"{line:44} # {entry.source}")
    return "\n".join(lines)
