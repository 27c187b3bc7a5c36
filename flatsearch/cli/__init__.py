"""The command line: parse, call, print. Heavy modules are imported where they are used."""

from __future__ import annotations

import logging
import os
import sys
from json import dumps
from typing import TYPE_CHECKING, Any

from flatsearch.cli import (
    compare,
    completion,
    dashboard,
    demo,
    export,
    measure,
    predict,
    report,
    run,
    serve_storage,
    spaces,
    train,
    worker,
)
from flatsearch.cli.command import Command, Parser, WrongUseError
from flatsearch.cli.config import ConfigFile, configurable, in_toml, read_config, resolve
from flatsearch.errors import (
    FlatsearchError,
    SettingsError,
    UsageError,
    hide_passwords,
    unknown_name,
)
from flatsearch.settings import REQUIRED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.cli.config import Held

__all__ = ["COMMANDS", "main", "make_parser"]

_MODULES = (
    run,
    worker,
    serve_storage,
    spaces,
    report,
    dashboard,
    measure,
    compare,
    train,
    export,
    predict,
    demo,
    completion,
)
COMMANDS: dict[str, Command] = {module.COMMAND.name: module.COMMAND for module in _MODULES}


def make_parser(*, complete: bool = False) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser, and that of each command; with values to complete, if so asked."""
    parser = Parser(
        prog="flatsearch",
        description="Architecture search for image classifiers with Optuna and an exact"
        " relative-flatness measure.",
        epilog="Options of a run can be kept in a configuration file: see 'flatsearch run --help'."
        " Shells complete commands and options: see 'flatsearch completion --help'.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {}
    for command in COMMANDS.values():
        parsers[command.name] = own = command.add_to(commands, complete=complete)
        own.add_argument("--debug", action="store_true", help="show tracebacks")
        if configurable(command):
            group = own.add_argument_group("configuration file")
            group.add_argument(
                "--config",
                metavar="FILE",
                help="a TOML file with settings, by their names (default: [tool.flatsearch] of the"
                " working folder's pyproject.toml); the command line wins",
            )
            group.add_argument(
                "--show-config",
                action="store_true",
                help="print what holds and where it is from, as such a file, and run nothing",
            )
    return parser, parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of a command: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    # Read when PyTorch is loaded. Where another program uses one of the cores, threads that wait
    # by computing make everything ten times slower; sleeping costs a few percent where none does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _main(argv)
    except SystemExit as stop:  # argparse exits by itself for --help
        return int(stop.code or 0)
    except WrongUseError as error:
        who, message = error.args
        _fail(who, message, UsageError.__name__, json="--json" in argv)
        return 2


def _fail(who: str, message: str, kind: str, *, json: bool) -> None:
    """Say on standard error what is wrong, and where results are JSON also there."""
    text = hide_passwords(" ".join(message.split()))
    print(f"{who}{text}", file=sys.stderr)
    if json:
        print(dumps({"error": text, "type": kind}))


def _main(argv: Sequence[str]) -> int:
    parser, parsers = make_parser()
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        parser.error(unknown_name("command", first, COMMANDS))
    options, rest = parser.parse_known_args(argv)
    parsers.get(options.command, parser).refuse_unknown(rest)
    if options.version:
        from flatsearch import __version__

        print(f"flatsearch {__version__}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    # Commands print what was read, with what is odd about it, as one line.
    logging.getLogger("flatsearch.data.loading").setLevel(logging.ERROR)
    command, given = COMMANDS[options.command], vars(options)
    try:
        held = _held(command, given, parsers[command.name])
        if "show_config" in given:
            print(in_toml({name: held[name] for name in held if name in configurable(command)}))
            return 0
        return command.call(*_records(command, held, parsers[command.name])) or 0
    except KeyboardInterrupt as stop:
        print(f"flatsearch: interrupted; {command.kept}", file=sys.stderr)
        return 128 + int(getattr(stop, "signum", 2))
    except BrokenPipeError:  # the reader of our output went away: not an error of ours
        sys.stderr.close()
        return 1
    except WrongUseError:
        raise
    except Exception as error:
        if "debug" in given:
            raise
        kind = "" if isinstance(error, (FlatsearchError, OSError)) else f"{type(error).__name__}: "
        text, name = f"{kind}{command.in_options(str(error))}", type(error).__name__
        _fail(f"flatsearch {command.name}: error: ", text, name, json="json" in given)
        return 2 if isinstance(error, UsageError) else 1


def _held(command: Command, given: dict[str, Any], parser: Parser) -> dict[str, Held]:
    """Return what holds for a command, with help for who has misspelt an option's value."""
    file = read_config(given.get("config")) if configurable(command) else ConfigFile()
    try:
        return resolve(command, given, file)
    except SettingsError as error:
        parser.error(command.in_options(str(error)))


def _records(command: Command, held: dict[str, Held], parser: Parser) -> list[Any]:
    """Return what the command is called with."""
    for name, entry in held.items():
        if entry.value is REQUIRED:
            parser.error(f"{command.settings[name].option(name)} must be given")
    return [
        record(**{name: held[name].value for name in record.settings()})
        for record in command.records
    ]
