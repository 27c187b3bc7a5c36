"""What a pruner keeps of every study it is asked about, in this process only."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna
    from optuna.trial import FrozenTrial

__all__ = ["NewlyFinished", "Pace", "PerStudy"]

T = TypeVar("T")


class PerStudy(Generic[T]):
    """One object for each living study; copied and pickled without any."""

    def __init__(self) -> None:
        self._objects: WeakKeyDictionary[optuna.Study, T] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self, study: optuna.Study, make: Callable[[optuna.Study], T]) -> T:
        """Return a study's object, which is made the first time it is asked for."""
        with self._lock:
            if study not in self._objects:
                self._objects[study] = make(study)
            return self._objects[study]

    def __reduce__(self) -> tuple[type[PerStudy[T]], tuple[()]]:
        return type(self), ()


class NewlyFinished:
    """The finished trials of a study, however they ended, each of them handed out once.

    Attributes:
        unfinished: The numbers of the others.
    """

    def __init__(self) -> None:
        self._begun = 0
        self.unfinished: set[int] = set()

    def take(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that have finished since the last time.

        Args:
            trials: All trials of the study; the place of each is its number. They may be fewer than
                before: another thread has read more by now.
        """
        self.unfinished.update(range(self._begun, len(trials)))
        self._begun = max(self._begun, len(trials))
        there = (trials[n] for n in sorted(self.unfinished) if n < len(trials))
        ended = [trial for trial in there if trial.state.is_finished()]
        self.unfinished.difference_update(trial.number for trial in ended)
        return ended


class Pace:
    """Says when to learn anew from trials that come one by one.

    Up to a hundred with every trial, and beyond them with a tenth of the others at a time: what a
    decision takes on average does not grow with the study, whatever the number of its workers.
    """

    def __init__(self) -> None:
        self._new = 0

    def add(self, seen: int) -> bool:
        """Note one more trial; return whether to learn anew from all that were seen, `seen`."""
        self._new += 1
        if self._new <= max(0, seen - 100) // 10:
            return False
        self._new = 0
        return True
