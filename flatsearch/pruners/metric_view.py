"""A study as Optuna's own pruners want it: one objective, reported step by step.

Pruners are given a study, some of them (successive halving) write to its storage, and there is no
public way to wrap it: this is the one module of the pruners that uses private parts of Optuna, the
attributes `_storage` of a study and `_trial_id` of a trial.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakMethod

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from flatsearch.record.facts import PREFIX
from flatsearch.record.trial import FINISHED, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

__all__ = [
    "Curve",
    "MetricView",
    "WritableTrial",
    "asked_for",
    "claim",
    "look_again",
    "shown_study",
]

# Optuna's successive halving notes a trial's value at each rung under a key that begins so.
_RUNG = "completed_rung_"
# A metric by step.
Curve: TypeAlias = "Mapping[int, float]"


def asked_for(
    trials: Sequence[FrozenTrial], *, deepcopy: bool, states: Container[TrialState] | None
) -> list[FrozenTrial]:
    """Return of trials what `get_all_trials` of a storage is asked for, in a list of its own."""
    found = [trial for trial in trials if states is None or trial.state in states]
    return copy.deepcopy(found) if deepcopy else found


class WritableTrial:
    """A running trial that a pruner may write to; pruners are given a copy.

    Args:
        study: The trial's study.
        trial: The copy.

    Attributes:
        user_attrs: The attributes of the copy.
    """

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._storage, self._id = study._storage, trial._trial_id
        self.user_attrs = trial.user_attrs

    def set_user_attr(self, key: str, value: Any) -> None:
        """Store an attribute of the trial."""
        self._storage.set_trial_user_attr(self._id, key, value)


def claim(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Take a waiting trial out of the queue, as `ask` takes the first one.

    Args:
        study: The study.
        trial: The trial.

    Returns:
        Whether it is the caller's now; somebody else may have been faster.
    """
    try:
        return study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    except RuntimeError:  # finished since
        return False


class _ViewStorage:
    """A storage that shows its trials through a function; all else is the storage's own.

    It is no `BaseStorage`, whose methods would be found before `__getattr__` is asked.
    """

    def __init__(
        self,
        storage: BaseStorage,
        direction: StudyDirection | None,
        show: Callable[[Sequence[FrozenTrial]], list[FrozenTrial]],
        study_id: int,
        name: str = "",
    ) -> None:
        self._storage = storage
        self._study_id = study_id
        self._direction = direction
        self._show = show
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        if self._direction is None:
            return self._storage.get_study_directions(study_id)
        return [self._direction]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        key = f"{self._name}{key}" if key.startswith(_RUNG) else key
        self._storage.set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        trials = self.get_all_trials(self._study_id, deepcopy=False)
        return next(trial for trial in trials if trial._trial_id == trial_id)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        trial = self._storage.get_trial(trial_id)
        # What a sampler has noted of the running trial it reads again.
        return (self.get_trial(trial_id) if trial.state.is_finished() else trial).system_attrs

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        shown = self._show(self._storage.get_all_trials(study_id, deepcopy=False))
        return asked_for(shown, deepcopy=deepcopy, states=states)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        complete = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            raise ValueError("No trials are completed yet.")
        sign = -1.0 if self._direction == StudyDirection.MAXIMIZE else 1.0

        def badness(trial: FrozenTrial) -> tuple[bool, float]:
            # Ranks change with every trial, so a ranked trial has no value of its own.
            value = _last(trial.intermediate_values) if trial.value is None else trial.value
            return not TrialRecord(trial).feasible, math.inf if math.isnan(value) else sign * value

        return min(complete, key=badness)


