"""A command: its options are records of settings, from which its parser and its help are made."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

from flatsearch.settings import REQUIRED, Setting, SettingsRecord
from flatsearch.settings.values import Choice, Names, Switch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Command", "Parser", "WrongUseError", "in_options"]


class WrongUseError(Exception):
    """The command line is wrong: which program says so, and why."""


class Parser(argparse.ArgumentParser):
    """Reports wrong use as one line, which says where help is."""

    def error(self, message: str) -> NoReturn:
        """Raise the line as an error.

        Raises:
            WrongUseError: Always.
        """
        raise WrongUseError(f"{self.prog}: error: ", f"{message} (see {self.prog} --help)")

    def refuse_unknown(self, arguments: Iterable[str]) -> None:
        """End with an error if there are arguments that the parser did not understand."""
        for argument in arguments:
            if not argument.startswith("-"):
                self.error(f"one argument too many: {argument!r}")
            given = argument.lstrip("-").partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = get_close_matches(given, [flag.lstrip("-") for flag in flags], n=1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            self.error(f"unknown option {argument.partition('=')[0]}{hint}")


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        name: The word that calls it.
        help: What it does, in a phrase.
        description: What it does, in sentences.
        records: What it is told: each is made from the arguments.
        call: Takes a record of each kind; returns the exit code if it is not 0.
        kept: What an interrupted command leaves behind.
    """

    name: str
    help: str
    description: str
    records: tuple[type[SettingsRecord], ...]
    call: Callable[..., int | None]
    kept: str = "finished trials are kept"

    @property
    def settings(self) -> dict[str, Setting]:
        """All that the command is told, by name."""
        return {n: known for record in self.records for n, known in record.settings().items()}

    def add_to(self, commands: Any, *, complete: bool = False) -> Parser:
        """Return the command's parser among `commands`; it gives what was given, as texts.

        Only if shell completion is made from it, it is told what a value can be: argparse would
        not accept several names, or refuse an unknown one in our words.
        """
        usage = [f"flatsearch {self.name}"]
        for name, known in self.settings.items():
            word = known.option(name)
            if known.default is REQUIRED:
                usage.append(f"{word} ..." if known.many else word)
                usage += [] if known.positional else [(known.metavar or name).upper()]
            elif known.positional:
                usage.append(f"[{word}]")
        parser: Parser = commands.add_parser(
            self.name,
            help=self.help,
            description=self.description,
            usage=" ".join([*usage, "[options]"]),
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        groups: dict[str, Any] = {"options": parser}
        for name, known in self.settings.items():
            if known.group not in groups:
                groups[known.group] = parser.add_argument_group(known.group)
            action = _add(groups[known.group], name, known)
            if complete:
                _complete(action, known)
        return parser

    def arguments(self, **values: Any) -> list[str]:
        """Return the command line that gives these values, of which None is not given."""
        words = [self.name]
        for name, value in values.items():
            known = self.settings[name]
            if isinstance(value, bool):
                words.append(known.option(name) if value else _no(known.option(name)))
            elif value is not None:
                words += [str(value)] if known.positional else [known.option(name), str(value)]
        return words

    def in_options(self, message: str) -> str:
        """Return a message with options in the place of the arguments' names in backquotes."""
        return in_options(message, self.settings)


def in_options(message: str, settings: Mapping[str, Setting]) -> str:
    """Return a message with options in the place of the settings' names in backquotes."""
    options = {name: known.option(name) for name, known in settings.items()}
    return re.sub(r"`(\w+)`", lambda match: options.get(match[1], match[0]), message)


def _add(group: Any, name: str, known: Setting) -> argparse.Action:
    """Add one argument."""
    told = known.explanation.replace("%", "%%")
    facts: dict[str, Any] = {"help": argparse.SUPPRESS if known.hidden else told}
    if known.positional:
        facts["nargs"] = "+" if known.many else None if known.default is REQUIRED else "?"
        return group.add_argument(name, metavar=known.metavar or name.upper(), **facts)
    option = known.option(name)
    if not isinstance(known.accepts, Switch):
        return group.add_argument(option, dest=name, metavar=known.metavar, **facts)
    if known.default:
        return group.add_argument(option, dest=name, action=argparse.BooleanOptionalAction, **facts)
    # A configuration file may have switched it on.
    off = {"action": "store_false", "dest": name, "help": argparse.SUPPRESS}
    group.add_argument(_no(option), **off)
    return group.add_argument(option, dest=name, action="store_true", **facts)


def _no(option: str) -> str:
    """Return the option that switches another one off."""
    return f"--no-{option[2:]}"


def _complete(action: argparse.Action, known: Setting) -> None:
    """Tell shtab what a value can be."""
    import shtab

    if isinstance(known.accepts, Choice) and not isinstance(known.accepts, Names):
        action.choices = tuple(known.accepts.names)
    places = {"FILE": shtab.FILE, "IMAGE": shtab.FILE, "DIR": shtab.DIRECTORY}
    if known.metavar in places:
        action.complete = places[known.metavar]  # type: ignore[attr-defined]
