"""Any pruner on the Pareto rank of several recorded metrics."""

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
from optuna.trial import TrialState

from flatsearch import MetricPruner, ParetoPruner, record, report, should_prune

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

RULES: dict[str, Callable[[], BasePruner]] = {
    "median": lambda: MedianPruner(2),
    "percentile": lambda: PercentilePruner(40.0, 2, 1),
    "halving": lambda: SuccessiveHalvingPruner(1, 2),
    "hyperband": lambda: HyperbandPruner(1, 8, 2),
    "patient": lambda: PatientPruner(MedianPruner(2), 1),
    "threshold": lambda: ThresholdPruner(upper=0.7, lower=0.3),
    "wilcoxon": lambda: WilcoxonPruner(p_threshold=0.3, n_startup_steps=2),
}


def completed(study: optuna.Study, *steps: dict[str, float]) -> None:
    trial = study.ask()
    for step, metrics in enumerate(steps):
        report(trial, step, **metrics)
    study.tell(trial, [0.5, 0.5])


def pareto(rule: BasePruner | None = None, **directions: str) -> optuna.Study:
    pruner = ParetoPruner(rule or MedianPruner(0))
    study = optuna.create_study(directions=list(directions.values()), pruner=pruner)
    study.set_metric_names(list(directions))
    return study


def running(study: optuna.Study, *steps: dict[str, float]) -> bool:
    trial = study.ask()
    for step, metrics in enumerate(steps):
        report(trial, step, **metrics)
    return should_prune(trial)


@pytest.mark.parametrize(
    ("way", "others", "own", "pruned"),
    [
        # On the front of two minimised metrics; dominated by all.
        ("minimize", [(v, v) for v in (5, 6, 7, 8)], (0.1, 0.1), False),
        ("minimize", [(v, v) for v in (0.1, 0.2, 0.3, 0.4)], (10, 10), True),
        # The worst loss with the best accuracy is on the front; bad in both is not.
        ("maximize", [(v, 0.1) for v in (2, 3, 4, 5)], (10, 0.9), False),
        ("maximize", [(v, 0.9) for v in (0.1, 0.2, 0.3, 0.4)], (5, 0.1), True),
        # A tie in rank is broken by the volume that is dominated.
        ("minimize", [(1, 1)] + [(3, 3)] * 5, (2, 4), False),
        ("minimize", [(1, 1)] + [(2, 4)] * 5, (3, 3), True),
        # NaN is the worst there is.
        ("minimize", [(v, v) for v in (5, 6, 7, 8)], (math.nan, 9), True),
        ("minimize", [(math.nan, 1.0)] * 4, (2, 2), False),
    ],
)
def test_pareto_rank(
    way: str, others: list[tuple[float, float]], own: tuple[float, float], pruned: bool
) -> None:
    study = pareto(loss="minimize", other=way)
    for loss, other in others:
        completed(study, {"loss": loss, "other": other})
    assert running(study, {"loss": own[0], "other": own[1]}) == pruned


def test_a_trial_that_was_on_the_front_once_is_kept_by_the_median() -> None:
    for first, second in ((5.0, 0.01), (0.01, 10.0)):
        study = pareto(loss="minimize", other="minimize")
        reference = (0.1, 5.0) if first > second else (5.0, 0.1)
        for _ in range(4):
            completed(study, *({"loss": v, "other": v} for v in reference))
        assert not running(study, *({"loss": v, "other": v} for v in (first, second)))


def test_a_mapping_ranks_metrics_that_are_not_objectives() -> None:
    pruner = ParetoPruner(MedianPruner(0), metrics={"a": "minimize", "b": "maximize"})
    study = optuna.create_study(directions=["minimize"] * 2, pruner=pruner)
    for value in (1.0, 2.0, 3.0):
        completed(study, {"a": value, "b": 1.0})
    assert running(study, {"a": 4.0, "b": 0.5})
    assert not running(study, {"a": 4.0, "b": 2.0})
    # A step without all of the metrics does not count.
    assert not running(study, {"a": 9.0})


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_on_the_pareto_rank(rule: str) -> None:
    study = pareto(RULES[rule](), loss="minimize", accuracy="maximize")
    for seed in range(20):
        trial = study.ask()
        values = np.random.default_rng(seed).uniform(0, 1, (8, 2))
        for step, (loss, accuracy) in enumerate(values):
            report(trial, step, loss=loss, accuracy=accuracy)
            if should_prune(trial):
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, values[-1].tolist())
    states = {trial.state for trial in study.trials}
    assert TrialState.PRUNED in states or rule in {"wilcoxon", "patient"}


def test_named_objectives_are_the_default() -> None:
    study = optuna.create_study(directions=["minimize"] * 2, pruner=ParetoPruner())
    with pytest.raises(ValueError, match=r"call study\.set_metric_names"):
        running(study, {"a": 1.0, "b": 1.0})


