"""Optuna's own pruners on any recorded metric, in studies with several objectives."""

from __future__ import annotations

import math
import pickle
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

from flatsearch import AnyPruner, FlatnessPruner, report, should_prune
from flatsearch.pruners.metric_view import ParetoRanks
from flatsearch.record import TrialRecord

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
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_rule_decides_as_it_does_on_a_single_objective(
    rule: str, metric: str, kind: str, tmp_path: Path
) -> None:
    """With several objectives, and the metric as the only one: the same decisions."""
    storage = {"memory": None, "sqlite": f"sqlite:///{tmp_path}/s.db"}[kind]
    several = make(FlatnessPruner(metric=metric, rule=RULES[rule]()), storage=storage)
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
        pruner=FlatnessPruner(metric="loss", direction="minimize", rule=RULES[rule]()),
        study_name="s",
    )
    single = optuna.create_study(direction="minimize", pruner=RULES[rule](), study_name="s")
    for seed in range(25):
        assert stops_at(study, curves(seed), "loss") == stops_at(single, curves(seed), None)
    # Nothing that a sampler ranks pruned trials by.
    assert all(not trial.intermediate_values for trial in study.trials)


def completed(study: optuna.Study, *steps: dict[str, float]) -> None:
    trial = study.ask()
    for step, metrics in enumerate(steps):
        report(trial, step, **metrics)
    study.tell(trial, [0.5, 0.5])


def pareto(**directions: str) -> optuna.Study:
    pruner = FlatnessPruner(metric="pareto_rank", rule=MedianPruner(n_startup_trials=0))
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
    pruner = FlatnessPruner(
        metric={"a": "minimize", "b": "maximize"}, rule=MedianPruner(n_startup_trials=0)
    )
    study = make(pruner)
    for value in (1.0, 2.0, 3.0):
        completed(study, {"a": value, "b": 1.0})
    assert running(study, {"a": 4.0, "b": 0.5})
    assert not running(study, {"a": 4.0, "b": 2.0})
    # A step without all of the metrics does not count.
    assert not running(study, {"a": 9.0})


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_on_the_pareto_rank(rule: str) -> None:
    study = make(FlatnessPruner(metric="pareto_rank", rule=RULES[rule]()))
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


@pytest.mark.parametrize("n_metrics", [1, 2, 3])
def test_ranks_are_counts_of_dominators(n_metrics: int) -> None:
    generator = np.random.default_rng(n_metrics)
    points = generator.integers(0, 5, (60, n_metrics)).astype(float)
    ranks = ParetoRanks(n_metrics)
    for point in points[:-1]:
        ranks.add(point)
    others, own = ranks.rank(points[-1])
    counts = [
        sum(bool((q <= p).all() and (q < p).any()) for q in points) for p in points
    ]  # fmt: skip
    assert np.floor(others).tolist() == counts[:-1]
    assert math.floor(own) == (counts[-1] or -1)
    # Ranking adds nothing.
    assert len(ranks) == 59
    assert ranks.rank(points[-1])[1] == own


def test_per_metric_rules_at_different_steps() -> None:
    pruner = AnyPruner(
        FlatnessPruner(metric="train", direction="minimize", rule=MedianPruner(1)),
        FlatnessPruner(metric="accuracy", rule=PercentilePruner(50.0, n_startup_trials=1)),
    )
    study = make(pruner)
    for value in (1.0, 2.0, 3.0):
        completed(study, {"train": value, "accuracy": 0.5}, {"train": value})
    assert running(study, {"train": 9.0})  # by the first
    assert not running(study, {"train": 0.0})
    assert running(study, {"train": 0.0, "accuracy": 0.1})  # by the second
    assert not running(study, {"train": 0.0, "accuracy": 0.9}, {"train": 0.0})
    with pytest.raises(ValueError, match="at least one pruner"):
        AnyPruner()


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


def test_the_direction_of_a_metric() -> None:
    study = make(FlatnessPruner(metric="accuracy", n_startup_trials=1))  # the study's: maximize
    for value in (0.4, 0.5, 0.6, 0.7, 0.8):
        completed(study, {"accuracy": value, "loss": value, "sharpness": value})
    assert running(study, {"accuracy": 0.1})
    assert not running(study, {"accuracy": 0.9})
    study.pruner = FlatnessPruner(metric="loss", n_startup_trials=1)
    assert running(study, {"loss": 0.9})
    study.pruner = FlatnessPruner(metric="sharpness", n_startup_trials=1)
    with pytest.raises(ValueError, match=r"'sharpness' is not an objective .* \(loss, accuracy\)"):
        running(study, {"sharpness": 0.9})
    study.pruner = FlatnessPruner(metric="sharpness", direction="minimize", n_startup_trials=1)
    assert running(study, {"sharpness": 0.9})


