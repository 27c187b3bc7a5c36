"""What every pruner of ours keeps to, in studies with one objective and with several."""

from __future__ import annotations

import copy
import functools
import gc
import math
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.trial import TrialState

from flatsearch import (
    AnyPruner,
    FlatnessPruner,
    MetricPruner,
    ParetoPruner,
    mark_pruned,
    record,
    report,
    should_prune,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:.*WilcoxonPruner will not prune:UserWarning"),
    pytest.mark.filterwarnings("ignore:WilcoxonPruner finds steps:UserWarning"),
]

METRICS = {"accuracy": "maximize", "size": "minimize"}
STEPS = 3
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "flatness": lambda: FlatnessPruner(8, audit=0.001),
    "metric by the median": lambda: MetricPruner("accuracy", MedianPruner(4)),
    "another metric": lambda: MetricPruner("loss", MedianPruner(4), direction="minimize"),
    "metric by a percentile": lambda: MetricPruner("accuracy", PercentilePruner(40.0, 4)),
    "metric by halving": lambda: MetricPruner("accuracy", SuccessiveHalvingPruner(1)),
    "metric by hyperband": lambda: MetricPruner("accuracy", HyperbandPruner(1, max_resource=3)),
    "metric by wilcoxon": lambda: MetricPruner("accuracy", WilcoxonPruner()),
    "rank by the median": lambda: ParetoPruner(MedianPruner(4)),
    "rank of given metrics": lambda: ParetoPruner(MedianPruner(4), metrics=METRICS),
    "rank by patience": lambda: ParetoPruner(PatientPruner(MedianPruner(4), 1)),
    "rank by halving": lambda: ParetoPruner(SuccessiveHalvingPruner(1)),
    "rank by wilcoxon": lambda: ParetoPruner(WilcoxonPruner()),
    "any": lambda: AnyPruner(
        FlatnessPruner(8), MetricPruner("accuracy", PercentilePruner(60.0, 4))
    ),
}
# These judge a trial by others at its first step, without writing anything of the study down.
COMPARING = (
    "flatness", "metric by the median", "another metric", "metric by a percentile",
    "rank by the median", "rank of given metrics", "any",
)  # fmt: skip
KINDS = {"single": ("accuracy",), "multi": ("accuracy", "size")}


@pytest.fixture(params=PRUNERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS)
def names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return KINDS[request.param]


def empty(
    names: Sequence[str], pruner: BasePruner, storage: BaseStorage | None = None
) -> optuna.Study:
    study = optuna.create_study(
        directions=[METRICS[n] for n in names], pruner=pruner, study_name="s", storage=storage
    )
    study.set_metric_names(list(names))
    return study


def metrics_of(quality: float) -> dict[str, float]:
    """Return metrics of which all agree on how good a trial is."""
    return {"accuracy": quality, "loss": 2 - quality, "size": 1 - quality}


def finish(study: optuna.Study, quality: float, state: TrialState = TrialState.COMPLETE) -> None:
    trial = study.ask()
    for step in range(STEPS if state == TrialState.COMPLETE else 1):
        report(trial, step, **metrics_of(quality))
    values = [metrics_of(quality)[name] for name in study.metric_names or ()]
    study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)


@functools.cache
def trials_of(names: tuple[str, ...], n: int) -> list[FrozenTrial]:
    study = empty(names, NopPruner())
    for i, quality in enumerate(np.random.default_rng(0).permutation(n) / n):
        finish(study, float(quality), TrialState.PRUNED if i % 3 == 2 else TrialState.COMPLETE)
    return study.get_trials()


def filled(names: tuple[str, ...], pruner: BasePruner, n: int = 24) -> optuna.Study:
    """Return a study of trials of every quality, a third of them pruned at the first step."""
    study = empty(names, pruner)
    study.add_trials(trials_of(names, n))
    return study


def decision(study: optuna.Study, *qualities: float) -> bool:
    """Return the decision on a new trial after its last step; the trial fails afterwards."""
    trial = study.ask()
    for step, quality in enumerate(qualities):
        report(trial, step, **metrics_of(quality))
    found = should_prune(trial)
    study.tell(trial, state=TrialState.FAIL)
    return found


QUESTIONS = [(q,) * n for n in (1, 2) for q in (-0.5, 0.2, 0.5, 0.8, 1.5)]


