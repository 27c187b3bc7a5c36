"""Several pruners as one."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from flatsearch import AnyPruner, MetricPruner, report, should_prune


def make(pruner: BasePruner) -> optuna.Study:
    return optuna.create_study(directions=["minimize", "maximize"], pruner=pruner)


def running(study: optuna.Study, *steps: dict[str, float]) -> bool:
    trial = study.ask()
    for step, metrics in enumerate(steps):
        report(trial, step, **metrics)
    return should_prune(trial)


def test_per_metric_rules_at_different_steps() -> None:
    pruner = AnyPruner(
        MetricPruner("train", MedianPruner(1), direction="minimize"),
        MetricPruner("accuracy", PercentilePruner(50.0, 1), direction="maximize"),
    )
    study = make(pruner)
    for value in (1.0, 2.0, 3.0):
        trial = study.ask()
        report(trial, 0, train=value, accuracy=0.5)
        report(trial, 1, train=value)
        study.tell(trial, [0.5, 0.5])
    assert running(study, {"train": 9.0})  # by the first
    assert not running(study, {"train": 0.0})
    assert running(study, {"train": 0.0, "accuracy": 0.1})  # by the second
    assert not running(study, {"train": 0.0, "accuracy": 0.9}, {"train": 0.0})


def test_all_pruners_are_asked() -> None:
    asked = []

    class Spy(BasePruner):
        def __init__(self, answer: bool) -> None:
            self.answer = answer

        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            asked.append(self.answer)
            return self.answer

    study = make(AnyPruner(Spy(True), Spy(False)))
    assert running(study, {"loss": 1.0})
    assert asked == [True, False]


@pytest.mark.parametrize("rule", [SuccessiveHalvingPruner, HyperbandPruner])
def test_pruners_that_note_values_of_rungs_do_not_read_each_others(rule: Any) -> None:
    def pruned(*metrics: str) -> list[tuple[int, int]]:
        rules = [
            MetricPruner(m, rule(1, reduction_factor=2), direction="minimize") for m in metrics
        ]
        study = optuna.create_study(
            directions=["minimize", "maximize"], pruner=AnyPruner(*rules), study_name="s"
        )
        found = []
        for i in range(8):
            trial = study.ask()
            for step in range(8):
                # Both get better with every trial, and are of other sizes.
                report(trial, step, small=1 - i / 10, large=30 - i)
                if should_prune(trial):
                    found.append((i, step))
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, (0.0, 0.0))
        return found

    alone = {*pruned("small"), *pruned("large")}
    assert alone == set(pruned("large", "small"))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least one pruner"):
        AnyPruner()
    with pytest.raises(TypeError, match=r"`pruner` must be a pruner such as .* but got None"):
        AnyPruner(None)  # type: ignore[arg-type]
