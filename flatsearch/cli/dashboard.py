"""`flatsearch dashboard`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.cli.options import (
    add_artifacts,
    add_storage,
    artifacts_of,
    load_for_reading,
)
from flatsearch.errors import UsageError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_dashboard"]


def add_dashboard(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch dashboard`."""
    parser.description = (
        "Write notes and figures into a study, start optuna-dashboard with its storage and"
        " artifacts, and print the address."
    )
    parser.add_argument("study", nargs="?", help="its name (default: the only study)")
    add_storage(parser)
    add_artifacts(parser)
    parser.add_argument("--host", default="localhost", help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    parser.set_defaults(call=_dashboard, kept="the dashboard has stopped")


def _dashboard(options: argparse.Namespace) -> None:
    from flatsearch.reports.dashboard import Publisher, require, serve

    require()
    if not 0 <= options.port < 2**16:
        raise UsageError(f"--port must be from 0 to {2**16 - 1} but got {options.port}")
    study = load_for_reading(options)
    folder = artifacts_of(options, study)
    found = Path(folder).is_dir()
    if options.artifacts is not None and not found:
        raise UsageError(f"--artifacts {folder!r} is not a folder")
    if not found and folder != "none":
        _note(f"the trials' files are not in {folder!r}; --artifacts DIR says where they are")
    # A storage that can only be read is shown as it is.
    Publisher(_note).now(study)
    serve(
        study.study_name, options.storage, folder if found else None, options.host, options.port,
        lambda text: print(f"{text}\nCtrl-C ends it", flush=True),
    )  # fmt: skip


def _note(text: str) -> None:
    print(f"flatsearch dashboard: {text}", file=sys.stderr)
