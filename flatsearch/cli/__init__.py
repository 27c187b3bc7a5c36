"""The command line: parse, call, print. Heavy modules are imported where they are used."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from flatsearch.cli.dashboard import add_dashboard
from flatsearch.cli.export import add_export
from flatsearch.cli.measure import add_measure
from flatsearch.cli.predict import add_predict
from flatsearch.cli.report import add_report
from flatsearch.cli.run import add_run
from flatsearch.cli.spaces import add_spaces
from flatsearch.cli.train import add_train
from flatsearch.cli.worker import add_worker
from flatsearch.errors import FlatsearchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Reports wrong use as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="flatsearch",
        description="Architecture search for image classifiers with Optuna and an exact"
        " relative-flatness measure.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    add_run(commands.add_parser("run", help="search: create a study, or go on with it"))
    add_worker(commands.add_parser("worker", help="join a search that was started elsewhere"))
    add_spaces(commands.add_parser("spaces", help="list the search spaces, or show one"))
    add_report(commands.add_parser("report", help="tables and Pareto front of a study"))
    add_dashboard(commands.add_parser("dashboard", help="look at a study in a browser"))
    add_measure(commands.add_parser("measure", help="measure the flatness of a model"))
    add_train(commands.add_parser("train", help="train a trial's architecture to the end"))
    add_export(commands.add_parser("export", help="export a trained model"))
    add_predict(commands.add_parser("predict", help="classify images"))
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process where None.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse exits by itself for --help and wrong use
        return int(stop.code or 0)
    if options.version:
        from flatsearch import __version__

        print(f"flatsearch {__version__}")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    try:
        code = options.call(options)
    except KeyboardInterrupt as stop:
        kept = getattr(options, "kept", "finished trials are kept")
        print(f"flatsearch: interrupted; {kept}", file=sys.stderr)
        return 128 + int(getattr(stop, "signum", 2))
    except BrokenPipeError:  # the reader of our output went away: not an error of ours
        sys.stderr.close()
        return 1
    except Exception as error:
        if options.debug:
            raise
        kind = "" if isinstance(error, (FlatsearchError, OSError)) else f"{type(error).__name__}: "
        text = " ".join(str(error).split())
        print(f"flatsearch {options.command}: error: {kind}{text}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return code or 0
