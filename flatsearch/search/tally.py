"""How a worker's trials go, and when there is no use in going on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from flatsearch.record import FINISHED, TrialRecord
from flatsearch.spaces.describe import count_architectures

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from flatsearch.settings import RunSettings
    from flatsearch.spaces.space import SearchSpace

__all__ = ["Tally"]

# Samplers keep proposing what they hold best. After this many duplicates in a row the next
# candidate is drawn at random; after this many without a finished trial between them it is worth
# counting whether the space has any other architecture (if it has no more than that many); and
# after this many candidates that cost no training, duplicates or over a limit, there is nothing
# more to find.
_DUPLICATES_IN_A_ROW = 3
_DUPLICATES_BEFORE_COUNTING = 20
_MOST_COUNTED = 2_000
_MOST_IDLE = 200


class Tally:
    """Counts what has happened since the last finished trial.

    Args:
        space: The search space.
        max_failures: Failed trials in a row that are too many.

    Attributes:
        failures: Trials that failed, in a row.
        refused: Candidates over a limit since the last finished trial.
        duplicates: Duplicates since the last finished trial.
        error: The last failed trial's error.
    """

    def __init__(self, space: SearchSpace, max_failures: int) -> None:
        self._space, self._max_failures = space, max_failures
        self.failures = self.refused = self.duplicates = 0
        self.error = ""
        self._in_a_row = 0
        self._exhausted: int | None = None

    def count(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Take note of how a trial has ended."""
        found = TrialRecord(trial)
        self._in_a_row = self._in_a_row + 1 if found.duplicate else 0
        if trial.state == TrialState.FAIL:
            # A duplicate of a running trial says nothing about either, nor does a late trial.
            self.failures += not (found.duplicate or found.late)
            return
        self.failures = 0
        if not found.begins:
            return  # what is promoted says nothing of what is proposed
        if found.finished:
            self.refused = self.duplicates = 0
        elif found.duplicate and not found.over_limit:
            self.duplicates += 1
            if self.duplicates == _DUPLICATES_BEFORE_COUNTING:
                self._exhausted = _all_tried(study, self._space)
        else:
            self.refused += 1

    @property
    def repeats_itself(self) -> bool:
        """Whether the sampler proposes the same again and again."""
        return self._in_a_row >= _DUPLICATES_IN_A_ROW

    @property
    def _in_vain(self) -> bool:
        return self.refused + self.duplicates >= _MOST_IDLE

    @property
    def idle(self) -> bool:
        """Whether there is nothing new to find."""
        return self._in_vain or self._exhausted is not None

    @property
    def failing(self) -> bool:
        """Whether too many trials have failed in a row."""
        return self.failures >= self._max_failures

    @property
    def stuck(self) -> bool:
        """Whether there is no use in going on."""
        return self.failing or self.idle

    def problem(self, settings: RunSettings) -> str:
        """Say what has gone wrong, and what to do; nothing if nothing has."""
        if self._in_vain and self.refused:
            limits = ", ".join(f"{name} {limit:g}" for name, limit in settings.limits.items())
            before = f", or were tried before ({self.duplicates} of them)" * bool(self.duplicates)
            return (
                f"{self.refused + self.duplicates} candidates in a row are over the limits"
                f" ({limits}){before}; raise them, or take a space with smaller networks"
            )
        if self.failing:
            return f"{self.failures} trials failed in a row; the last one with {self.error}"
        return ""

    def exhaustion(self) -> str:
        """Say that there is nothing left to train; nothing if there is."""
        if self._exhausted is not None:
            return f"all {self._exhausted} architectures of the space have been tried"
        if not self._in_vain:
            return ""
        return (
            f"the last {self.duplicates} candidates are networks that were tried before: the space"
            " seems to be exhausted"
        )


def _all_tried(study: optuna.Study, space: SearchSpace) -> int | None:
    """Return the number of a space's architectures if a study has tried them all, else None."""
    trials = map(TrialRecord, study.get_trials(deepcopy=False, states=FINISHED))
    tried = {trial.architecture for trial in trials if not trial.recipe}
    count = count_architectures(space, most=_MOST_COUNTED)
    return count if count is not None and len(tried) >= count else None
