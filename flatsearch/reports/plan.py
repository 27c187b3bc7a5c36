"""How long a search takes: before it has gone far, and as it goes on."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from flatsearch.pruners.promoter import Promoter
from flatsearch.record import TrialRecord
from flatsearch.reports.text import count_of, duration
from flatsearch.search.trial_budget import count_finished

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import optuna
    from optuna.trial import FrozenTrial

    from flatsearch.settings import RunSettings

__all__ = ["Plan"]

_LEAST_SIZE = 8


class Plan:
    """How long what is left of a search takes.

    Args:
        study: The study.
        target: Finished trials that it is to have.
        settings: The run's settings.
        image_size: Height and width of the images.
        timeout: Seconds after which no trial begins.
    """

    def __init__(
        self,
        study: optuna.Study,
        target: int,
        settings: RunSettings,
        image_size: int,
        timeout: float | None,
    ) -> None:
        self._study, self._target, self._settings = study, target, settings
        self._image_size, self._timeout = image_size, timeout
        self._began, self._clock = datetime.now(), time.monotonic()
        self._told = False

    def _to_go(self, trials: Sequence[FrozenTrial]) -> int:
        """Return how many trials are to go, those that run now included."""
        return max(0, self._target - count_finished(trials))

    def first_epoch(self, trial: optuna.Trial) -> str:
        """Return what the first epoch that ends here says of the whole search; empty later on.

        Args:
            trial: The running trial, whose first epoch has ended: of those that it trains itself,
                if it goes on with another's network.

        Returns:
            A sentence with the names of settings in backquotes.
        """
        if self._told or trial.datetime_start is None or trial.datetime_start < self._began:
            return ""
        self._told = True
        epoch = (datetime.now() - trial.datetime_start).total_seconds()
        trials = self._study.get_trials(deepcopy=False)
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        to_go = self._to_go(trials)
        # What goes on with an earlier trial's network has been counted with that.
        return self._text(epoch, to_go, max(1, running)) if to_go else ""

    def _text(self, epoch: float, to_go: int, at_once: int) -> str:
        """Say how long it takes.

        Args:
            epoch: Seconds of an epoch with all that belongs to it.
            to_go: Trials to go.
            at_once: Trials that run at the same time.

        Returns:
            A sentence, with what would fit where the time is too short.
        """
        epochs, pruner = self._settings.epochs, self._study.pruner

        def seconds(epochs: int) -> float:
            mean: float = epochs
            if isinstance(pruner, Promoter):
                mean = pruner.mean_epochs(epochs, to_go)
            return epoch * mean * to_go / at_once

        whole = seconds(epochs)
        # A pruner that promotes goes by a schedule; of others nobody knows what they prune.
        about = "about" if isinstance(pruner, Promoter) else "at most"
        text = (
            f"plan: an epoch takes about {duration(epoch)}, so a trial of {epochs} at most"
            f" {duration(epoch * epochs)}, and {count_of(to_go, 'trial')} {about} {duration(whole)}"
        )
        if self._timeout is None or whole <= self._timeout:
            return text
        share = self._timeout / whole
        # The time of an epoch is not known to a hundredth.
        fits = [count_of(n, "trial")] if (n := int(to_go * share + 0.01)) else []
        fewer = [e for e in range(1, epochs) if seconds(e) <= self._timeout]
        if fewer:
            fits.append(f"`epochs` {fewer[-1]}")
        if (size := int(self._image_size * share**0.5)) >= _LEAST_SIZE:
            fits.append(f"`image_size` {size} in place of {self._image_size}")
        fit = f"is enough for {', or for '.join(fits)}" if fits else "is not enough for one"
        return f"{text}; `timeout` {duration(self._timeout)} {fit}"

    def left(self) -> str:
        """Return how long the rest takes, by the trials that were finished since it began.

        Returns:
            A phrase; empty before the first one, and after the last.
        """
        trials = self._study.get_trials(deepcopy=False)
        ended = [
            trial
            for trial in trials
            if trial.datetime_complete is not None and trial.datetime_complete > self._began
        ]
        pruner, passed = self._study.pruner, time.monotonic() - self._clock
        finished: float = sum(TrialRecord(trial).counted for trial in ended)
        to_go: float = self._to_go(trials)
        if isinstance(pruner, Promoter) and self._target:  # trials that go on come last, and long
            mean = pruner.mean_epochs(self._settings.epochs, self._target)
            finished, to_go = _epochs(ended), max(0.0, mean * self._target - _epochs(trials))
        if not finished or not to_go:
            return ""
        seconds = passed / finished * to_go
        if self._timeout is not None:
            seconds = min(seconds, max(0.0, self._timeout - passed))
        return f"about {duration(seconds)} left"


def _epochs(trials: Iterable[FrozenTrial]) -> int:
    """Return how many epochs trials have trained themselves, without those of others' networks."""
    found = map(TrialRecord, trials)
    return sum(len(t.steps) - (0 if t.promotion is None else t.promotion.after) for t in found)
