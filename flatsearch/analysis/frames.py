"""A study as tables of data: a row for every trial, and a row for every epoch of one."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from flatsearch.analysis.summary import StudySummary, outcome, summarise
from flatsearch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import optuna
    import pandas

    from flatsearch.record import TrialRecord

__all__ = ["TRIAL_KEYS", "epochs_frame", "study_frame", "write_epochs", "write_trials"]

# The columns that every study has, in words; the others have the names of what was recorded.
TRIAL_KEYS = {
    "trial": "Optuna's number of the trial; the index",
    "state": "Optuna's state: COMPLETE, PRUNED, FAIL, RUNNING or WAITING",
    "outcome": "the state, or DUPLICATE, OVER LIMIT, DIVERGED, PARKED or PROMOTED, which say more",
    "front": "whether the trial is on the Pareto front; of one objective, whether it is the best",
    "feasible": "whether it keeps all limits and has learnt what a trial of the front must; empty"
    " where it was not trained to the end",
    "epochs": "epochs that its network has been trained, those before it was parked included",
    "seconds": "seconds from its start to its end",
    "duplicate_of": "the trial of the same network whose result it took over",
    "reason": "why the trial failed or was stopped",
}
_EPOCH_KEYS = ("trial", "epoch")


def study_frame(study: optuna.Study | StudySummary) -> pandas.DataFrame:
    """Return a study as a table with a row for every trial.

    Args:
        study: Any study of Optuna, or its summary.

    Returns:
        A frame, indexed by `trial`, with the columns `state`, `outcome`, `front`, `feasible`,
        `epochs`, `seconds`, `duplicate_of` and `reason`; then the objectives by their names; what
        was measured at the end (`accuracy`, `loss`, `flatness`, `parameters`, ...);
        `architecture.NAME` for every value of the architecture and `recipe.NAME` for every setting
        that was searched with it, or `params.NAME` for Optuna's parameters in a study that is not
        flatsearch's. What a trial has not is missing.

    Raises:
        UsageError: If pandas is not installed.
    """
    return _frame(*_trials(_summary(study)), ["trial"])


def epochs_frame(study: optuna.Study | StudySummary) -> pandas.DataFrame:
    """Return the learning curves of a study as a table with a row for every epoch.

    Args:
        study: Any study of Optuna, or its summary.

    Returns:
        A frame, indexed by `trial` and `epoch` (1 for the first), with a column for every metric
        that was reported, by its name.

    Raises:
        UsageError: If pandas is not installed.
    """
    return _frame(*_epochs(_summary(study)), list(_EPOCH_KEYS))


def write_trials(summary: StudySummary, path: Path) -> None:
    """Write the table of `study_frame` as comma-separated values; what is missing is empty."""
    _write(*_trials(summary), path)


def write_epochs(summary: StudySummary, path: Path) -> None:
    """Write the table of `epochs_frame` as comma-separated values; what is missing is empty."""
    _write(*_epochs(summary), path)


def _trials(summary: StudySummary) -> tuple[list[str], list[dict[str, Any]]]:
    rows = [_trial(summary, trial) for trial in summary.trials]
    return _columns(TRIAL_KEYS, rows), rows


def _epochs(summary: StudySummary) -> tuple[list[str], list[dict[str, Any]]]:
    rows = [
        {"trial": trial.number, "epoch": step + 1, **metrics}
        for trial in summary.trials
        for step, metrics in trial.steps.items()
    ]
    return _columns(_EPOCH_KEYS, rows), rows


def _columns(first: Iterable[str], rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys([*first, *(key for row in rows for key in row)]))


def _summary(study: optuna.Study | StudySummary) -> StudySummary:
    return study if isinstance(study, StudySummary) else summarise(study, statistics=False)


def _frame(keys: list[str], rows: list[dict[str, Any]], index: list[str]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise UsageError("frames need pandas: pip install 'flatsearch[pandas]'") from None
    return pandas.DataFrame(rows, columns=keys).set_index(index)


def _write(keys: list[str], rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)


def _trial(summary: StudySummary, trial: TrialRecord) -> dict[str, Any]:
    named = {"params": trial.params}
    if trial.architecture is not None:
        named = {"architecture": trial.architecture.values, "recipe": trial.recipe}
    return {
        "trial": trial.number,
        "state": trial.state,
        "outcome": outcome(trial),
        "front": trial.number in summary.front,
        "feasible": trial.feasible if trial.complete or trial.constraints else None,
        "epochs": len(trial.steps),
        "seconds": trial.seconds,
        "duplicate_of": trial.duplicate_of,
        "reason": trial.failure or trial.stopped,
        **trial.metrics,
        **dict(zip(summary.metric_names, trial.values or (), strict=False)),
        **{f"{kind}.{key}": x for kind, values in named.items() for key, x in values.items()},
    }
