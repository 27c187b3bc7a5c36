"""Pruned trials that samplers learn from, and a least accuracy for the front."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import flatsearch
from flatsearch import (
    FlatnessObjective,
    MetricPruner,
    ParetoPruner,
    RunSettings,
    SettingsError,
    record,
)
from flatsearch.analysis.summary import summarise
from flatsearch.data.loading import load_data
from flatsearch.reports.verdicts import front_meaning
from flatsearch.search.constraints import sampler_options
from tests.fakes import Tiny, gp_takes_several

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatsearch.data.splits import ImageData

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class At(optuna.pruners.BasePruner):
    """Prunes given trials after their first step."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number in self.numbers


def test_a_softly_pruned_trial_is_complete_and_violates_a_constraint(digits: ImageData) -> None:
    settings = RunSettings(epochs=3, min_accuracy=0.0)
    objective = FlatnessObjective(Tiny(), digits, settings=settings, prune_mode="soft")
    study = optuna.create_study(directions=objective.directions, pruner=At(1))
    study.optimize(objective, n_trials=3)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    pruned = record.TrialRecord(study.trials[1])
    assert list(pruned.steps) == [0]
    assert pruned.values == (pruned.steps[0]["accuracy"], pruned.steps[0]["flatness"])
    assert (pruned.pruned, pruned.complete, pruned.feasible) == (True, False, False)
    assert pruned.stopped == "pruned after epoch 1"
    assert pruned.failure is None  # it is complete
    assert record.TrialRecord(study.trials[1]).finished  # a part of the budget
    assert 1 not in {t.number for t in study.best_trials}
    assert 1 not in summarise(study).front


def test_hard_is_the_default(digits: ImageData) -> None:
    objective = FlatnessObjective(Tiny(), digits, epochs=2)
    study = optuna.create_study(directions=objective.directions, pruner=At(0))
    study.optimize(objective, n_trials=1)
    assert study.trials[0].state == TrialState.PRUNED
    with pytest.raises(SettingsError, match=r"unknown prune mode 'softly' .did you mean 'soft'"):
        FlatnessObjective(Tiny(), digits, prune_mode="softly")  # type: ignore[arg-type]


def test_what_is_better_than_guessing(digits: ImageData) -> None:
    counts = np.bincount(digits.validation.targets.numpy())
    p, n = counts.max() / counts.sum(), counts.sum()
    assert digits.guessing_accuracy() == pytest.approx(p + 3 * math.sqrt(p * (1 - p) / n))
    assert p < digits.guessing_accuracy() < 0.2
    deviation = math.sqrt(sum(0.09 / counts)) / 10  # of the mean of ten shares, each of 1/10
    assert digits.guessing_balanced_accuracy() == pytest.approx(0.1 + 3 * deviation)


def test_what_is_learnt_is_judged_by_the_balanced_accuracy_where_that_is_the_objective() -> None:
    images = np.random.default_rng(0).integers(0, 255, (200, 8, 8)).astype(np.uint8)
    data = load_data((images, (np.arange(200) % 20 == 0).astype(int)))
    objective = FlatnessObjective(Tiny(), data, ("balanced_accuracy", "flatness"), epochs=1)
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert objective.directions == ["maximize", "minimize"]
    # All are taken for the frequent class: 95% right, and no better than a guess.
    assert record.TrialRecord(trial).metrics["accuracy"] == pytest.approx(0.95, abs=0.03)
    assert trial.values[0] == record.TrialRecord(trial).steps[0]["balanced_accuracy"] == 0.5
    assert not record.TrialRecord(trial).feasible
    least = record.StudyRecord(study).least
    assert least == (data.guessing_balanced_accuracy(), 0.9, "balanced_accuracy")
    assert least is not None
    assert summarise(study).least_accuracy == pytest.approx(least.beside(0.5))
    assert "below a balanced accuracy of" in front_meaning(summarise(study))


def test_a_study_of_balanced_accuracy_alone_has_no_least(digits: ImageData) -> None:
    both = ("balanced_accuracy", "accuracy")
    assert FlatnessObjective(Tiny(), digits, both, epochs=1).least is None


