"""`flatsearch worker`."""

from __future__ import annotations

import argparse
import os

from flatsearch.cli.options import (
    add_device,
    add_storage,
    add_timeout,
    load_for_reading,
)
from flatsearch.cli.run import RUN_OPTIONS, make_objective, run_trials
from flatsearch.errors import UsageError

__all__ = ["add_worker"]


def add_worker(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch worker`."""
    parser.description = (
        "Join a search, on this machine or another one, through its storage: the search goes on"
        " until it has the trials that 'flatsearch run' asked for. Settings come from the study;"
        " data sets are found by the same name or path."
    )
    parser.add_argument("study", nargs="?", help="its name (default: the only study)")
    add_storage(parser)
    add_device(parser)
    add_timeout(parser)
    parser.add_argument("--data", metavar="DATA", help="where the same data are on this machine")
    parser.add_argument("--data-root", metavar="DIR", help="of torchvision data sets")
    parser.add_argument("--artifacts", metavar="DIR", help="where trained models are saved")
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(call=_worker)


def _worker(options: argparse.Namespace) -> None:
    from rich.console import Console

    from flatsearch.record import StudyRecord
    from flatsearch.reports.dashboard import Publisher
    from flatsearch.reports.progress import Progress
    from flatsearch.search.storage import open_storage
    from flatsearch.search.study import open_study

    study = load_for_reading(options)
    storage = open_storage(options.storage)
    known = StudyRecord(study)
    run = known.run
    if run is None or known.settings is None:
        raise UsageError(
            f"study {study.study_name!r} has not been run by flatsearch; start it with"
            " 'flatsearch run'"
        )
    for key in RUN_OPTIONS:
        if getattr(options, key, None) is None:
            setattr(options, key, run.get(key))
    settings = known.run_settings()
    # Several workers may share a terminal: lines, no bar.
    progress = Progress(Console(stderr=True, force_terminal=False), settings)
    objective = make_objective(options, settings, progress)
    study = open_study(
        study.study_name, storage, objective,
        sampler=options.sampler, pruner=options.pruner, prune_on=options.prune_on,
        worker=os.getpid() if options.index is None else options.index + 1,
    )  # fmt: skip
    # Of several workers one is enough to keep the dashboard up to date.
    publisher = Publisher(progress.say) if options.index == 0 else None
    run_trials(study, objective, progress, options, run["target"], publisher)
