"""Reporting metrics and asking the pruner, in studies with any number of objectives."""

from __future__ import annotations

import math
import warnings

import optuna
import pytest

import flatsearch
from flatsearch import MetricPruner
from flatsearch.record import TrialRecord

MULTI = ["maximize", "minimize"]


def median(metric: str, n_startup_trials: int) -> MetricPruner:
    rule = optuna.pruners.MedianPruner(n_startup_trials)
    return MetricPruner(metric, rule, direction="minimize")


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


def test_an_objective_runs_again_without_a_study() -> None:
    study = optuna.create_study(directions=MULTI)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        flatsearch.report(trial, 0, flatness=x)
        pruned = flatsearch.should_prune(trial)
        flatsearch.mark_pruned(trial, pruned=pruned)
        return x, float(pruned)

    study.optimize(objective, n_trials=1)
    again, fixed = study.best_trials[0], optuna.trial.FixedTrial({"x": 0.5})
    assert objective(again) == tuple(again.values)
    assert objective(fixed) == (0.5, 0.0)
    assert fixed.user_attrs == {"flatsearch:step:0": {"flatness": 0.5}}


def test_multi_objective_trials_have_no_intermediate_values() -> None:
    # With one, the default sampler fails on a pruned trial.
    study = optuna.create_study(directions=MULTI)
    trial = study.ask()
    flatsearch.report(trial, 0, flatness=1.0)
    study.tell(trial, [0.5, 0.5])
    assert all(trial.intermediate_values == {} for trial in study.trials)


def test_the_default_sampler_survives_pruned_trials() -> None:
    study = optuna.create_study(
        directions=MULTI,
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=4),
        pruner=median("flatness", 2),
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


def test_a_pruner_that_sees_nothing_is_said() -> None:
    """Optuna's own, which are the default, in a study of several objectives."""
    trial = optuna.create_study(directions=MULTI).ask()
    flatsearch.report(trial, 0, accuracy=0.5)
    with pytest.warns(UserWarning, match="MedianPruner can never prune in a study of several"):
        assert not flatsearch.should_prune(trial)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pruner in (optuna.pruners.NopPruner(), median("accuracy", 0)):
            flatsearch.should_prune(optuna.create_study(directions=MULTI, pruner=pruner).ask())


def test_metrics_of_a_step_may_come_one_after_the_other() -> None:
    study = optuna.create_study(directions=MULTI, pruner=median("train", 0))
    trial = study.ask()
    flatsearch.report(trial, 0, train=1.0)
    study.tell(trial, [0.5, 0.5])
    trial = study.ask()
    flatsearch.report(trial, 0, train=9.0)
    flatsearch.report(trial, 0, accuracy=0.5)
    assert flatsearch.should_prune(trial)
    flatsearch.report(trial, 0, train=0.5)  # the last value counts
    assert not flatsearch.should_prune(trial)
    assert TrialRecord(trial).steps == {0: {"train": 0.5, "accuracy": 0.5}}
