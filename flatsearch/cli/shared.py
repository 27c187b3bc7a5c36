"""What several commands are told, and how they print."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.errors import UsageError, hide_passwords
from flatsearch.settings import (
    DEFAULT_STORAGE,
    STORAGE_VARIABLE,
    RunOptions,
    SettingsRecord,
    same,
    setting,
)
from flatsearch.settings.values import Choice, Switch, Text

if TYPE_CHECKING:
    import optuna

    from flatsearch.analysis import selection
    from flatsearch.reports.progress import Progress
    from flatsearch.settings import RunSettings

__all__ = [
    "LOOPBACK",
    "PREPROCESSING",
    "Preparing",
    "Printing",
    "Quiet",
    "Reporting",
    "StudyOptions",
    "TrialOptions",
    "as_told",
    "layers_of",
    "make_console",
    "print_json",
    "storage_option",
    "warn_of_listening",
]

# Nobody else can reach what listens there.
LOOPBACK = "localhost"


def as_told(name: str, **changed: Any) -> Any:
    """Return a field for an option of a run, which holds as the search was told if not given."""
    return same(RunOptions, name, default=None, unset="as the search was told", **changed)


@dataclass(frozen=True, kw_only=True)
class Printing(SettingsRecord):
    """How a command prints."""

    json: bool = setting(False, Switch(), "print one JSON object, nothing else")


@dataclass(frozen=True, kw_only=True)
class Quiet(SettingsRecord):
    """Whether a command says more than its results."""

    quiet: bool = setting(False, Switch(), "print results and errors only, no progress")

    def note(self, text: object) -> None:
        """Print a line on standard error that is no result and no error."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def console(self, **options: Any) -> Any:
        """Return the console of standard error, for progress."""
        from flatsearch.reports.progress import ProgressConsole

        return ProgressConsole(stderr=True, quiet=self.quiet, **options)


@dataclass(frozen=True, kw_only=True)
class Reporting(Quiet):
    """Where a command that takes long says how far it is."""

    log_file: str | None = setting(
        None, Text(), "a file that the lines about the progress are added to", metavar="FILE"
    )

    def progress(self, settings: RunSettings, *, lines: bool = False) -> Progress:
        """Return what shows the progress on standard error; `lines` also on a terminal."""
        from flatsearch.reports.progress import Progress

        if self.log_file is not None:
            file = Path(self.log_file).absolute()
            if not os.access(file if file.exists() else file.parent, os.W_OK) or file.is_dir():
                raise UsageError(f"`log_file` {self.log_file!r} is no file that can be written to")
        console = self.console(force_terminal=False if lines else None)
        return Progress(console, settings, log=self.log_file)


# How the images of a model that is not ours may be prepared.
PREPROCESSING = {
    "raw": "pixels as stored",
    "unit": "pixels from 0 to 1",
    "imagenet": "pixels from 0 to 1, less ImageNet's mean, over its standard deviation",
    "standardised": "channels of mean 0 and standard deviation 1 on the training images",
}


@dataclass(frozen=True, kw_only=True)
class Preparing(SettingsRecord):
    """How the images of other people's models are prepared."""

    preprocessing: str | None = setting(
        None,
        Choice("preprocessing", PREPROCESSING),
        "how the images of a model that flatsearch has not saved are prepared",
        more="raw: pixels as stored; unit: from 0 to 1; imagenet: that, less ImageNet's mean, over"
        " its standard deviation; standardised: by mean and standard deviation of the training"
        " images",
        unset="imagenet with published weights of torchvision, else standardised with its networks;"
        " others do not say, and are refused",
        metavar="HOW",
    )


@dataclass(frozen=True, kw_only=True)
class StudyOptions(SettingsRecord):
    """Which study a command is about."""

    study: str | None = setting(
        None, Text(), "the study's name", unset="the only study", positional=True
    )
    storage: str = same(RunOptions, "storage")

    def load(self, *, wait: bool = False) -> optuna.Study:
        """Return the study, which must exist; wait, if so asked, for a server to answer."""
        import optuna

        from flatsearch.search.storage import open_storage
        from flatsearch.search.study import load_study

        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        return load_study(self.study, open_storage(self.storage, create=False, wait=wait))


@dataclass(frozen=True, kw_only=True)
class TrialOptions(StudyOptions):
    """Which trial of a study a command is about."""

    trial: str = setting(
        "best",
        Text(),
        "a trial's number, or best: of several objectives the knee of the front",
        metavar="N",
    )
    prefer: str | None = setting(
        None, Text(), "as best, the one that is best in this objective", metavar="OBJECTIVE"
    )

    def choose(self) -> tuple[optuna.Study, selection.Choice]:
        """Return the study and the trial."""
        from flatsearch.analysis.selection import choose
        from flatsearch.analysis.summary import summarise

        study = self.load()
        return study, choose(summarise(study, statistics=False), self.trial, self.prefer)


def layers_of(text: str) -> str | list[str]:
    """Return the layers to measure, as `relative_flatness` takes them.

    Example:
        >>> layers_of("all"), layers_of("features.0, features.3")
        ('all', ['features.0', 'features.3'])
    """
    if text in {"last", "main", "all", "head"}:
        return text
    return [name.strip() for name in text.split(",")]


def print_json(fields: dict[str, Any]) -> None:
    """Print one JSON object."""
    from flatsearch.analysis.summary import finite

    print(json.dumps(finite(fields), allow_nan=False))


def make_console() -> Any:
    """Return the console of standard output; wide where that is no terminal."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 160
    return console


def storage_option(storage: str) -> str:
    """Return what a suggested command needs to find the same storage."""
    if storage == (os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE):
        return ""
    return f" --storage {shlex.quote(hide_passwords(storage))}"


def warn_of_listening(command: str, host: str) -> None:
    """Say so where others can reach what a command serves, which asks for no password."""
    if host not in {LOOPBACK, "127.0.0.1", "::1"}:
        print(
            f"flatsearch {command}: warning: whoever reaches {host or 'this machine'} can read and"
            " change every study of the storage; no password is asked for",
            file=sys.stderr,
        )
