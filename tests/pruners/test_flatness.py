from __future__ import annotations

import math
from typing import TYPE_CHECKING

import optuna
import pytest

import flatsearch
from flatsearch import FlatnessPruner

if TYPE_CHECKING:
    from collections.abc import Sequence

SINGLE, MULTI = ["maximize"], ["maximize", "minimize"]


def make_study(
    curves: Sequence[Sequence[float]], pruner: FlatnessPruner, directions: list[str] = MULTI
) -> optuna.Study:
    """Return a study with complete trials whose flatness followed the given curves."""
    study = optuna.create_study(directions=directions, pruner=pruner)
    for curve in curves:
        trial = study.ask()
        for step, value in enumerate(curve):
            flatsearch.report(trial, step, flatness=value)
        study.tell(trial, [0.5] * len(directions))
    return study


def decide(study: optuna.Study, curve: Sequence[float]) -> bool:
    """Return the decision on a new trial after its last value."""
    trial = study.ask()
    for step, value in enumerate(curve):
        flatsearch.report(trial, step, flatness=value)
    return flatsearch.should_prune(trial)


FOUR = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]


@pytest.mark.parametrize("directions", [SINGLE, MULTI])
@pytest.mark.parametrize(
    ("direction", "percentile", "value", "pruned"),
    [
        ("maximize", 50.0, 1.5, True),
        ("maximize", 50.0, 2.5, False),
        ("minimize", 50.0, 3.5, True),
        ("minimize", 50.0, 2.5, False),
        ("maximize", 75.0, 0.5, True),
        ("maximize", 75.0, 1.5, False),
        ("maximize", 100.0, 0.5, True),  # worse than all of them is outside the best 100%
        ("maximize", 100.0, 1.0, False),
        ("minimize", 0.0, 1.5, True),
        ("minimize", 0.0, 1.0, False),
        ("maximize", 50.0, math.inf, False),
        ("minimize", 50.0, math.inf, True),
        ("maximize", 50.0, math.nan, True),
        ("minimize", 50.0, math.nan, True),
    ],
)
def test_percentile_at_the_same_step(
    direction: str, percentile: float, value: float, pruned: bool, directions: list[str]
) -> None:
    pruner = FlatnessPruner(n_startup_trials=4, direction=direction, percentile=percentile)
    assert decide(make_study(FOUR, pruner, directions), [value]) is pruned


def test_compares_with_the_same_step_not_the_last() -> None:
    study = make_study(FOUR, FlatnessPruner(n_startup_trials=4, percentile=50.0))
    assert decide(study, [5.0]) is False  # best of all at step 0, small beside step 1
    assert decide(study, [5.0, 15.0]) is True


def test_startup_trials_count_complete_ones() -> None:
    pruner = FlatnessPruner(n_startup_trials=5, percentile=50.0)
    study = make_study(FOUR, pruner)
    pruned = study.ask()
    flatsearch.report(pruned, 0, flatness=0.1)
    study.tell(pruned, state=optuna.trial.TrialState.PRUNED)
    assert decide(study, [0.5]) is False
    fifth = study.ask()
    study.tell(fifth, [0.5, 0.5])
    assert decide(study, [0.5]) is True


def test_no_complete_trial_no_pruning() -> None:
    study = make_study([], FlatnessPruner(n_startup_trials=0))
    assert decide(study, [math.nan]) is False


def test_pruned_trials_count_as_competitors() -> None:
    # Among survivors alone the bar would rise with every pruned trial.
    study = make_study(FOUR, FlatnessPruner(n_startup_trials=4, percentile=50.0))
    assert decide(study, [1.5]) is True
    for value in (0.1, 0.2, 0.3, 0.4):
        trial = study.ask()
        flatsearch.report(trial, 0, flatness=value)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert decide(study, [1.5]) is False


def test_failed_and_running_trials_do_not_count() -> None:
    study = make_study(FOUR, FlatnessPruner(n_startup_trials=4, percentile=50.0))
    for state in (optuna.trial.TrialState.FAIL, None):
        for _ in range(10):
            trial = study.ask()
            flatsearch.report(trial, 0, flatness=0.1)
            if state is not None:
                study.tell(trial, state=state)
    assert decide(study, [1.5]) is True


def test_warmup_and_interval() -> None:
    curves = [[v] * 8 for v in (1.0, 2.0, 3.0, 4.0)]
    pruner = FlatnessPruner(n_startup_trials=4, n_warmup_steps=2, interval_steps=3, percentile=50.0)
    study = make_study(curves, pruner)
    decisions = [decide(study, [0.5] * (step + 1)) for step in range(8)]
    assert decisions == [False, False, True, False, False, True, False, False]


def test_a_missed_decision_is_made_up_for() -> None:
    curves = [[v] * 8 for v in (1.0, 2.0, 3.0, 4.0)]
    pruner = FlatnessPruner(n_startup_trials=4, interval_steps=3, percentile=50.0)
    study = make_study(curves, pruner)
    trial = study.ask()
    flatsearch.report(trial, 1, flatness=0.5)
    flatsearch.report(trial, 4, flatness=0.5)  # nothing was reported at the decision point 3
    assert flatsearch.should_prune(trial) is True


