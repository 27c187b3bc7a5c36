"""Any pruner on one recorded metric."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.pruners import MedianPruner, PercentilePruner
from optuna.trial import TrialState

from flatsearch import MetricPruner, report, should_prune

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SINGLE, MULTI = ["maximize"], ["maximize", "minimize"]
FOUR = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]


def make_study(
    curves: Sequence[Sequence[float]], pruner: MetricPruner, directions: list[str] = MULTI
) -> optuna.Study:
    """Return a study with complete trials whose sharpness followed the given curves."""
    study = optuna.create_study(directions=directions, pruner=pruner)
    for curve in curves:
        trial = study.ask()
        for step, value in enumerate(curve):
            report(trial, step, sharpness=value)
        study.tell(trial, [0.5] * len(directions))
    return study


def decide(study: optuna.Study, curve: Sequence[float]) -> bool:
    """Return the decision on a new trial after its last value."""
    trial = study.ask()
    for step, value in enumerate(curve):
        report(trial, step, sharpness=value)
    return should_prune(trial)


def by_percentile(percentile: float, direction: Any = "maximize", n: int = 4) -> MetricPruner:
    return MetricPruner("sharpness", PercentilePruner(percentile, n), direction=direction)


@pytest.mark.parametrize("directions", [SINGLE, MULTI])
@pytest.mark.parametrize(
    ("direction", "percentile", "value", "pruned"),
    [
        ("maximize", 50.0, 1.5, True),
        ("maximize", 50.0, 2.5, False),
        ("minimize", 50.0, 3.5, True),
        ("minimize", 50.0, 2.5, False),
        ("maximize", 75.0, 0.5, True),
        ("maximize", 75.0, 1.8, False),
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
    study = make_study(FOUR, by_percentile(percentile, direction), directions)
    assert decide(study, [value]) is pruned


def test_compares_with_the_same_step_not_the_last() -> None:
    study = make_study(FOUR, by_percentile(50.0))
    assert decide(study, [5.0]) is False  # best of all at step 0, small beside step 1
    assert decide(study, [5.0, 15.0]) is True


def test_startup_trials_count_complete_ones() -> None:
    study = make_study(FOUR, by_percentile(50.0, n=5))
    pruned = study.ask()
    report(pruned, 0, sharpness=0.1)
    study.tell(pruned, state=TrialState.PRUNED)
    assert decide(study, [0.5]) is False
    fifth = study.ask()
    study.tell(fifth, [0.5, 0.5])
    assert decide(study, [0.5]) is True


def test_the_median_is_the_default() -> None:
    study = make_study(
        [[float(v)] for v in range(5)], MetricPruner("sharpness", direction="maximize")
    )
    assert decide(study, [1.9]) is True
    assert decide(study, [2.1]) is False


@pytest.mark.parametrize("seed", range(3))
def test_near_percentiles_decide_alike(seed: int) -> None:
    """75.0 is a number like 74.9, and no default that means something else."""
    generator = np.random.default_rng(seed)
    studies = [make_study(FOUR, by_percentile(percentile)) for percentile in (75.0, 74.9)]
    for curve in generator.integers(0, 40, (20, 2)).astype(float).tolist():
        first, second = (decide(study, curve) for study in studies)
        assert first == second, curve


def test_other_metric() -> None:
    pruner = MetricPruner("accuracy", PercentilePruner(50.0, 0), direction="maximize")
    study = optuna.create_study(directions=MULTI, pruner=pruner)
    for accuracy in (0.5, 0.9):
        trial = study.ask()
        report(trial, 0, accuracy=accuracy, flatness=1.0)
        study.tell(trial, [accuracy, 1.0])
    trial = study.ask()
    assert should_prune(trial) is False
    report(trial, 0, flatness=0.0)
    assert should_prune(trial) is False
    report(trial, 1, accuracy=0.1)
    assert should_prune(trial) is False  # nobody else reached step 1
    trial = study.ask()
    report(trial, 0, accuracy=0.1, flatness=1.0)
    assert should_prune(trial) is True


def test_the_direction_of_a_metric() -> None:
    def decides(metric: str, value: float, **options: Any) -> bool:
        study = optuna.create_study(
            directions=["minimize", "maximize"],
            pruner=MetricPruner(metric, MedianPruner(1), **options),
        )
        study.set_metric_names(["loss", "accuracy"])
        for other in (0.4, 0.5, 0.6, 0.7, 0.8):
            trial = study.ask()
            report(trial, 0, accuracy=other, loss=other, sharpness=other)
            study.tell(trial, [0.5, 0.5])
        trial = study.ask()
        report(trial, 0, **{metric: value})
        return should_prune(trial)

    assert decides("accuracy", 0.1)  # the study's: maximize
    assert not decides("accuracy", 0.9)
    assert decides("loss", 0.9)
    assert not decides("loss", 0.9, direction="maximize")
    with pytest.raises(ValueError, match=r"'sharpness' is not an objective .* \(loss, accuracy\)"):
        decides("sharpness", 0.9)
    assert decides("sharpness", 0.9, direction="minimize")


def test_a_study_without_names() -> None:
    study = optuna.create_study(pruner=MetricPruner("loss"))
    with pytest.raises(ValueError, match=r"which has no names\); give its `direction`"):
        study.pruner.prune(study, study.ask().study.trials[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pruner": "median"}, TypeError, r"`pruner` must be a pruner such as .* but got 'median'"),
        ({"metric": {"a": "minimize"}}, ValueError, "`metric` must be the name of one metric but"),
        ({"metric": ""}, ValueError, "`metric` must be the name of one metric but got ''"),
        ({"direction": "up"}, ValueError, "metric 'loss': unknown direction 'up'"),
        ({"direction": "maximise"}, ValueError, r"'maximise' \(did you mean 'maximize'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MetricPruner(**{"metric": "loss", **arguments})