def test_keeps_the_best_trial_and_prunes_the_worst(name: str, names: tuple[str, ...]) -> None:
    study = filled(names, PRUNERS[name]())
    assert decision(study, 1.5) is False
    if name in COMPARING:
        assert decision(study, -0.5) is True


def test_decides_nothing_without_values(name: str, names: tuple[str, ...]) -> None:
    study = filled(names, PRUNERS[name]())
    trial = study.ask()
    assert should_prune(trial) is False
    report(trial, 0, unknown=-1.0)
    assert should_prune(trial) is False


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("quality", [-0.5, math.nan])
def test_decides_nothing_before_a_trial_is_complete(
    name: str, names: tuple[str, ...], quality: float
) -> None:
    study = empty(names, PRUNERS[name]())
    assert decision(study, quality) is False
    finish(study, 0.5, TrialState.PRUNED)
    assert decision(study, quality) is False


def test_numbers_that_are_none(name: str, names: tuple[str, ...]) -> None:
    """NaN and infinite values, of the running trial and of finished ones, are no error."""
    study = filled(names, PRUNERS[name]())
    for quality in (math.nan, math.inf, -math.inf):
        finish(study, quality, TrialState.PRUNED)
        trial = study.ask()
        for step in range(2):
            report(trial, step, **metrics_of(quality))
        study.tell(trial, [0.5] * len(names))
        for qualities in ((quality,), (0.5, quality)):
            assert decision(study, *qualities) in {True, False}
    assert decision(study, 1.5) is False


@pytest.mark.parametrize("copied", [lambda p: pickle.loads(pickle.dumps(p)), copy.deepcopy])
def test_a_copy_decides_alike(
    name: str, names: tuple[str, ...], copied: Callable[[BasePruner], BasePruner]
) -> None:
    study = filled(names, PRUNERS[name]())
    decision(study, 0.1)
    once, again = study.pruner, copied(study.pruner)
    for qualities in QUESTIONS:
        trial = study.ask()
        for step, quality in enumerate(qualities):
            report(trial, step, **metrics_of(quality))
        frozen = study.get_trials(deepcopy=False)[-1]
        assert once.prune(study, frozen) == again.prune(study, frozen)
        study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize("name", COMPARING)
def test_the_order_of_finished_trials_does_not_matter(name: str, names: tuple[str, ...]) -> None:
    study = filled(names, PRUNERS[name]())
    for seed in range(3):
        other = empty(names, PRUNERS[name]())
        trials = study.get_trials()
        other.add_trials([trials[i] for i in np.random.default_rng(seed).permutation(24)])
        for qualities in QUESTIONS:
            assert decision(other, *qualities) == decision(study, *qualities), qualities
        study = filled(names, PRUNERS[name]())  # running trials have the numbers that they had


# "any" draws its audit by the numbers of trials.
@pytest.mark.parametrize("name", [name for name in COMPARING if name != "any"])
def test_a_network_that_was_parked_and_went_on_counts_once(
    name: str, names: tuple[str, ...]
) -> None:
    plain = filled(names, PRUNERS[name]())
    parts = empty(names, PRUNERS[name]())
    for trial in trials_of(names, 24):
        whole = copy.deepcopy(trial)
        if trial.values and trial.user_attrs["flatsearch:step:0"]["accuracy"] > 0.6:
            first = parts.ask()
            report(first, 0, **trial.user_attrs["flatsearch:step:0"])
            record.write_trial(first, parked=1)
            mark_pruned(first, pruned=True)
            parts.tell(first, trial.values)
            promotion = record.Promotion(first.number, 1, STEPS)
            whole.user_attrs[record.TrialRecord.promotion.key] = promotion.to_dict()
        parts.add_trial(whole)
    for quality in np.linspace(0.0, 1.0, 41).tolist():
        assert decision(parts, quality) == decision(plain, quality), quality


