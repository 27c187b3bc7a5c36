"""`flatsearch report`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Printing, StudyOptions, make_console, print_json
from flatsearch.settings import setting
from flatsearch.settings.values import Switch, Text

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(StudyOptions, Printing):
    """What `flatsearch report` is told."""

    html: str | None = setting(
        None, Text(), "write one page with tables and figures, to be opened offline", metavar="FILE"
    )
    csv: str | None = setting(None, Text(), "write a row for every trial", metavar="FILE")
    epochs_csv: str | None = setting(
        None, Text(), "write a row for every epoch of every trial", metavar="FILE"
    )
    force: bool = setting(False, Switch(), "overwrite files")


def _report(options: _Options) -> None:
    from flatsearch.analysis.frames import write_epochs, write_trials
    from flatsearch.analysis.summary import summarise
    from flatsearch.reports.html import file_to_write
    from flatsearch.reports.terminal import print_summary

    study = options.load()
    summary = summarise(study)
    if options.html is not None:
        from flatsearch.record import StudyRecord
        from flatsearch.reports.drawings import drawings
        from flatsearch.reports.html import write_page
        from flatsearch.retrain.result import read_final
        from flatsearch.search.storage import artifacts_of

        page = file_to_write(options.html, force=options.force)  # before anything is drawn
        tests = StudyRecord(study).tests
        final = read_final(Path(tests[-1].file)) if tests else None
        networks = drawings(summary, Path(artifacts_of(study)))
        write_page(summary, page, force=options.force, final=final, networks=networks)
        print(f"written: {options.html}", file=sys.stderr)
    for file, write in ((options.csv, write_trials), (options.epochs_csv, write_epochs)):
        if file is not None:
            write(summary, file_to_write(file, force=options.force))
            print(f"written: {file}", file=sys.stderr)
    if options.json:
        print_json(summary.to_dict())
    else:
        print_summary(summary, make_console(), all_trials=True)


COMMAND = Command(
    "report",
    "tables and Pareto front of a study",
    "Show a study: trials, Pareto front, what the early signals were worth.",
    (_Options,),
    _report,
)
