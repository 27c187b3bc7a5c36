"""`flatsearch worker`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.cli.command import Command, in_options
from flatsearch.cli.shared import Reporting, StudyOptions, as_told
from flatsearch.errors import Range
from flatsearch.settings import RunOptions, RunSettings, same, setting
from flatsearch.settings.values import Text

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from flatsearch.reports.dashboard import Publisher
    from flatsearch.reports.progress import Progress
    from flatsearch.search.session import Session

__all__ = ["COMMAND", "run_here"]


@dataclass(frozen=True, kw_only=True)
class _Options(Reporting, StudyOptions):
    """What `flatsearch worker` is told."""

    space: str | None = as_told("space", help="where the same space is on this machine")
    device: str = same(RunOptions, "device")
    timeout: float | None = same(RunOptions, "timeout")
    data: str | None = as_told("data", help="where the same data are on this machine")
    data_root: str | None = as_told("data_root")
    data_memory: int | None = same(RunOptions, "data_memory")
    artifacts: str | None = as_told("artifacts")
    index: int | None = setting(
        None, Range(least=0, whole=True), "this worker's place among those of a run", hidden=True
    )
    shared: str | None = setting(
        None, Text(), "a file with the images, which the workers of a run share", hidden=True
    )


def _worker(options: _Options) -> None:
    from flatsearch.data.splits import ImageData
    from flatsearch.reports.dashboard import Publisher
    from flatsearch.search.session import Session, joined_options

    study = options.load(wait=True)
    here = {name: value for name, value in options.to_dict().items() if value is not None}
    settings, run_options = joined_options(study, here)
    # Several workers may share a terminal: lines, no bar.
    progress = options.progress(settings, lines=True)
    session = Session.join(
        study.study_name,
        settings,
        run_options,
        worker=os.getpid() if options.index is None else options.index + 1,
        on_epoch=progress.epoch,
        data=None if options.shared is None else ImageData.load(Path(options.shared)),
    )
    # Of several workers one is enough to keep the dashboard up to date.
    publisher = Publisher(progress.say) if options.index == 0 else None
    run_here(session, COMMAND.name, progress, publisher)


def run_here(
    session: Session, command: str, progress: Progress, publisher: Publisher | None
) -> None:
    """Run a session's trials in this process, and show and publish each."""
    from flatsearch.reports.plan import Plan

    def on_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        progress.trial(study, trial)
        if publisher is not None:
            publisher.trial(study)

    if publisher is not None:  # of several workers one
        data = session.objective.data
        settings, timeout = session.objective.settings, session.options.timeout
        plan = Plan(session.study, session.target, settings, data.image_size, timeout)
        known = {**RunSettings.settings(), **RunOptions.settings()}
        progress.plan(plan, lambda text: in_options(text, known))
    with progress.running(session.n_trials):
        ended = session.run(on_trial)
    if ended:
        print(f"flatsearch {command}: {ended}", file=sys.stderr)


COMMAND = Command(
    "worker",
    "join a search that was started elsewhere",
    "Join a search, on this machine or another one, through its storage: the search goes on until"
    " it has the trials that 'flatsearch run' asked for. Settings come from the study; data sets"
    " are found by the same name or path.",
    (_Options,),
    _worker,
)