def test_pareto_rank_needs_names() -> None:
    study = optuna.create_study(
        directions=["minimize"] * 2, pruner=FlatnessPruner(metric="pareto_rank")
    )
    with pytest.raises(ValueError, match=r"call study\.set_metric_names"):
        running(study, {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rule": "median"},
            "unknown rule 'median'; known: calibrated, percentile, or a pruner such as",
        ),
        ({"rule": MedianPruner(), "n_startup_trials": 3}, "`n_startup_trials` is for the rule"),
        ({"metric": {}}, "`metric` must name at least one"),
        ({"metric": {"a": "up"}}, "metric 'a': unknown direction 'up'"),
        ({"metric": "pareto_rank", "direction": "maximize"}, "a small Pareto rank is good"),
        ({"direction": "up"}, "unknown direction 'up'"),
    ],
)
def test_arguments_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlatnessPruner(**options)


@pytest.mark.parametrize("metric", ["loss", "pareto_rank"])
def test_a_pruner_travels_to_another_process(metric: str) -> None:
    study = make(FlatnessPruner(metric=metric, rule=MedianPruner(0)))
    for value in (1.0, 2.0):
        completed(study, {"loss": value, "accuracy": 0.5})
    assert running(study, {"loss": 9.0, "accuracy": 0.1})
    study.pruner = pickle.loads(pickle.dumps(study.pruner))
    assert running(study, {"loss": 9.0, "accuracy": 0.1})


@pytest.mark.parametrize("rule", ["percentile", "median", "pareto"])
def test_a_finished_trial_is_read_once(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import flatsearch.pruners.metric_view as module

    pruner = {
        "percentile": FlatnessPruner(0, metric="loss"),
        "median": FlatnessPruner(metric="loss", rule=MedianPruner(0)),
        "pareto": FlatnessPruner(metric="pareto_rank", rule=MedianPruner(0)),
    }[rule]
    study = make(pruner)
    for value in range(50):
        completed(study, {"loss": float(value), "accuracy": 0.5})
    running(study, {"loss": 1.0, "accuracy": 1.0})
    reads: list[int] = []
    monkeypatch.setattr(module, "TrialRecord", lambda t: (reads.append(1), TrialRecord(t))[1])
    running(study, {"loss": 1.0, "accuracy": 1.0})
    assert len(reads) <= 3  # those that are running


def test_a_dead_study_is_forgotten() -> None:
    import gc
    import weakref

    pruner = FlatnessPruner(metric="loss", rule=MedianPruner(0))
    study = make(pruner)
    completed(study, {"loss": 1.0})
    running(study, {"loss": 2.0})
    reference = weakref.ref(study)
    del study
    gc.collect()
    assert reference() is None


def test_metrics_of_a_step_may_come_one_after_the_other() -> None:
    study = make(FlatnessPruner(metric="train", direction="minimize", rule=MedianPruner(0)))
    completed(study, {"train": 1.0})
    trial = study.ask()
    report(trial, 0, train=9.0)
    report(trial, 0, accuracy=0.5)
    assert should_prune(trial)
    report(trial, 0, train=0.5)  # the last value counts
    assert not should_prune(trial)
    assert TrialRecord(trial).steps == {0: {"train": 0.5, "accuracy": 0.5}}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_gaps_failures_and_numbers_that_are_none(rule: str, seed: int) -> None:
    """The same decisions as in a single-objective study, whatever the curves are like."""
    generator = np.random.default_rng(seed)
    several = make(FlatnessPruner(metric="loss", rule=RULES[rule]()))
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


def test_trials_of_another_process_are_seen(tmp_path: Path) -> None:
    """Two pruners that share nothing but the storage: curves and rungs of one reach the other."""
    address = f"sqlite:///{tmp_path}/s.db"
    rule = lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)  # noqa: E731
    here = make(FlatnessPruner(metric="loss", rule=rule()), storage=address)
    there = optuna.load_study(
        study_name="s", storage=address, pruner=FlatnessPruner(metric="loss", rule=rule())
    )
    single = optuna.create_study(direction="minimize", pruner=rule(), study_name="s")
    for seed in range(12):
        study = (here, there)[seed % 2]
        assert stops_at(study, curves(seed), "loss") == stops_at(single, curves(seed), None)
