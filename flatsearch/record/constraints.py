"""Optuna's constraints of a trial, by name, in Optuna 4 and 5 alike.

Optuna 5 stores every constraint as a system attribute of its own. Optuna 4 knows only a list
without names. There both are stored, so that a study means the same under either; the list has the
values in the order of their names.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import optuna

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import BaseTrial

__all__ = [
    "HAS_NAMED",
    "LIMIT",
    "MIN_ACCURACY",
    "PRUNED_SOFTLY",
    "constraint_values",
    "is_named",
    "read_constraints",
    "shown_as_kept",
    "with_constraints_of",
    "write_constraints",
]

# By how much a candidate is over a limit of its cost, as a fraction of the limit; the cost's name
# follows. Samplers learn from them where the limits are.
LIMIT = "flatsearch:max_"
# By how much the accuracy falls short of the least that counts.
MIN_ACCURACY = "flatsearch:min_accuracy"
# 1 for a trial that was pruned and is told as complete, 0 for the others: all trials of such a
# study have it, since samplers want the same constraints everywhere.
PRUNED_SOFTLY = "flatsearch:pruned"
_KEY = "constraints"
# Whether this Optuna has constraints by name, as Optuna 5 does.
HAS_NAMED = hasattr(optuna.Trial, "set_constraint")


def write_constraints(trial: BaseTrial, constraints: Mapping[str, float]) -> None:
    """Store constraints of a running trial; one of no study needs none.

    Args:
        trial: The trial.
        constraints: Values by name; one above 0 is violated.
    """
    if not isinstance(trial, optuna.Trial):
        return
    for name, value in constraints.items():
        if HAS_NAMED:
            trial.set_constraint(name, value)
        else:
            trial.storage.set_trial_system_attr(trial._trial_id, f"{_KEY}:{name}", float(value))
    if not HAS_NAMED:
        trial.storage.set_trial_system_attr(trial._trial_id, _KEY, constraint_values(trial))


def read_constraints(trial: BaseTrial) -> dict[str, float]:
    """Return a trial's constraints by name; the entries of a list are named by their places."""
    if HAS_NAMED:
        return dict(trial.constraints)
    stored: Mapping[str, Any]
    if isinstance(trial, optuna.Trial):
        stored = trial.storage.get_trial_system_attrs(trial._trial_id)
    else:
        stored = trial.system_attrs  # type: ignore[attr-defined]
    listed = {str(place): value for place, value in enumerate(stored.get(_KEY) or ())}
    named = {key[len(_KEY) + 1 :]: v for key, v in stored.items() if key.startswith(f"{_KEY}:")}
    return {**listed, **named}


def shown_as_kept(trial: optuna.trial.FrozenTrial) -> optuna.trial.FrozenTrial:
    """Return a copy of a trial that was pruned softly, as if it had not been."""
    shown = copy.copy(trial)
    attributes = dict(trial.system_attrs)
    key = f"{_KEY}:{PRUNED_SOFTLY}"
    if key in attributes:
        attributes[key] = 0.0
        if _KEY in attributes:
            named = {k: v for k, v in attributes.items() if k.startswith(f"{_KEY}:")}
            attributes[_KEY] = [value for _, value in sorted(named.items())]
        shown.system_attrs = attributes
    return shown


def with_constraints_of(
    trial: optuna.trial.FrozenTrial, other: optuna.trial.FrozenTrial
) -> optuna.trial.FrozenTrial:
    """Return a copy of a trial that has the constraints of another one."""
    shown = copy.copy(trial)
    kept = {k: v for k, v in trial.system_attrs.items() if not k.startswith(_KEY)}
    taken = {k: v for k, v in other.system_attrs.items() if k.startswith(_KEY)}
    shown.system_attrs = {**kept, **taken}
    return shown


def is_named(name: str) -> bool:
    """Return whether a constraint is none of a list, which Optuna names by their places."""
    return not name.isdecimal()


def constraint_values(trial: optuna.Trial | optuna.trial.FrozenTrial) -> list[float]:
    """Return a trial's constraints as a list, for the `constraints_func` of Optuna 4's samplers.

    Args:
        trial: The trial.

    Returns:
        The values in the order of the constraints' names, which is the same in all trials.

    Example:
        >>> from optuna.samplers import TPESampler
        >>> if not HAS_NAMED:
        ...     sampler = TPESampler(constraints_func=constraint_values)
    """
    return [value for name, value in sorted(read_constraints(trial).items()) if is_named(name)]
