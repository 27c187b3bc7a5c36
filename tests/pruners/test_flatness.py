"""The default pruner: when it decides, and what it accepts. `test_calibrated.py` has the rule."""

from __future__ import annotations

import optuna
import pytest

import flatsearch
from flatsearch import FlatnessPruner, record

STEPS = 8


def make_study(pruner: FlatnessPruner) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"], pruner=pruner)
    for flatness in range(6):
        trial = study.ask()
        for step in range(STEPS):
            flatsearch.report(trial, step, flatness=float(flatness))
        study.tell(trial, [0.5, 0.5])
    return study


def steps_of_decisions(study: optuna.Study, steps: list[int]) -> list[int]:
    """Return the steps at which a decision was recorded of a trial that asks after each."""
    trial = study.ask()
    for step in steps:
        flatsearch.report(trial, step, flatness=0.5)
        flatsearch.should_prune(trial)
    return [decision.step for decision in record.TrialRecord(study.trials[-1]).decisions]


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({}, range(STEPS), range(STEPS)),
        ({"n_warmup_steps": 2}, range(STEPS), [2, 3, 4, 5, 6, 7]),
        ({"n_warmup_steps": 2, "interval_steps": 3}, range(STEPS), [2, 5]),
        ({"interval_steps": 3}, [1, 4], [1, 4]),  # nothing is reported at the decision point 3
        ({"interval_steps": 3}, [0, 1, 2, 4, 5, 7], [0, 4, 7]),
    ],
)
def test_warmup_and_interval(
    options: dict[str, int], steps: list[int], expected: list[int]
) -> None:
    study = make_study(FlatnessPruner(**options))
    assert steps_of_decisions(study, list(steps)) == list(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_startup_trials": -1}, "`n_startup_trials` must be at least 0 but got -1"),
        ({"n_warmup_steps": -1}, "`n_warmup_steps` must be at least 0 but got -1"),
        ({"interval_steps": 0}, "`interval_steps` must be at least 1 but got 0"),
        ({"best": 0.0}, "`best` must be between 0 and 1 but got 0.0"),
        ({"limit": 1.0}, "`limit` must be between 0 and 1 but got 1.0"),
        ({"audit": 1.5}, "`audit` must be between 0 and 1 but got 1.5"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlatnessPruner(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("percentile", [75.0, 74.9])
def test_a_default_is_no_absence(percentile: float) -> None:
    """Once 75.0 was the calibrated rule, and 74.9 a percentile of the metric."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'percentile'"):
        FlatnessPruner(percentile=percentile)  # type: ignore[call-arg]


def test_does_not_prune_the_sharpest() -> None:
    # On our recordings the sharpest networks after one epoch end up the best.
    study = optuna.create_study(directions=["maximize", "minimize"], pruner=FlatnessPruner())
    for flatness in range(10):
        trial = study.ask()
        flatsearch.report(trial, 0, flatness=float(flatness))
        study.tell(trial, [0.5, 0.5])
    trial = study.ask()
    flatsearch.report(trial, 0, flatness=100.0)
    assert flatsearch.should_prune(trial) is False