@pytest.mark.parametrize(
    ("least", "feasible"), [(None, False), (0.0, True), (0.05, True), (0.9, False)]
)
def test_a_constant_predictor_is_not_on_the_front(
    digits: ImageData, least: float | None, feasible: bool
) -> None:
    class Constant(Tiny):
        def build(self, architecture: Any, in_channels: int, num_classes: int) -> Any:
            model = super().build(architecture, in_channels, num_classes)
            for parameter in model.parameters():
                parameter.data.zero_()
            return model

    settings = RunSettings(epochs=1, min_accuracy=least, lr=1e-12)
    objective = FlatnessObjective(Constant(), digits, settings=settings)
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.values[1] == pytest.approx(0, abs=1e-9)  # perfectly flat
    assert record.TrialRecord(trial).feasible == feasible
    assert len(study.best_trials) == len(summarise(study).front) == int(feasible)


@pytest.mark.parametrize("earlier", [True, False])
def test_a_network_far_behind_the_best_is_not_on_the_front(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    monkeypatch.setattr(type(digits), "guessing_accuracy", lambda _: 0.0)
    objective = FlatnessObjective(Tiny(), digits, epochs=1)
    study = optuna.create_study(directions=objective.directions)
    if earlier:  # a study that began under a version that knew no such thing goes on without it
        record.write_study(study, settings=objective.shared_settings())
    study.add_trial(optuna.create_trial(values=[1.0, 1.0], user_attrs={"accuracy": 1.0}))
    study.optimize(objective, n_trials=1)
    assert study.trials[1].values[0] < 0.8
    assert record.TrialRecord(study.trials[1]).feasible == earlier
    assert (record.StudyRecord(study).least is None) == earlier


def test_a_study_of_accuracy_alone_has_no_least(digits: ImageData) -> None:
    objective = FlatnessObjective(Tiny(), digits, objectives=["accuracy"], epochs=1)
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=1)
    assert record.read_constraints(study.trials[0]) == {}


HEED = sampler_options()
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, **HEED),
    "tpe-group": lambda seed: optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=True, **HEED
    ),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=8, **HEED),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed, population_size=8, **HEED),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=8, **HEED),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=seed),
    "brute-force": lambda seed: optuna.samplers.BruteForceSampler(seed=seed),
}


def synthetic(soft: bool) -> Callable[[optuna.Trial], tuple[float, float]]:
    """Two objectives of x and y on a grid, with curves that fall to them: x near 1 is best."""

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_int("x", 0, 20) / 20
        y = trial.suggest_int("y", 0, 20) / 20
        values = ((1 - x) ** 2 + 0.1 * y, (1 - x) ** 2 + 0.1 * (1 - y))
        for step in range(4):
            report = {"a": values[0] + 1 / (step + 1), "b": values[1] + 1 / (step + 1)}
            flatsearch.report(trial, step, **report)
            if step < 3 and flatsearch.should_prune(trial):
                if not soft:
                    raise optuna.TrialPruned
                flatsearch.mark_pruned(trial, pruned=True)
                return report["a"], report["b"]
        if soft:
            flatsearch.mark_pruned(trial, pruned=False)
        return values

    return objective


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize(
    "sampler",
    [pytest.param(name, marks=gp_takes_several if name == "gp" else ()) for name in SAMPLERS],
)
def test_samplers_go_on_and_do_not_repeat_themselves(sampler: str, mode: str) -> None:
    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=SAMPLERS[sampler](0),
        pruner=ParetoPruner(optuna.pruners.MedianPruner(4)),
    )
    study.set_metric_names(["a", "b"])
    n_trials = 12 if sampler == "gp" else 30  # GP thinks for a second
    study.optimize(synthetic(mode == "soft"), n_trials=n_trials)
    early = [t for t in study.trials if record.TrialRecord(t).pruned]
    assert len(study.trials) == n_trials
    assert 0 < len(early) < n_trials
    if mode == "hard":
        assert all(t.state == TrialState.PRUNED for t in early)
    # No endless repetition. GP ignores pruned trials, and proposes the same point again: soft.
    most = max(sum(t.params == other.params for t in study.trials) for other in study.trials)
    if (sampler, mode) != ("gp", "hard"):
        assert most <= 0.3 * n_trials, most
    good = [t for t in study.best_trials if t.params["x"] >= 15]
    assert good or sampler in {"random", "qmc", "brute-force"}