# What a study holds, in losses by step, and a new trial. A percentile once counted pruned trials
# and looked at the last value where the metric was named, and at complete trials and the best value
# where it was a mapping: these had opposite answers.
ONE_MEANING = {
    "pruned trials are worse": ([(1.0,), (2.0,), (3.0,)], [(9.0,)] * 9, (4.0,), True),
    "once best, now worst": ([(5.0, 5.0), (6.0, 6.0), (7.0, 7.0)], [], (1.0, 9.0), False),
    "as the median": ([(1.0,), (2.0,), (3.0,)], [(0.0,)] * 9, (2.0,), False),
}


def decisions(
    complete: Sequence[Sequence[float]],
    pruned: Sequence[Sequence[float]],
    new: Sequence[float],
    percentile: float = 50.0,
) -> tuple[bool, bool]:
    """Return the decisions on one metric, by its value and by its rank."""
    found = []
    for pruner in (
        MetricPruner("loss", PercentilePruner(percentile, 0), direction="minimize"),
        ParetoPruner(PercentilePruner(percentile, 0), metrics={"loss": "minimize"}),
    ):
        study = optuna.create_study(directions=["minimize"] * 2, pruner=pruner)
        for losses in complete:
            completed(study, *({"loss": loss} for loss in losses))
        for losses in pruned:
            trial = study.ask()
            for step, loss in enumerate(losses):
                report(trial, step, loss=loss)
            study.tell(trial, state=TrialState.PRUNED)
        found.append(running(study, *({"loss": loss} for loss in new)))
    return found[0], found[1]


@pytest.mark.parametrize("case", ONE_MEANING)
def test_a_percentile_has_one_meaning(case: str) -> None:
    complete, pruned, new, expected = ONE_MEANING[case]
    assert decisions(complete, pruned, new) == (expected, expected)


@pytest.mark.parametrize("seed", range(10))
def test_the_rank_of_one_metric_decides_as_its_value(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Of five values these percentiles are among them: nothing is interpolated.
    for percentile in (0.0, 25.0, 50.0, 75.0, 100.0):
        losses = generator.integers(0, 9, (9, 1)).astype(float).tolist()
        by_value, by_rank = decisions(losses[:5], losses[5:8], losses[8], percentile)
        assert by_value == by_rank, (percentile, losses)


def test_a_failed_trial_dominates_nothing() -> None:
    for rule in (MedianPruner(0), SuccessiveHalvingPruner(1, 2)):
        study = pareto(rule, loss="minimize", other="minimize")
        for value in (1.0, 2.0, 3.0):
            completed(study, {"loss": value, "other": value})
        for _ in range(9):
            trial = study.ask()
            report(trial, 0, loss=0.0, other=0.0)
            study.tell(trial, state=TrialState.FAIL)
        trial = study.ask()
        report(trial, 0, loss=0.5, other=0.5)
        study.pruner.prune(study, study.get_trials()[-1])
        assert not should_prune(trial)


def test_the_best_trial_keeps_the_constraints() -> None:
    """Wilcoxon's test compares with the best trial, which is a feasible one where there is one."""
    study = pareto(WilcoxonPruner(p_threshold=0.4), loss="minimize", other="minimize")
    for value, accuracy in ((0.0, 0.1), (2.0, 0.9), (3.0, 0.9), (math.nan, 0.9)):
        trial = study.ask()
        for step in range(8):
            report(trial, step, loss=value, other=value)
        record.write_constraints(trial, {"accuracy": 0.5 - accuracy})
        study.tell(trial, [0.5, 0.5])
    worst = [{"loss": 5.0 + step, "other": 5.0} for step in range(8)]
    best = [{"loss": 1.0 - 0.01 * step, "other": 1.0} for step in range(8)]
    assert running(study, *worst)
    assert not running(study, *best)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pruner": "median"}, TypeError, r"`pruner` must be a pruner such as .* but got 'median'"),
        ({"metrics": {}}, ValueError, "`metrics` must be a mapping from at least one name"),
        ({"metrics": ["loss"]}, ValueError, "`metrics` must be a mapping from at least one name"),
        ({"metrics": {"a": "up"}}, ValueError, "metric 'a': unknown direction 'up'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ParetoPruner(**arguments)


def test_the_best_trial_is_the_one_of_now() -> None:
    best: list[int] = []

    class Looks(BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            if trial.number:
                best.append(study.best_trial.number)
            return False

    pruner = ParetoPruner(Looks(), metrics={"a": "minimize", "b": "minimize"})
    study = optuna.create_study(directions=["minimize", "minimize"], pruner=pruner)
    for i in range(4):
        trial = study.ask()
        report(trial, 0, a=-i, b=-i)
        assert not should_prune(trial)
        study.tell(trial, (-i, -i))
    assert best == [0, 1, 2]