class MetricView:
    """A study, shown with one objective whose intermediate values are a curve of each trial.

    Args:
        study: Any study.
        direction: "minimize" or "maximize".
        curve: The function that returns a trial's curve; of a finished trial it is asked once.
        objective: The place, among the study's objectives, of the one that complete trials are
            shown with; where None, they are shown with the last value of their curve.
        name: What tells the view from others of the study. Pruners behind them note the values of
            rungs by the same keys; each is shown its own.
    """

    def __init__(
        self,
        study: optuna.Study,
        direction: str,
        curve: Callable[[FrozenTrial], Curve],
        objective: int | None = None,
        name: str = "",
    ) -> None:
        self._curve = curve
        self._objective = objective
        self._name = f"{PREFIX}{name}:" if name else ""
        self._finished: dict[int, FrozenTrial] = {}
        # The last trial, so far, of every network that was parked, or went on, by its first one.
        self._last_part: dict[int, FrozenTrial] = {}
        # No reference to the study: the pruner keeps a view as long as the study lives.
        shown = StudyDirection[direction.upper()]
        storage = _ViewStorage(study._storage, shown, self._show, study._study_id, self._name)
        self._view = optuna.load_study(
            study_name=study.study_name,
            storage=cast("BaseStorage", storage),
            sampler=study.sampler,
            pruner=study.pruner,
        )

    def ask(self, pruner: optuna.pruners.BasePruner, trial: FrozenTrial) -> bool:
        """Return whether a pruner that is shown the view prunes a running trial.

        Args:
            pruner: The pruner.
            trial: The running trial of the real study.

        Returns:
            The pruner's decision; False if the trial's curve is empty.
        """
        (shown,) = self._show([trial])
        return bool(shown.intermediate_values and pruner.prune(self._view, shown))

    def _show(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        known = self._finished
        return [known.get(trial.number) or self._convert(trial) for trial in trials]

    def _convert(self, trial: FrozenTrial) -> FrozenTrial:
        shown = copy.copy(trial)
        shown.intermediate_values = cast("dict[int, float]", self._curve(trial))
        shown.values = self._values(trial, shown.intermediate_values)
        own = f"{self._name}{_RUNG}"
        shown.system_attrs = {
            key.removeprefix(self._name) if key.startswith(own) else key: value
            for key, value in trial.system_attrs.items()
            if key.startswith(own) or not key.startswith(_RUNG)
        }
        if trial.state.is_finished():
            self._finished[trial.number] = shown
            self._supersede(TrialRecord(trial), shown)
        return shown

    def _supersede(self, found: TrialRecord, shown: FrozenTrial) -> None:
        """Show the trial before one that has gone on with its network as one without a result."""
        if shown.state in FINISHED and (found.parked is not None or found.promotion is not None):
            before = self._last_part.get(found.begun_by)
            self._last_part[found.begun_by] = shown
            if before is not None:
                before.state, before.values, before.intermediate_values = TrialState.FAIL, None, {}

    def _values(self, trial: FrozenTrial, curve: Curve) -> list[float] | None:
        if trial.state not in FINISHED:
            return None
        if trial.state == TrialState.COMPLETE and self._objective is not None:
            return [trial.values[self._objective]]
        if not isinstance(curve, dict):
            return None  # of ranks, which change with every trial
        last = _last(curve)
        return None if math.isnan(last) else [last]


def shown_study(
    study: optuna.Study, show: Callable[[Sequence[FrozenTrial]], list[FrozenTrial]]
) -> optuna.Study:
    """Return a study, for a sampler, whose trials are shown through a function.

    Args:
        study: The study.
        show: The function that returns what is shown, one for each trial that there is.

    Returns:
        The view. What is written to it is written to the study.
    """
    view = copy.copy(study)
    storage = _ViewStorage(study._storage, None, show, study._study_id)
    view._storage = cast("BaseStorage", storage)
    # A sampler with nothing left to propose stops the study; the view keeps no study alive.
    own = WeakMethod(study.stop)

    def stop() -> None:
        if (stops := own()) is not None:
            stops()

    vars(view)["stop"] = stop
    return view


def look_again(view: optuna.Study) -> None:
    """Let a sampler see what has happened since; Optuna keeps the trials for a whole trial."""
    view._thread_local.cached_all_trials = None


def _last(curve: Curve) -> float:
    """Return the value at the last step; NaN if there is none."""
    return curve[max(curve)] if curve else math.nan
