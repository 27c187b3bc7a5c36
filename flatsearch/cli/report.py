"""`flatsearch report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.cli.options import (
    add_json,
    add_storage,
    load_for_reading,
    make_console,
    print_json,
)

if TYPE_CHECKING:
    import argparse

__all__ = ["add_report"]


def add_report(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch report`."""
    parser.description = "Show a study: trials, Pareto front, what the early signals say."
    parser.add_argument("study", nargs="?", help="its name (default: the only study)")
    add_storage(parser)
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write one page with tables and figures, to be opened offline",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the page")
    add_json(parser)
    parser.set_defaults(call=_report)


def _report(options: argparse.Namespace) -> None:
    from flatsearch.analysis.summary import summarise
    from flatsearch.reports.terminal import print_summary

    summary = summarise(load_for_reading(options))
    if options.html is not None:
        from flatsearch.reports.html import write_page

        write_page(summary, Path(options.html), force=options.force)
        print(f"written: {options.html}", file=sys.stderr)
    if options.json:
        print_json(summary.to_dict())
    else:
        print_summary(summary, make_console(), all_trials=True)