@pytest.mark.parametrize("name", COMPARING)
def test_failed_and_running_trials_do_not_count(name: str, names: tuple[str, ...]) -> None:
    plain, crowded = (filled(names, PRUNERS[name]()) for _ in range(2))
    for i in range(60):
        trial = crowded.ask()
        report(trial, 0, **metrics_of(-1.0 if i % 2 else 2.0))
        if i % 3:
            crowded.tell(trial, state=TrialState.FAIL)
    for qualities in QUESTIONS:
        # The audit of the calibrated rule is drawn by a trial's number.
        frozen = [running(study, qualities) for study in (plain, crowded)]
        frozen[1].number = frozen[0].number = 100
        first, second = (
            study.pruner.prune(study, trial)
            for study, trial in zip((plain, crowded), frozen, strict=True)
        )
        assert first == second, qualities


def running(study: optuna.Study, qualities: Sequence[float]) -> FrozenTrial:
    trial = study.ask()
    for step, quality in enumerate(qualities):
        report(trial, step, **metrics_of(quality))
    return copy.copy(study.get_trials(deepcopy=False)[-1])


@pytest.mark.parametrize("name", COMPARING)
def test_threads_decide_as_one_thread_does(name: str, names: tuple[str, ...]) -> None:
    alone = filled(names, PRUNERS[name](), n=60)
    together = filled(names, PRUNERS[name](), n=60)
    expected = [alone.pruner.prune(alone, running(alone, q)) for q in QUESTIONS * 3]
    trials = [running(together, q) for q in QUESTIONS * 3]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda trial: together.pruner.prune(together, trial), trials))
    assert found == expected


def test_a_study_of_several_threads(name: str, names: tuple[str, ...]) -> None:
    study = empty(names, PRUNERS[name]())

    def objective(trial: optuna.Trial) -> list[float]:
        quality = trial.suggest_float("quality", 0, 1)
        for step in range(STEPS):
            report(trial, step, **metrics_of(quality))
            if should_prune(trial):
                raise optuna.TrialPruned
        return [metrics_of(quality)[name] for name in names]

    study.optimize(objective, n_trials=24, n_jobs=4)
    assert {t.state for t in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    # What a multi-objective study's samplers cannot do with.
    assert len(names) == 1 or not any(t.intermediate_values for t in study.trials)


@pytest.mark.parametrize("name", COMPARING)
def test_the_storage_is_all_there_is(name: str, names: tuple[str, ...]) -> None:
    """A new pruner on a study from its storage decides as one that has seen every trial finish."""
    storage = optuna.storages.InMemoryStorage()
    seen = empty(names, PRUNERS[name](), storage)
    for quality in np.random.default_rng(1).permutation(12) / 12:
        decision(seen, 0.5)
        finish(seen, float(quality))
    read = optuna.load_study(study_name="s", storage=storage, pruner=PRUNERS[name]())
    for quality in (-0.5, 0.5, 1.5):
        assert decision(read, quality) == decision(seen, quality)


def test_a_dead_study_is_forgotten(name: str, names: tuple[str, ...]) -> None:
    study = filled(names, pruner := PRUNERS[name]())
    decision(study, 0.5)
    reference = weakref.ref(study)
    del study
    gc.collect()
    assert reference() is None
    assert pruner is not None


def test_studies_do_not_mix(name: str, names: tuple[str, ...]) -> None:
    pruner = PRUNERS[name]()
    full, new = filled(names, pruner), empty(names, pruner)
    decision(full, 0.5)
    finish(new, 0.5)
    if name in COMPARING:
        assert decision(new, -0.5) is False
        assert decision(full, -0.5) is True


@pytest.mark.parametrize("name", [*COMPARING, "rank by patience"])
def test_a_finished_trial_is_read_once(
    name: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import flatsearch.record.trial as module

    study = filled(names, PRUNERS[name](), n=50)
    decision(study, 0.5, 0.5)
    reads: list[int] = []
    read = module.from_numbers
    monkeypatch.setattr(module, "from_numbers", lambda v: (reads.append(1), read(v))[1])
    decision(study, 0.5)
    assert 0 < len(reads) <= 12  # those of the running trial, and of the one that failed
    assert decision(study, 1.5) is False


def test_no_pruner_is_no_pruner(names: tuple[str, ...]) -> None:
    for pruner in (
        MetricPruner("accuracy", NopPruner()),
        ParetoPruner(NopPruner()),
        AnyPruner(NopPruner()),
        MetricPruner("loss", ThresholdPruner(upper=9.0), direction="minimize"),
    ):
        assert decision(filled(names, pruner), -0.5) is False