def distance(trial: optuna.trial.FrozenTrial) -> float:
    """How far a proposal is from the best region, whatever became of its trial."""
    return sum((trial.params[name] - 0.7) ** 2 for name in "wxyz")


def parabolas(soft: bool) -> Callable[[optuna.Trial], tuple[float, float]]:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        point = [trial.suggest_float(name, 0, 1) for name in "wxyz"]
        base = sum((value - 0.7) ** 2 for value in point)
        values = (base + 0.02 * point[0], base + 0.02 * (1 - point[0]))
        for step in range(4):
            a, b = (value + 0.1 / (step + 1) for value in values)
            flatsearch.report(trial, step, a=a, b=b)
            if step < 3 and flatsearch.should_prune(trial):
                if not soft:
                    raise optuna.TrialPruned
                flatsearch.mark_pruned(trial, pruned=True)
                return a, b
        if soft:
            flatsearch.mark_pruned(trial, pruned=False)
        return values

    return objective


@functools.cache
def proposals(sampler: str, *, soft: bool) -> float:
    """Return the mean distance of the last proposals of some studies."""
    found: list[float] = []
    slow = sampler == "gp"
    for seed in range(1 if slow else 2):
        study = optuna.create_study(
            directions=["minimize", "minimize"],
            sampler=SAMPLERS[sampler](seed),
            pruner=ParetoPruner(optuna.pruners.MedianPruner(8)),
        )
        study.set_metric_names(["a", "b"])
        study.optimize(parabolas(soft), n_trials=18 if slow else 40)
        found += [distance(trial) for trial in study.trials[-8 if slow else -12 :]]
    return float(np.mean(found))


# GP with hard pruning is not here: it ignores most of what it has tried.
@pytest.mark.parametrize(
    ("sampler", "soft"),
    [(name, soft) for name in ("tpe", "tpe-group", "nsga2", "nsga3") for soft in (False, True)]
    + [pytest.param("gp", True, marks=gp_takes_several)],
)
def test_samplers_that_learn_beat_random_in_spite_of_pruning(sampler: str, soft: bool) -> None:
    at_random = proposals("random", soft=soft)
    assert proposals(sampler, soft=soft) < 0.8 * at_random


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("sampler", ["cmaes", "grid"])
def test_samplers_of_single_objective_studies(sampler: str, mode: str) -> None:
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=0),
        "grid": lambda: optuna.samplers.GridSampler(
            {"x": [i / 5 for i in range(6)], "y": [i / 4 for i in range(5)]}, seed=0
        ),
    }

    def objective(trial: optuna.Trial) -> float:
        value = (trial.suggest_float("x", 0, 1) - 1) ** 2 + trial.suggest_float("y", 0, 1)
        for step in range(4):
            flatsearch.report(trial, step, a=value + 1 / (step + 1))
            if step < 3 and flatsearch.should_prune(trial):
                if mode == "hard":
                    raise optuna.TrialPruned
                flatsearch.mark_pruned(trial, pruned=True)
                return value + 1 / (step + 1)
        if mode == "soft":
            flatsearch.mark_pruned(trial, pruned=False)
        return value

    study = optuna.create_study(
        sampler=samplers[sampler](),
        pruner=MetricPruner("a", optuna.pruners.MedianPruner(4)),
    )
    study.set_metric_names(["a"])
    study.optimize(objective, n_trials=40)
    assert len(study.trials) == {"cmaes": 40, "grid": 30}[sampler]
    assert any(record.TrialRecord(t).pruned for t in study.trials)
    assert study.best_value < 0.3
