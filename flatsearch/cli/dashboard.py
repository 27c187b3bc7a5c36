"""`flatsearch dashboard`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from flatsearch.cli.command import Command
from flatsearch.cli.shared import LOOPBACK, StudyOptions, as_told, warn_of_listening
from flatsearch.errors import Range, UsageError
from flatsearch.settings import setting
from flatsearch.settings.values import Text

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(StudyOptions):
    """What `flatsearch dashboard` is told."""

    artifacts: str | None = as_told("artifacts", help="where the search saved its models")
    host: str = setting(LOOPBACK, Text(), "name or address to listen on")
    port: int = setting(
        8080, Range(least=0, below=2**16, whole=True), "port to listen on; 0 for any", metavar="N"
    )


def _dashboard(options: _Options) -> None:
    from flatsearch.reports.dashboard import Publisher, require, serve
    from flatsearch.search.storage import artifacts_of

    require()
    study = options.load()
    folder = options.artifacts or artifacts_of(study)
    found = Path(folder).is_dir()
    if options.artifacts not in {None, "none"} and not found:
        raise UsageError(f"`artifacts` {folder!r} is not a folder")
    if not found and folder != "none":
        _note(f"the trials' files are not in {folder!r}; --artifacts DIR says where they are")
    # A storage that can only be read is shown as it is.
    Publisher(_note).now(study)
    files = folder if found else None
    warn_of_listening(COMMAND.name, options.host)
    serve(study.study_name, options.storage, files, options.host, options.port, _say)


def _say(address: str) -> None:
    print(f"{address}\nCtrl-C ends it", flush=True)


def _note(text: str) -> None:
    print(f"flatsearch dashboard: {text}", file=sys.stderr)


COMMAND = Command(
    "dashboard",
    "look at a study in a browser",
    "Write notes and figures into a study, start optuna-dashboard with its storage and artifacts,"
    " and print the address.",
    (_Options,),
    _dashboard,
    kept="the dashboard has stopped",
)
