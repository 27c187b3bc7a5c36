"""What a pruner keeps of every study it is asked about, in this process only."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from flatsearch.record.trial import FINISHED

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

__all__ = ["NewlyFinished", "PerStudy"]

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
    """The finished trials of a study, complete or pruned, each of them handed out once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def take(self, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that have finished since the last time."""
        finished = study.get_trials(deepcopy=False, states=FINISHED)
        # A finished trial stays one: where there are as many as before, none is new.
        if len(finished) == len(self._seen):
            return []
        new = [trial for trial in finished if trial.number not in self._seen]
        self._seen.update(trial.number for trial in new)
        return new
