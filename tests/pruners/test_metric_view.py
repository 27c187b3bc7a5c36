"""Optuna's own pruners on any recorded metric, in studies with several objectives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from flatsearch import MetricPruner, report, should_prune

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

DIRECTIONS = {"loss": "minimize", "accuracy": "maximize"}
RULES: dict[str, Callable[[], BasePruner]] = {
    "median": lambda: MedianPruner(n_startup_trials=2),
    "percentile": lambda: PercentilePruner(40.0, n_startup_trials=2, n_warmup_steps=1),
    "halving": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda: HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2),
    "patient": lambda: PatientPruner(MedianPruner(n_startup_trials=2), patience=1),
    "threshold": lambda: ThresholdPruner(upper=0.7, lower=0.3),
    "wilcoxon": lambda: WilcoxonPruner(p_threshold=0.3, n_startup_steps=2),
}


def make(pruner: BasePruner, **options: Any) -> optuna.Study:
    study = optuna.create_study(
        directions=list(DIRECTIONS.values()), pruner=pruner, study_name="s", **options
    )
    study.set_metric_names(list(DIRECTIONS))
    return study


def curves(seed: int, steps: int = 8) -> list[float]:
    return np.random.default_rng(seed).uniform(0, 1, steps).tolist()


def stops_at(study: optuna.Study, values: list[float], metric: str | None) -> int:
    """Run a trial to the step at which it is pruned; their number if it never is."""
    trial = study.ask()
    for step, value in enumerate(values):
        if metric is None:
            trial.report(value, step)
            prune = trial.should_prune()
        else:
            report(trial, step, **{metric: value})
            prune = should_prune(trial)
        if prune:
            study.tell(trial, state=TrialState.PRUNED)
            return step
    single = len(study.directions) == 1
    study.tell(trial, values[-1] if single else [values[-1]] * 2)
    return len(values)


@pytest.mark.parametrize("metric", DIRECTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_decides_as_it_does_on_a_single_objective(rule: str, metric: str) -> None:
    """With several objectives, and the metric as the only one: the same decisions."""
    several = make(MetricPruner(metric, RULES[rule]()))
    single = optuna.create_study(direction=DIRECTIONS[metric], pruner=RULES[rule](), study_name="s")
    stops = []
    for seed in range(25):
        values = curves(seed)
        stops.append(stops_at(several, values, metric))
        assert stops[-1] == stops_at(single, values, None), seed
    assert len(set(stops)) > 1  # it prunes, and not always


@pytest.mark.parametrize("rule", RULES)
def test_another_metric_of_a_single_objective_study(rule: str) -> None:
    study = optuna.create_study(
        direction="maximize",
        pruner=MetricPruner("loss", RULES[rule](), direction="minimize"),
        study_name="s",
    )
    single = optuna.create_study(direction="minimize", pruner=RULES[rule](), study_name="s")
    for seed in range(25):
        assert stops_at(study, curves(seed), "loss") == stops_at(single, curves(seed), None)
    # Nothing that a sampler ranks pruned trials by.
    assert all(not trial.intermediate_values for trial in study.trials)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_gaps_failures_and_numbers_that_are_none(rule: str, seed: int) -> None:
    """The same decisions as in a single-objective study, whatever the curves are like."""
    generator = np.random.default_rng(seed)
    several = make(MetricPruner("loss", RULES[rule]()))
    single = optuna.create_study(direction="minimize", pruner=RULES[rule](), study_name="s")
    for _ in range(30):
        one, two = single.ask(), several.ask()
        steps = np.flatnonzero(generator.random(10) < 0.7).tolist() or [0]
        state, value = TrialState.COMPLETE, 0.5
        for step in steps:
            value = float(generator.uniform(0, 1))
            kind = generator.random()
            value = math.nan if kind < 0.05 else math.inf if kind < 0.1 else value
            one.report(value, step)
            report(two, step, loss=value)
            if one.should_prune() != (prune := should_prune(two)):
                raise AssertionError((one.number, step))
            if prune:
                state = TrialState.PRUNED
                break
        if generator.random() < 0.1:
            state = TrialState.FAIL
        final = value if math.isfinite(value) else 0.5
        complete = state == TrialState.COMPLETE
        single.tell(one, final if complete else None, state=state)
        several.tell(two, [final, 0.5] if complete else None, state=state)
    assert {t.state for t in several.trials} == {t.state for t in single.trials}


@pytest.mark.parametrize("rule", ["halving", "median", "wilcoxon"])
def test_trials_of_another_process_are_seen(rule: str, tmp_path: Path) -> None:
    """Two pruners that share nothing but the storage: curves and rungs of one reach the other."""

    def opened() -> JournalStorage:
        return JournalStorage(JournalFileBackend(f"{tmp_path}/log"))

    here = make(MetricPruner("loss", RULES[rule]()), storage=opened())
    pruner = MetricPruner("loss", RULES[rule]())
    there = optuna.load_study(study_name="s", storage=opened(), pruner=pruner)
    single = optuna.create_study(direction="minimize", pruner=RULES[rule](), study_name="s")
    for seed in range(8):
        study = (here, there)[seed % 2]
        assert stops_at(study, curves(seed), "loss") == stops_at(single, curves(seed), None)
