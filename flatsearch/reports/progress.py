"""Progress of a run: a bar on a terminal, a line per trial elsewhere; always on standard error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from flatsearch.pareto import signs
from flatsearch.record import TrialRecord
from flatsearch.reports.text import value
from flatsearch.search.interrupts import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import optuna
    import torch
    from rich.progress import TaskID

    from flatsearch.data.splits import ImageData
    from flatsearch.flatness import FlatnessResult
    from flatsearch.reports.plan import Plan
    from flatsearch.settings import RunSettings
    from flatsearch.training.trainer import EpochResult

__all__ = ["Progress", "ProgressConsole", "epochs_bar"]

# Characters on a line with which there is room for a bar beside the words.
_WIDE = 100
# Lines in a row about networks that were tried before.
_MOST_SAME = 4


class ProgressConsole(Console):
    """Standard error; when its reader goes away, as `head` does, that is a signal like others."""

    def on_broken_pipe(self) -> None:
        """End the program as SIGPIPE would, but with the running trial told.

        Raises:
            Interrupted: Always.
        """
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)
        raise Interrupted(getattr(signal, "SIGPIPE", signal.SIGTERM))


class Progress:
    """Shows a run as it goes.

    Args:
        console: On standard error.
        settings: The run's settings.
        log: A file to which every line is added, with its time.
    """

    def __init__(self, console: Console, settings: RunSettings, log: str | None = None) -> None:
        self._console = console
        self._log = log
        self._settings = settings
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._plan: Plan | None = None
        self._worded: Callable[[str], str] = str
        self._best: tuple[float, int] | None = None
        self._same = 0

    def announce(
        self,
        study: optuna.Study,
        data: ImageData,
        device: torch.device,
        finished: int,
        n_trials: int,
    ) -> None:
        """Say what is about to run."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            self._see(trial)
        how = f"resuming study '{study.study_name}' (finished trials: {finished})"
        if not study.get_trials(deepcopy=False):
            how = f"new study '{study.study_name}'"
        self.say(f"{how}: trials to go: {n_trials}")
        changed = data.augmentation(self._settings.augment)
        mirrored = "; mirrored at random in training (augment)" if changed and changed.flip else ""
        self.say(f"{data}{mirrored}; on {device}")

    @contextlib.contextmanager
    def running(self, n_trials: int) -> Iterator[None]:
        """Show a bar while trials run."""
        if not self._console.is_terminal:
            yield
            return
        with _bar(self._console, "best", left="left") as bar:
            self._bar = bar
            about: Any = {"best": self._best_text(), "left": ""}
            self._task = bar.add_task("starting", total=n_trials, **about)
            try:
                yield
            finally:
                self._bar = None

    def plan(self, plan: Plan, worded: Callable[[str], str]) -> None:
        """Say from now on how long it takes.

        Args:
            plan: What knows it.
            worded: Puts a text into the caller's language.
        """
        self._plan, self._worded = plan, worded

    def epoch(self, trial: optuna.Trial, result: EpochResult, _: FlatnessResult) -> None:
        """Show the epoch of the running trial."""
        if self._plan is not None and (text := self._plan.first_epoch(trial)):
            self.say(self._worded(text))
        if self._bar is not None and self._task is not None:
            text = f"trial {trial.number} epoch {result.epoch}/{self._settings.epochs}"
            self._bar.update(self._task, description=text)

    def trial(self, _: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Show a trial's end."""
        self._see(trial)
        if self._bar is not None and self._task is not None:
            step = int(TrialRecord(trial).counted)
            self._bar.update(self._task, advance=step, best=self._best_text(), left=self._left())
            if trial.state != TrialState.FAIL:
                return
        if line := self._line(trial):
            left = self._left()
            self.say(f"{line}; {left}" if left else line)

    def _left(self) -> str:
        return "" if self._plan is None else self._plan.left()

    def _see(self, trial: optuna.trial.FrozenTrial) -> None:
        if TrialRecord(trial).complete:
            first, sign = trial.values[0], signs(self._settings.directions)[0]
            if self._best is None or sign * first > sign * self._best[0]:
                self._best = (first, trial.number)

    def _best_text(self) -> str:
        if self._best is None:
            return "no result yet"
        name = self._settings.objectives[0]
        return f"best {name} {value(name, self._best[0])} (trial {self._best[1]})"

    def _line(self, trial: optuna.trial.FrozenTrial) -> str:
        found = TrialRecord(trial)
        text = f"trial {trial.number}"
        if found.promotion is not None:
            text += f", which goes on with trial {found.promotion.trial},"
        text += f" {trial.state.name.lower()}"
        self._same = self._same + 1 if found.duplicate else 0
        if self._same > _MOST_SAME:
            return ""
        if self._same == _MOST_SAME:
            return "... (more candidates that were tried before are not listed)"
        if trial.state == TrialState.COMPLETE and found.duplicate:
            return f"{text}: the same network as trial {found.duplicate_of}, not trained again"
        if trial.state == TrialState.COMPLETE and found.parked is None:
            named = zip(self._settings.objectives, trial.values, strict=True)
            return (
                f"{text}: {', '.join(f'{n} {value(n, v)}' for n, v in named)}; {self._best_text()}"
            )
        if found.parked is not None:
            return f"{text.rpartition(' ')[0]} {found.stopped}"
        reason = found.failure or found.stopped
        return f"{text}: {reason}" if reason else text

    def say(self, text: str) -> None:
        """Print a line."""
        # A terminal would break the line inside of words.
        whole = not self._console.is_terminal
        self._console.print(text, highlight=False, markup=False, soft_wrap=whole)
        if self._log is None:
            return
        try:
            with Path(self._log).open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
        except OSError as error:  # no trial is to end for that
            log, self._log = self._log, None
            self.say(f"`log_file` {log!r} is not written any more: {error.strerror}")


def _bar(console: Console, result: str, *, left: str = "") -> Bar:
    """Return a bar that ends with a result, a field of its tasks; another may say what is left."""
    wide = not left or console.width >= _WIDE
    return Bar(
        TextColumn("{task.description}"),
        *((BarColumn(),) if wide else ()),
        MofNCompleteColumn(),
        *((TimeElapsedColumn(),) if wide else ()),
        TextColumn(f"{{task.fields[{left}]}}") if left else TimeRemainingColumn(),
        TextColumn(f"{{task.fields[{result}]}}"),
        console=console,
    )


@contextlib.contextmanager
def epochs_bar(console: Console, epochs: int | None = None) -> Iterator[Callable[..., None]]:
    """Show the epochs of a final training: a bar on a terminal, a line each elsewhere.

    Yields:
        What is to be called with (seed, epoch, training loss) after every epoch.
    """
    if not console.is_terminal:
        yield lambda seed, epoch, loss: console.print(
            f"seed {seed} epoch {epoch}: training loss {loss:.4f}", highlight=False, markup=False
        )
        return
    with _bar(console, "loss") as bar:
        tasks: dict[int, TaskID] = {}

        def show(seed: int, epoch: int, loss: float) -> None:
            if seed not in tasks:
                tasks[seed] = bar.add_task(f"seed {seed}", total=epochs, loss="")
            bar.update(tasks[seed], completed=epoch, loss=f"training loss {loss:.4f}")

        yield show
