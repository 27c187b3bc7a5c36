"""Finished trials share what is the same in many of them: names of attributes, distributions.

A storage makes every string and every distribution of every trial anew, and every worker keeps all
trials of its study in memory. Nearly half of what a trial takes there is such repetition.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from flatsearch.pruners.per_study import NewlyFinished

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

__all__ = ["Sharing"]


class Sharing:
    """What the finished trials of one study share, in this process."""

    def __init__(self) -> None:
        self._finished = NewlyFinished()
        self._distributions: dict[str, BaseDistribution] = {}
        self._lock = threading.Lock()

    @property
    def unfinished(self) -> frozenset[int]:
        """The numbers of the trials that had not finished the last time."""
        with self._lock:
            return frozenset(self._finished.unfinished)

    def share(self, trials: Sequence[FrozenTrial]) -> None:
        """Let the trials that have finished since the last time share their parts.

        Args:
            trials: All trials of the study, by number, as the storage keeps them itself: no copies.
                What they say stays the same.
        """
        with self._lock:
            ended = self._finished.take(trials)
        for trial in ended:
            trial.params = _interned(trial.params)
            trial.user_attrs = _interned(trial.user_attrs)
            trial.system_attrs = _interned(trial.system_attrs)
            trial.distributions = {
                sys.intern(name): self._distributions.setdefault(repr(kind), kind)
                for name, kind in trial.distributions.items()
            }


def _interned(value: Any) -> Any:
    """Return JSON with one string for equal keys, wherever they are."""
    if isinstance(value, dict):
        return {sys.intern(key): _interned(part) for key, part in value.items()}
    return [_interned(part) for part in value] if isinstance(value, list) else value
