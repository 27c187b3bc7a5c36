from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

import flatsearch
from flatsearch import (
    FlatnessObjective,
    FlatnessPruner,
    HalvingPromoter,
    OneRungPromoter,
    RunSettings,
    SettingsError,
    StorageError,
)
from flatsearch.record import StudyRecord, write_study
from flatsearch.search.factories import make_pruner, make_sampler
from flatsearch.search.interrupts import Interrupted
from flatsearch.search.loop import run_study
from flatsearch.search.study import load_study, open_study
from flatsearch.search.trial_budget import finished_count
from tests.fakes import Tiny, gp_takes_several

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.pruners import BasePruner

    from flatsearch.data.splits import ImageData


@pytest.fixture
def storage() -> optuna.storages.BaseStorage:
    return optuna.storages.InMemoryStorage()


def quick(data: ImageData, **options: object) -> FlatnessObjective:
    return FlatnessObjective(Tiny(), data, epochs=1, **options)  # type: ignore[arg-type]


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def test_a_new_study_then_the_same_again(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    study = open_study("s", storage, quick(digits))
    assert study.metric_names == ["accuracy", "flatness"]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    run_study(study, quick(digits), n_trials=2)
    again = open_study("s", storage, quick(digits))
    run_study(again, quick(digits), n_trials=1)
    assert states(again) == ["COMPLETE"] * 3
    assert finished_count(again) == 3


def test_a_resumed_study_does_not_repeat_its_suggestions(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    for _ in range(3):
        study = open_study("s", storage, quick(digits), sampler="random")
        for _ in range(4):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            study.tell(trial, (0.5, 0.5))
    assert len({trial.params["x"] for trial in study.trials}) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "epochs=1 (not 3)"),
        ({"settings": RunSettings(lr=0.5)}, "lr=0.1 (not 0.5)"),
        ({"objectives": ["accuracy"]}, "objectives=accuracy,flatness (not accuracy)"),
        ({"space": "resnet_small"}, "space=tests.fakes:Tiny (not resnet_small)"),
    ],
)
def test_other_settings_are_refused_by_name(
    digits: ImageData,
    storage: optuna.storages.BaseStorage,
    change: dict[str, object],
    message: str,
) -> None:
    open_study("s", storage, quick(digits))
    options = {"space": Tiny(), "data": digits, "epochs": 1, **change}
    with pytest.raises(SettingsError) as caught:
        open_study("s", storage, FlatnessObjective(**options))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_settings_are_refused_by_the_objective_too(digits: ImageData) -> None:
    """In a study that Optuna opened, its trials would join the others on the front."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    write_study(study, settings=quick(digits).shared_settings())
    with pytest.raises(SettingsError, match=r"exists with other settings: lr=0.1 \(not 0.2\)"):
        FlatnessObjective(Tiny(), digits, epochs=1, settings=RunSettings(lr=0.2))(study.ask())


def test_how_fast_it_is_computed_is_no_other_study() -> None:
    study = optuna.create_study()
    settings = RunSettings().to_dict()
    write_study(study, settings={**settings, "cuda_graphs": False})
    StudyRecord(study).check_settings(settings)
    with pytest.raises(SettingsError, match="precision=auto"):
        StudyRecord(study).check_settings({**settings, "precision": "float32"})


def test_other_images_under_the_same_name_are_refused(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    import dataclasses

    open_study("s", storage, quick(digits))
    other = dataclasses.replace(
        digits, train=dataclasses.replace(digits.train, images=255 - digits.train.images)
    )
    with pytest.raises(SettingsError, match="the images are others"):
        open_study("s", storage, quick(other))


def test_a_study_of_others_is_refused(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    optuna.create_study(study_name="s", storage=storage)
    with pytest.raises(StorageError, match="not made by flatsearch"):
        open_study("s", storage, quick(digits))


def test_the_budget_counts_finished_trials_only(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    class Flaky(Tiny):
        def build(self, architecture, in_channels, num_classes):  # type: ignore[no-untyped-def]
            flaky_calls.append(1)
            if len(flaky_calls) in {3, 4}:  # a trial that trains builds twice
                raise RuntimeError("no such width")
            return super().build(architecture, in_channels, num_classes)

    flaky_calls: list[int] = []
    objective = FlatnessObjective(Flaky(), digits, epochs=1)
    study = open_study("s", storage, objective)
    run_study(study, objective, n_trials=3)
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    failure = flatsearch.record.TrialRecord(study.trials[1]).failure
    assert failure == "SpaceError: Flaky.build failed: RuntimeError: no such width"


def test_pruned_trials_use_up_the_budget(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    objective = FlatnessObjective(Tiny(), digits, epochs=2)
    study = open_study("s", storage, objective)
    study.pruner = optuna.pruners.ThresholdPruner(upper=0)

    class Always(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    study.pruner = Always()
    run_study(study, objective, n_trials=3)
    assert states(study) == ["PRUNED"] * 3


def test_stops_when_everything_fails(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    class Broken(Tiny):
        def build(self, architecture, in_channels, num_classes):  # type: ignore[no-untyped-def]
            raise RuntimeError("never works")

    objective = FlatnessObjective(Broken(), digits, epochs=1)
    study = open_study("s", storage, objective)
    with pytest.raises(flatsearch.FlatsearchError, match=r"3 trials failed in a row.*never works"):
        run_study(study, objective, n_trials=50)
    assert states(study) == ["FAIL"] * 3


def test_timeout_starts_no_new_trial(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    study = open_study("s", storage, quick(digits))
    run_study(study, quick(digits), n_trials=1000, timeout=0.5)
    assert 1 <= finished_count(study) < 1000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_trial_fails_it(
    digits: ImageData, storage: optuna.storages.BaseStorage, number: signal.Signals
) -> None:
    def kill_in_second_trial(trial: optuna.Trial, *_: object) -> None:
        if trial.number == 1:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    objective = FlatnessObjective(Tiny(), digits, epochs=2, on_epoch=kill_in_second_trial)
    study = open_study("s", storage, objective)
    with pytest.raises(Interrupted) as caught:
        run_study(study, objective, n_trials=5)
    assert caught.value.signum == number
    assert states(study) == ["COMPLETE", "FAIL"]
    assert flatsearch.record.TrialRecord(study.trials[1]).failure == "interrupted"
    assert signal.getsignal(number) is before


def test_a_signal_at_the_end_of_a_trial_keeps_it(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    objective = quick(digits, on_epoch=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    study = open_study("s", storage, objective)
    with pytest.raises(Interrupted):
        run_study(study, objective, n_trials=5)
    assert states(study) == ["COMPLETE"]


def test_a_second_signal_does_not_wait_for_a_batch(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    def twice(*_: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    objective = quick(digits, on_epoch=twice)
    study = open_study("s", storage, objective)
    with pytest.raises(Interrupted):
        run_study(study, objective, n_trials=5)
    assert states(study) == ["FAIL"]


@pytest.mark.parametrize("where", ["ask", "callback"])
def test_a_signal_between_trials_leaves_none_running(
    digits: ImageData,
    storage: optuna.storages.BaseStorage,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = open_study("s", storage, quick(digits))

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    if where == "ask":
        real = study.ask

        def ask() -> optuna.Trial:
            trial = real()
            interrupt()  # the trial is RUNNING in the storage, the objective has not begun
            return trial

        monkeypatch.setattr(study, "ask", ask)
    on_trial = interrupt if where == "callback" else None
    with pytest.raises(KeyboardInterrupt):
        run_study(study, quick(digits), n_trials=5, on_trial=on_trial)
    assert "RUNNING" not in states(study)
    assert len(states(study)) <= 2


def test_runs_outside_the_main_thread(
    digits: ImageData, storage: optuna.storages.BaseStorage
) -> None:
    import threading

    study = open_study("s", storage, quick(digits))
    thread = threading.Thread(target=run_study, args=(study, quick(digits)), kwargs={"n_trials": 1})
    thread.start()
    thread.join()
    assert states(study) == ["COMPLETE"]


def test_load_study(storage: optuna.storages.BaseStorage) -> None:
    with pytest.raises(StorageError, match="has no studies yet"):
        load_study(None, storage)
    optuna.create_study(study_name="first", storage=storage)
    assert load_study(None, storage).study_name == "first"
    optuna.create_study(study_name="second", storage=storage)
    with pytest.raises(StorageError, match="the storage has: first, second"):
        load_study(None, storage)
    with pytest.raises(StorageError, match=r"unknown study 'secnd' .did you mean 'second'"):
        load_study("secnd", storage)


@pytest.mark.parametrize(
    "name", ["tpe", "nsga2", pytest.param("gp", marks=gp_takes_several), "random"]
)
def test_every_sampler_runs(
    digits: ImageData, storage: optuna.storages.BaseStorage, name: str
) -> None:
    study = open_study("s", storage, quick(digits), sampler=name)
    run_study(study, quick(digits), n_trials=2)
    assert states(study) == ["COMPLETE"] * 2


def test_gp_of_several_objectives_takes_a_new_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatsearch.search.factories._VERSION", (4, 2))
    assert isinstance(make_sampler("gp", 0), optuna.samplers.GPSampler)
    with pytest.raises(SettingsError, match=r"sampler 'gp' takes one objective .* Optuna 4.4 on"):
        make_sampler("gp", 0, 2)


def test_unknown_sampler_and_pruner() -> None:
    with pytest.raises(SettingsError, match=r"unknown sampler 'tpes' .did you mean 'tpe'"):
        make_sampler("tpes", 0)
    with pytest.raises(SettingsError, match="unknown pruner 'mean'"):
        make_pruner("mean", ("accuracy",))
    with pytest.raises(SettingsError, match=r"learns nothing from the objective flops.*`prune_on`"):
        make_pruner("median", ("flops",))
    with pytest.raises(SettingsError, match="unknown metric to prune on 'losses'"):
        make_pruner("median", ("flops",), "losses")
    with pytest.raises(SettingsError, match="not for 'flatness'"):
        make_pruner("flatness", ("accuracy",), "loss")


def test_the_default_pruner_parks_where_it_can(digits: ImageData, tmp_path: Path) -> None:
    def pruner(store: FileSystemArtifactStore | None, **options: Any) -> BasePruner:
        objective = FlatnessObjective(Tiny(), digits, epochs=2, artifact_store=store)
        return open_study("s", InMemoryStorage(), objective, **options).pruner

    store = FileSystemArtifactStore(tmp_path)
    assert isinstance(pruner(store), OneRungPromoter)
    assert isinstance(pruner(None), FlatnessPruner)
    with pytest.raises(SettingsError, match="'promote' parks networks beside the artifacts"):
        pruner(None, pruner="promote")
    # A front takes more networks; where the time ends a run, nothing can wait for its end.
    shares = [make_pruner("promote", names)._promote for names in (("accuracy",), ("a", "b"))]  # type: ignore[attr-defined]
    assert shares == [0.125, 0.25]
    one = make_pruner("promote", ("accuracy",), counted=False)
    three = make_pruner("promote", ("accuracy", "flatness", "flops"), counted=False)
    assert all(p._at_once for p in (one, three))  # type: ignore[attr-defined]
    front = pruner(store, counted=False)
    assert isinstance(front, HalvingPromoter)
    assert front.rungs(12) == (1, 3)


@pytest.mark.parametrize("name", ["none", "flatness", "median", "asha", "hyperband"])
@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "flatness")])
def test_every_pruner_runs(
    digits: ImageData,
    storage: optuna.storages.BaseStorage,
    name: str,
    objectives: tuple[str, ...],
) -> None:
    objective = FlatnessObjective(Tiny(), digits, objectives=objectives, epochs=2)
    study = open_study("s", storage, objective, pruner=name)
    run_study(study, objective, n_trials=6)
    assert set(states(study)) <= {TrialState.COMPLETE.name, TrialState.PRUNED.name}
