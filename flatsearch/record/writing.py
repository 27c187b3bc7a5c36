"""Writing to the record of a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatsearch.record.facts import Place, to_numbers, write
from flatsearch.record.trial import STEP, TrialRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna
    from optuna.trial import BaseTrial

__all__ = ["clear_steps", "write_step", "write_trial"]


def write_trial(trial: Place, **facts: Any) -> None:
    """Store facts of a running trial.

    Args:
        trial: The trial.
        **facts: Values of `TrialRecord`'s attributes by their names, those from `worker` on.
    """
    write(TrialRecord, trial, facts)


def write_step(trial: BaseTrial, step: int, metrics: Mapping[str, float]) -> None:
    """Store one step's metrics.

    Args:
        trial: The running trial.
        step: The number of the step, 0 for the first.
        metrics: Numbers by name.

    Raises:
        ValueError: If the step is negative or there are no metrics.
        TypeError: If a metric is not a number.
    """
    if step < 0:
        raise ValueError(f"`step` must be at least 0 but got {step}")
    if not metrics:
        raise ValueError("report at least one metric, for example accuracy=0.9")
    try:
        values = to_numbers(metrics)
    except (TypeError, ValueError):
        raise TypeError(f"metrics must be numbers but got {dict(metrics)}") from None
    key = f"{STEP}{step}"
    # Metrics may come one after the other; of one that comes twice the last value counts.
    trial.set_user_attr(key, {**trial.user_attrs.get(key, {}), **values})


def clear_steps(trial: optuna.Trial) -> None:
    """Forget the steps of a trial that begins anew.

    Args:
        trial: The running trial.
    """
    for step in TrialRecord(trial).steps:
        trial.set_user_attr(f"{STEP}{step}", {})