def test_n_min_trials_counts_trials_at_the_step() -> None:
    curves = [[1.0, 1.0], [2.0, 2.0], [3.0], [4.0]]
    pruner = FlatnessPruner(n_startup_trials=4, n_min_trials=3, percentile=50.0)
    study = make_study(curves, pruner)
    assert decide(study, [0.5]) is True
    assert decide(study, [0.5, 0.5]) is False


def test_other_metric() -> None:
    pruner = FlatnessPruner(
        n_startup_trials=0, metric="accuracy", direction="maximize", percentile=50.0
    )
    study = optuna.create_study(directions=MULTI, pruner=pruner)
    for accuracy in (0.5, 0.9):
        trial = study.ask()
        flatsearch.report(trial, 0, accuracy=accuracy, flatness=1.0)
        study.tell(trial, [accuracy, 1.0])
    trial = study.ask()
    assert flatsearch.should_prune(trial) is False
    flatsearch.report(trial, 0, flatness=0.0)
    assert flatsearch.should_prune(trial) is False
    flatsearch.report(trial, 1, accuracy=0.1)
    assert flatsearch.should_prune(trial) is False  # nobody else reached step 1
    trial = study.ask()
    flatsearch.report(trial, 0, accuracy=0.1, flatness=1.0)
    assert flatsearch.should_prune(trial) is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_startup_trials": -1}, "`n_startup_trials` must be at least 0 but got -1"),
        ({"n_warmup_steps": -1}, "`n_warmup_steps` must be at least 0 but got -1"),
        ({"interval_steps": 0}, "`interval_steps` must be at least 1 but got 0"),
        ({"n_min_trials": 0}, "`n_min_trials` must be at least 1 but got 0"),
        ({"percentile": 101}, "`percentile` must be between 0 and 100 but got 101"),
        ({"direction": "maximise"}, "unknown direction 'maximise' .did you mean 'maximize'"),
        ({"rule": "median"}, "unknown rule 'median'"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlatnessPruner(**options)  # type: ignore[arg-type]


def test_default_does_not_prune_the_sharpest() -> None:
    # On our recordings the sharpest networks after one epoch end up the best.
    for pruner in (FlatnessPruner(), FlatnessPruner(rule="percentile")):
        study = make_study([[float(v)] for v in range(10)], pruner)
        assert decide(study, [100.0]) is False
    assert decide(study, [-1.0]) is True


def test_the_default_rule_is_the_calibrated_one_unless_something_else_is_judged() -> None:
    assert FlatnessPruner()._rule == FlatnessPruner(n_startup_trials=3)._rule == "calibrated"
    for arguments in (
        {"metric": "loss"}, {"metric": None}, {"direction": "minimize"}, {"percentile": 50.0},
        {"n_min_trials": 2},
    ):  # fmt: skip
        assert FlatnessPruner(**arguments)._rule == "percentile"  # type: ignore[arg-type]


def test_report_feeds_optuna_its_own_objective_only() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(0))
    study.set_metric_names(["accuracy"])
    trial = study.ask()
    flatsearch.report(trial, 0, accuracy=0.9, flatness=5.0)
    assert study.trials[0].intermediate_values == {0: 0.9}
    study.tell(trial, 0.9)
    worse = study.ask()
    flatsearch.report(worse, 0, accuracy=0.1, flatness=50.0)
    assert flatsearch.should_prune(worse) is True


def test_multi_objective_trials_have_no_intermediate_values() -> None:
    # With one, the default sampler fails on a pruned trial.
    study = make_study(FOUR, FlatnessPruner(n_startup_trials=4, percentile=50.0))
    assert all(trial.intermediate_values == {} for trial in study.trials)


def test_the_default_sampler_survives_pruned_trials() -> None:
    study = optuna.create_study(
        directions=MULTI,
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4),
        pruner=FlatnessPruner(n_startup_trials=2, percentile=50.0),
    )

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        for step in range(3):
            flatsearch.report(trial, step, flatness=x)
            if flatsearch.should_prune(trial):
                raise optuna.TrialPruned
        return x, 1 - x

    study.optimize(objective, n_trials=25)
    states = {trial.state for trial in study.trials}
    assert states == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}


@pytest.mark.parametrize(
    ("step", "metrics", "error"),
    [
        (-1, {"flatness": 1.0}, ValueError),
        (0, {}, ValueError),
        (0, {"flatness": "flat"}, TypeError),
        (0, {"flatness": None}, TypeError),
    ],
)
def test_wrong_reports(step: int, metrics: dict[str, object], error: type[Exception]) -> None:
    trial = optuna.create_study(directions=MULTI).ask()
    with pytest.raises(error):
        flatsearch.report(trial, step, **metrics)  # type: ignore[arg-type]
    assert trial.user_attrs == {}


def test_numpy_and_torch_numbers_are_stored_as_json(tmp_path: object) -> None:
    import numpy as np
    import torch

    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/s.db", directions=MULTI)
    trial = study.ask()
    flatsearch.report(trial, 0, a=np.float32(0.5), b=torch.tensor(2.0), c=3, d=math.nan)
    values = study.trials[0].user_attrs["flatsearch:step:0"]
    assert values == {"a": 0.5, "b": 2.0, "c": 3.0, "d": "nan"}
