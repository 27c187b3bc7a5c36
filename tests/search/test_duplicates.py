"""The same network twice: found, taken over, or trained again."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState

from flatsearch import FlatnessObjective, RunSettings, record
from flatsearch.analysis.summary import summarise
from flatsearch.search.duplicates import TrainedNetworks
from flatsearch.search.loop import run_study
from flatsearch.search.study import open_study
from flatsearch.search.tally import Tally
from flatsearch.search.trial_budget import finished_count
from flatsearch.spaces.space import Architecture
from tests.fakes import DEAD, Tiny

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.data.splits import ImageData


class Few(Tiny):
    """Four settings, two networks: `unused` is in the architecture but not in the network."""

    def suggest(self, trial: optuna.Trial) -> Architecture:
        width = trial.suggest_int("width", 2, 3)
        return Architecture("few", {"width": width, "unused": trial.suggest_int("unused", 0, 1)})


def objective(data: ImageData, **options: Any) -> FlatnessObjective:
    return FlatnessObjective(Few(), data, settings=RunSettings(epochs=2, **options), device="cpu")


def enqueued(data: ImageData, *widths: int, pruner: Any = None, **options: Any) -> optuna.Study:
    made = objective(data, **options)
    study = optuna.create_study(directions=made.directions, pruner=pruner)
    for index, width in enumerate(widths):
        study.enqueue_trial({"width": width, "unused": index % 2})
    study.optimize(made, n_trials=len(widths))
    return study


def test_a_result_is_taken_over(digits: ImageData) -> None:
    study = enqueued(digits, 2, 3, 2, 2)
    first, _, third, fourth = map(record.TrialRecord, study.trials)
    assert first.architecture != fourth.architecture
    assert third.values == fourth.values == first.values
    assert third.duplicate_of == fourth.duplicate_of == 0
    assert third.metrics == first.metrics
    assert third.steps == {}
    assert len(first.steps) == 2
    assert [record.TrialRecord(t).finished for t in study.trials] == [True, True, False, False]
    summary = summarise(study)
    assert set(summary.front) <= {0, 1}


def test_training_again_takes_other_random_numbers(digits: ImageData) -> None:
    study = enqueued(digits, 2, 2, duplicates="retrain")
    first, second = map(record.TrialRecord, study.trials)
    assert (second.duplicate_of, second.retrain_of) == (None, 0)
    assert second.values != first.values
    assert all(record.TrialRecord(t).finished for t in study.trials)


def test_another_recipe_is_another_candidate(digits: ImageData) -> None:
    made = objective(digits, tune_recipe=True)
    study = optuna.create_study(directions=made.directions)
    recipe = {"recipe_weight_decay": 1e-4, "recipe_batch_size": 64, "recipe_augment": "none"}
    for lr in (0.1, 0.2, 0.1):
        study.enqueue_trial({"width": 2, "unused": 0, "recipe_lr": lr, **recipe})
    study.optimize(made, n_trials=3)
    assert [record.TrialRecord(t).duplicate_of for t in study.trials] == [None, None, 0]
    assert record.TrialRecord(study.trials[1]).recipe == {
        "lr": 0.2, "weight_decay": 1e-4, "batch_size": 64, "augment": "none",
    }  # fmt: skip


class Always(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "flatness")])
def test_a_pruned_trial_is_taken_over_too(digits: ImageData, objectives: tuple[str, ...]) -> None:
    made = objective(digits, objectives=objectives)
    study = optuna.create_study(directions=made.directions, pruner=Always())
    study.set_metric_names(made.metric_names)
    for _ in range(2):
        study.enqueue_trial({"width": 2, "unused": 0})
    study.optimize(made, n_trials=2)
    first, second = study.trials
    assert [t.state for t in study.trials] == [TrialState.PRUNED] * 2
    assert record.TrialRecord(second).failure == "the same network as trial 0: pruned"
    # What samplers rank a pruned trial by.
    assert second.intermediate_values == first.intermediate_values
    assert second.value == first.value if len(objectives) == 1 else second.values is None


def test_a_candidate_over_a_limit_stays_over_it(digits: ImageData) -> None:
    study = enqueued(digits, 2, 2, max_parameters=10)
    assert [t.state for t in study.trials] == [TrialState.PRUNED] * 2
    assert all(record.TrialRecord(t).over_limit for t in study.trials)
    first, second = map(record.read_constraints, study.trials)
    assert first == second


def test_a_failed_trial_is_tried_again(digits: ImageData) -> None:
    made = objective(digits)
    study = optuna.create_study(directions=made.directions)
    failed = study.ask({"width": optuna.distributions.IntDistribution(2, 3)})
    record.write_trial(failed, network="key")
    study.tell(failed, state=TrialState.FAIL)
    assert TrainedNetworks().find(study, 5, "key") is None


def ask(study: optuna.Study, key: str | None) -> optuna.Trial:
    trial = study.ask()
    if key is not None:
        record.write_trial(trial, network=key)
    return trial


def test_of_two_running_trials_the_older_one_trains() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    older, younger = ask(study, "key"), ask(study, "key")
    trained = TrainedNetworks(patience=5)
    assert trained.find(study, older.number, "key") is None
    found = trained.find(study, younger.number, "key")
    assert found is not None
    assert found.number == older.number
    study.tell(older, (0.5, 0.5))
    again = trained.find(study, younger.number, "key")
    assert again is not None
    assert again.values == [0.5, 0.5]
    assert trained.find(study, younger.number, "other") is None


def test_a_younger_finished_trial_counts() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    older, younger = ask(study, None), ask(study, "key")
    study.tell(younger, (0.5, 0.5))
    record.write_trial(older, network="key")
    found = TrainedNetworks().find(study, older.number, "key")
    assert found is not None
    assert found.number == younger.number


def test_an_older_trial_is_waited_for_but_not_for_ever() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    silent, asking = ask(study, None), ask(study, "key")
    timer = threading.Timer(0.3, record.write_trial, (silent,), {"network": "key"})
    timer.start()
    found = TrainedNetworks(patience=30).find(study, asking.number, "key")
    timer.join()
    assert found is not None
    assert found.number == silent.number
    dead, third = ask(study, None), ask(study, "new")
    del dead
    impatient = TrainedNetworks(patience=0.2)
    assert impatient.find(study, third.number, "new") is None
    started = time.monotonic()
    impatient._patience = 30.0  # the dead one is remembered
    assert impatient.find(study, third.number, "new") is None
    assert time.monotonic() - started < 10


def test_the_running_networks_twin_fails_without_an_exception(digits: ImageData) -> None:
    key = record.TrialRecord(enqueued(digits, 2).trials[0]).network
    made = objective(digits)
    study = optuna.create_study(directions=made.directions)
    ask(study, key)
    for width in (2, 3):
        study.enqueue_trial({"width": width, "unused": 0})
    study.optimize(made, n_trials=2)
    # Not pruned: samplers would take the region for a bad one.
    assert [t.state.name for t in study.trials] == ["RUNNING", "FAIL", "COMPLETE"]
    assert record.TrialRecord(study.trials[1]).failure == (
        "the same network as trial 0, which is being trained"
    )
    assert not record.TrialRecord(study.trials[1]).finished


def test_a_used_up_space_ends_the_run(digits: ImageData) -> None:
    made = objective(digits)
    study = open_study("s", optuna.storages.InMemoryStorage(), made)
    assert run_study(study, made, n_trials=3) == (
        "all 4 architectures of the space have been tried"
    )
    assert finished_count(study) == 2


def test_a_space_that_can_be_counted_ends_soon(digits: ImageData) -> None:
    class Honest(Few):
        def suggest(self, trial: optuna.Trial) -> Architecture:
            return Architecture("honest", {"width": trial.suggest_int("width", 2, 4)})

    made = FlatnessObjective(Honest(), digits, epochs=1, device="cpu")
    study = open_study("s", optuna.storages.InMemoryStorage(), made)
    ended = run_study(study, made, n_trials=4)
    assert ended == "all 3 architectures of the space have been tried"
    assert finished_count(study) == 3
    assert len(study.trials) < 60
    assert summarise(study).counts["COMPLETE"] == 3


def test_a_sampler_that_repeats_itself_does_not_end_the_run(digits: ImageData) -> None:
    class Stubborn(optuna.samplers.RandomSampler):
        def sample_independent(self, *args: Any) -> Any:
            return args[3].low

    made = objective(digits)
    study = open_study("s", optuna.storages.InMemoryStorage(), made)
    study.sampler = stubborn = Stubborn()
    run_study(study, made, n_trials=2)
    assert finished_count(study) == 2
    assert study.sampler is stubborn


def test_a_continuous_space_that_gives_nothing_new_ends_too(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatsearch.search.tally._MOST_IDLE", 30)

    class Continuous(Few):
        def suggest(self, trial: optuna.Trial) -> Architecture:
            trial.suggest_float("unused", 0, 1)
            return Architecture("same", {"width": 2})

    made = FlatnessObjective(Continuous(), digits, epochs=1, device="cpu")
    study = open_study("s", optuna.storages.InMemoryStorage(), made)
    assert run_study(study, made, n_trials=2) == (
        "the last 30 candidates are networks that were tried before: the space seems to be"
        " exhausted"
    )


def test_a_dead_process_trains_nothing() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    dead, asking = ask(study, "key"), ask(study, "key")
    record.write_trial(dead, worker=DEAD)
    assert TrainedNetworks().find(study, asking.number, "key") is None


def test_a_silent_trial_of_a_dead_process_is_not_waited_for() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    dead, asking = ask(study, None), ask(study, "key")
    record.write_trial(dead, worker=DEAD)
    started = time.monotonic()
    assert TrainedNetworks().find(study, asking.number, "key") is None
    assert time.monotonic() - started < 30
    assert study.trials[0].state == TrialState.FAIL


def test_younger_silent_trials_are_not_waited_for() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    asking = ask(study, "key")
    ask(study, None)

    def never() -> None:
        raise AssertionError("waits")

    assert TrainedNetworks().find(study, asking.number, "key", never) is None


def test_a_wait_can_be_interrupted() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    ask(study, None)
    asking = ask(study, "key")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrainedNetworks().find(study, asking.number, "key", interrupt)


def test_the_saved_model_is_taken_over(digits: ImageData, tmp_path: Path) -> None:
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    made = FlatnessObjective(Few(), digits, epochs=1, device="cpu", artifact_store=store)
    study = optuna.create_study(directions=made.directions)
    for _ in range(2):
        study.enqueue_trial({"width": 2, "unused": 0})
    study.optimize(made, n_trials=2)
    first, second = map(record.TrialRecord, study.trials)
    assert second.duplicate_of == 0
    assert second.artifact == first.artifact is not None


def test_failures_are_counted_in_a_row_and_twins_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flatsearch.search.tally._MOST_IDLE", 20)
    study = optuna.create_study(directions=["maximize", "minimize"])
    tally = Tally(Few(), 3)

    def count(state: TrialState, same: int | None = None) -> None:
        trial = study.ask()
        if same is not None:
            record.write_trial(trial, duplicate_of=same)
        study.tell(trial, (0.5, 0.5) if state == TrialState.COMPLETE else None, state=state)
        tally.count(study, study.trials[trial.number])

    for _ in range(3):
        count(TrialState.FAIL)
        count(TrialState.COMPLETE, same=0)
    assert (tally.failures, tally.duplicates) == (0, 3)
    for _ in range(30):
        count(TrialState.FAIL, same=0)
    assert not tally.stuck
    count(TrialState.COMPLETE)
    assert (tally.failures, tally.duplicates) == (0, 0)
    for _ in range(3):
        count(TrialState.FAIL)
    assert tally.stuck
