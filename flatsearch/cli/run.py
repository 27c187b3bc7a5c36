"""`flatsearch run`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from flatsearch.cli import worker
from flatsearch.cli.command import Command
from flatsearch.cli.shared import Printing, Reporting, make_console, print_json, storage_option
from flatsearch.errors import UsageError, hide_passwords
from flatsearch.settings import STORAGE_VARIABLE, RunOptions, RunSettings

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.data.splits import ImageData
    from flatsearch.reports.progress import Progress

__all__ = ["COMMAND"]


def _run(
    options: RunOptions, settings: RunSettings, printing: Printing, reporting: Reporting
) -> None:
    import optuna

    from flatsearch.analysis.summary import require_complete, summarise
    from flatsearch.cli import main
    from flatsearch.reports.dashboard import Publisher
    from flatsearch.search.session import Session
    from flatsearch.search.shared_images import folder_of_run
    from flatsearch.search.workers import run_workers

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    if options.study_name.startswith("-"):  # no command could name it
        raise UsageError(f"`study` must not begin with '-' but is {options.study_name!r}")
    progress = reporting.progress(settings)
    session = Session.start(settings, options, progress.epoch)
    study, objective = session.study, session.objective
    progress.announce(study, objective.data, objective.device, session.finished, session.n_trials)
    publisher = Publisher(progress.say)
    try:
        has_work = session.has_work
        if not has_work:
            progress.say("nothing to do; --trials N adds more")
        elif options.workers > 1:
            # A process list shows arguments to everyone, the environment to its owner.
            environment = {STORAGE_VARIABLE: options.storage}
            with folder_of_run() as folder:
                shared = _share(objective.data, folder, progress)
                del session, objective  # with this process's own copy
                commands = _worker_commands(study.study_name, options, reporting, shared)
                run_workers(main, commands, progress.say, environment)
        else:
            worker.run_here(session, COMMAND.name, progress, publisher)
    finally:
        summary = summarise(study)
        _print(summary, options, printing)
        publisher.now(study, summary)
    if has_work:
        require_complete(summary)


def _share(data: ImageData, folder: Path, progress: Progress) -> str | None:
    """Write the images to a file which all workers map into memory; return its name."""
    file = folder / "images"
    try:
        data.save(file)
    except (OSError, RuntimeError) as error:  # torch's, where the disk is full
        file.unlink(missing_ok=True)
        reason = " ".join(str(error).split())
        progress.say(f"every worker reads the images itself, as they cannot be shared: {reason}")
        return None
    return str(file)


def _worker_commands(
    study: str, options: RunOptions, reporting: Reporting, shared: str | None
) -> list[list[str]]:
    """Return the commands of the run's workers, by which anyone else can join too."""
    from flatsearch.device import worker_device

    return [
        worker.COMMAND.arguments(
            study=study,
            index=index,
            shared=shared,
            data_memory=None if shared else options.data_memory,
            device=worker_device(options.device, index),
            timeout=options.timeout,
            quiet=reporting.quiet or None,
            log_file=reporting.log_file,
        )
        for index in range(options.workers)
    ]


def _print(summary: StudySummary, options: RunOptions, printing: Printing) -> None:
    from flatsearch.reports.terminal import print_summary

    if printing.json:
        print_json({**summary.to_dict(), "storage": hide_passwords(options.storage)})
        return
    console = make_console()
    print_summary(summary, console)
    console.print(_next_steps(summary, options), highlight=False, markup=False)


def _next_steps(summary: StudySummary, options: RunOptions) -> str:
    """Say what to type next."""
    study = f"{shlex.quote(summary.name)}{storage_option(options.storage)}"
    lines = ["next:", f"  flatsearch report {study}", f"  flatsearch dashboard {study}"]
    if summary.front:
        lines.append(f"  flatsearch train {study}    # the final model")
    given = ""
    if sys.argv[0].endswith("flatsearch"):
        given = shlex.join(hide_passwords(word) for word in sys.argv[1:])
    if given and options.trials is None:
        lines.append(f"  flatsearch {given} --trials 10    # ten more trials")
    return "\n".join(lines)


COMMAND = Command(
    "run",
    "search: create a study, or go on with it",
    "Search. Each trial builds a network from the space, trains it briefly, measures its relative"
    " flatness after every epoch and records both. Going on with a study needs the settings it was"
    " made with.",
    (RunOptions, RunSettings, Printing, Reporting),
    _run,
)
