"""Optuna constraints of a trial: limits, the least accuracy, soft pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.samplers import GPSampler
from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna

__all__ = [
    "is_feasible",
    "is_over_limit",
    "mirror_constraints",
    "write_limits",
    "write_minimum",
    "write_pruned",
]

_LIMIT = "flatsearch:max_"
_MIN_ACCURACY = "flatsearch:min_accuracy"
PRUNED_SOFTLY = "flatsearch:pruned"


def write_limits(trial: optuna.Trial, excess: Mapping[str, float]) -> None:
    """Store how far a candidate is over each limit, as a fraction of it, as Optuna's constraints.

    Samplers learn from them where the limits are, and the best trials are those that keep them.
    """
    for name, value in excess.items():
        trial.set_constraint(f"{_LIMIT}{name}", value)


def write_minimum(trial: optuna.Trial, accuracy: float, least: float) -> None:
    """Store as a constraint by how much an accuracy falls short of the least that counts."""
    trial.set_constraint(_MIN_ACCURACY, least - accuracy)


def write_pruned(trial: optuna.Trial, *, pruned: bool) -> None:
    """Store whether a trial that is told as complete was pruned, as a constraint.

    All trials of a study have to have it: samplers want the same constraints everywhere.
    """
    trial.set_constraint(PRUNED_SOFTLY, float(pruned))


def mirror_constraints(trial: optuna.Trial) -> None:
    """Store the constraints' values once more where optuna-dashboard reads them.

    It knows only the list that older versions of Optuna had. Optuna reads both, so that every
    value counts twice: TPE and NSGA-II, which add up what is violated, propose the same; GP, which
    multiplies probabilities, would keep further away, so that its studies have no list. Samplers
    want the same number of constraints everywhere: the first complete trial decides for all.
    """
    # In the order of their names, which is the same in every trial.
    named = sorted(trial.constraints.items())
    values = [value for name, value in named if not is_mirrored(name)]
    complete = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    first = next((t.constraints for t in complete if t.constraints), None)
    if first is None:
        wanted = not isinstance(trial.study.sampler, GPSampler)
    else:
        wanted = any(map(is_mirrored, first))
    if values and wanted:
        trial.storage.set_trial_system_attr(trial._trial_id, "constraints", values)


def is_mirrored(name: str) -> bool:
    """Return whether a constraint is an entry of the list: Optuna names it by its place."""
    return name.isdecimal()


def is_feasible(trial: optuna.Trial | optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial keeps all of its constraints."""
    return all(value <= 0 for value in trial.constraints.values())


def is_over_limit(trial: optuna.trial.FrozenTrial) -> bool:
    """Return whether a trial's candidate costs more than the study allows."""
    return any(v > 0 for key, v in trial.constraints.items() if key.startswith(_LIMIT))
