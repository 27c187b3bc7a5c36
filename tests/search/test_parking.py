"""Trials that are parked, promoted and gone on with: by anyone, after anything, once."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from torch import nn

from flatsearch import (
    Architecture,
    FlatnessObjective,
    GapCnn,
    HalvingPromoter,
    OneRungPromoter,
    PromotionSampler,
    RunSettings,
    record,
)
from flatsearch.analysis.summary import summarise
from flatsearch.record import Promotion, TrialRecord, read_trials
from flatsearch.search.checkpoints import Checkpoint, Checkpoints
from flatsearch.search.factories import make_pruner
from flatsearch.search.loop import run_study
from flatsearch.search.parking import finish
from flatsearch.search.sampler_view import seen
from flatsearch.search.storage import open_storage
from flatsearch.search.study import open_study
from flatsearch.search.trial_budget import finished_count
from tests.fakes import Tiny, draw_nothing, gp_takes_several
from tests.programs import Program

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.data.splits import ImageData
    from flatsearch.pruners.promoter import Promoter
    from flatsearch.training.trainer import EpochResult


class Noisy(Tiny):
    """Networks whose training takes random numbers of PyTorch's own."""

    def build(self, architecture: Architecture, in_channels: int, num_classes: int) -> nn.Module:
        width = architecture["width"]
        conv = nn.Conv2d(in_channels, width, 3, padding=1)
        features = nn.Sequential(conv, nn.LeakyReLU(architecture["slope"]), nn.Dropout2d(0.2))
        return GapCnn(features, width, num_classes)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the training."""
    draw_nothing(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> FileSystemArtifactStore:
    (tmp_path / "files").mkdir()
    return FileSystemArtifactStore(tmp_path / "files")


def make(data: ImageData, store: Any, *, epochs: int = 3, **options: Any) -> FlatnessObjective:
    settings = RunSettings(
        layers="last",
        objectives=options.pop("objectives", ("accuracy",)),
        min_accuracy=options.pop("min_accuracy", None),
    )
    options = {"device": "cpu", "artifact_store": store, **options}
    return FlatnessObjective(Noisy(), data, epochs=epochs, settings=settings, **options)


def study_of(
    objective: FlatnessObjective, pruner: Promoter, storage: Any = None, name: str = "s"
) -> optuna.Study:
    study = open_study(name, storage or InMemoryStorage(), objective)
    study.sampler, study.pruner = RandomSampler(seed=3), pruner
    return study


def checkpoints(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").glob("parked-*"))


def numbers(trial: TrialRecord) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in metrics.items() if name != "train_seconds"}
        for step, metrics in trial.steps.items()
    }


def halving(**options: Any) -> HalvingPromoter:
    return HalvingPromoter(**{"audit": 0.0, "factor": 2, **options})


def test_a_promoted_trial_is_the_same_as_one_that_was_never_parked(
    digits: ImageData, store: FileSystemArtifactStore, tmp_path: Path
) -> None:
    objectives = ("accuracy", "flatness")
    made = make(digits, store, objectives=objectives)
    study = study_of(made, OneRungPromoter(promote=1, audit=0.0))
    run_study(study, made, n_trials=3)
    trials = read_trials(study.trials)
    assert [t.state for t in trials] == ["PRUNED"] * 3 + ["COMPLETE"]
    assert [t.parked for t in trials] == [1, 1, 1, None]
    assert trials[3].promotion is not None
    first = trials[3].promotion.trial
    assert trials[first].superseded_by == 3
    assert finished_count(study) == 3
    whole = make(digits, None, objectives=objectives)
    other = study_of(whole, halving())
    other.pruner = optuna.pruners.NopPruner()
    run_study(other, whole, n_trials=3)
    assert trials[3].values == TrialRecord(other.trials[first]).values
    assert numbers(trials[3]) == numbers(TrialRecord(other.trials[first]))
    assert trials[3].metrics == TrialRecord(other.trials[first]).metrics
    assert trials[3].network == trials[first].network
    # What has been trained to the end is not kept as a checkpoint.
    names = {t.checkpoint for t in trials if t.number != first}
    assert {name.rpartition("-")[0] for name in checkpoints(tmp_path)} == names - {
        trials[first].checkpoint
    }


def test_the_budget_is_exact_and_the_rule_is_done(
    digits: ImageData, store: FileSystemArtifactStore
) -> None:
    made = make(digits, store, epochs=4)
    study = study_of(made, halving())
    run_study(study, made, n_trials=6)
    assert finished_count(study) == 6
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "PRUNED"}
    assert summarise(study).counts["COMPLETE"] >= 1
    assert study.pruner.next_promotions(study) == []  # type: ignore[attr-defined]
    before = {n.number for n in study.pruner.board(study).networks if n.parked}  # type: ignore[attr-defined]
    # Later trials may be worse, and promote old ones.
    run_study(study, made, n_trials=6)
    assert finished_count(study) == 12
    later = [TrialRecord(t).promotion for t in study.trials]
    assert before
    assert len([p for p in later if p is not None]) >= 1
    values = [r.network for r in read_trials(study.trials) if r.finished]
    assert len(values) == len(set(values)) == 12


def test_by_the_clock_a_front_has_two_rungs_and_the_first_is_trained_to_the_end(
    digits: ImageData, store: FileSystemArtifactStore
) -> None:
    objectives = ("accuracy", "flatness")
    made = make(digits, store, epochs=8, objectives=objectives)
    study = study_of(made, make_pruner("promote", objectives, counted=False))  # type: ignore[arg-type]
    run_study(study, made, n_trials=9)
    trials = read_trials(study.trials)
    assert trials[0].state == "COMPLETE"
    assert trials[0].promotion is None
    assert {trial.parked for trial in trials} == {None, 1, 3}
    assert 1 <= summarise(study).counts["COMPLETE"] <= 5
    # A run without a clock goes on with what was parked later.
    study.pruner = make_pruner("promote", objectives)
    study.pruner._promote = 8  # type: ignore[attr-defined]
    finish(study, made)
    assert summarise(study).counts["COMPLETE"] == 8


def test_plain_optimize_parks_and_promotes(
    digits: ImageData, store: FileSystemArtifactStore
) -> None:
    made = make(digits, store)
    study = optuna.create_study(
        directions=made.directions,
        pruner=OneRungPromoter(promote=1, n_trials=3, audit=0.0),
        sampler=RandomSampler(seed=0),
    )
    study.optimize(made, n_trials=4)
    assert [t.state.name for t in study.trials] == ["PRUNED"] * 3 + ["COMPLETE"]
    assert TrialRecord(study.trials[3]).promotion is not None
    # A single-objective study's own metric goes on, too, for Optuna's pruners and pictures.
    study.set_metric_names(["accuracy"])
    assert len(TrialRecord(study.trials[3]).steps) == 3


def test_soft_pruning_parks_softly(digits: ImageData, store: FileSystemArtifactStore) -> None:
    made = make(digits, store, prune_mode="soft")
    study = study_of(made, OneRungPromoter(promote=1, audit=0.0))
    run_study(study, made, n_trials=2)
    trials = read_trials(study.trials)
    assert [t.state for t in trials] == ["COMPLETE"] * 3
    assert [t.complete for t in trials] == [False, False, True]
    assert [t.own for t in trials].count(True) == 2
    assert summarise(study).front == (2,)
    assert summarise(study).counts == {"PARKED": 1, "PROMOTED": 1, "COMPLETE": 1}


def test_without_a_store_it_is_pruned_and_that_is_said_once(digits: ImageData) -> None:
    made = make(digits, None)
    study = study_of(made, halving())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_study(study, made, n_trials=2)
    said = [str(w.message) for w in caught if "artifact store" in str(w.message)]
    assert said == ["without an artifact store no trial can be parked: HalvingPromoter prunes for"
                    " good"]  # fmt: skip
    assert TrialRecord(study.trials[0]).stopped == "pruned after epoch 1"
    assert all(TrialRecord(t).parked is None for t in study.trials)


def test_of_two_that_promote_the_same_the_later_one_ends(
    digits: ImageData, store: FileSystemArtifactStore
) -> None:
    made = make(digits, store)
    study = study_of(made, OneRungPromoter(promote=1, audit=0.0))
    study.optimize(made, n_trials=1)
    for _ in range(2):
        attributes = {TrialRecord.promotion.key: Promotion(0, 1, 3).to_dict()}
        study.enqueue_trial(study.trials[0].params, user_attrs=attributes)
    study.optimize(made, n_trials=2)
    assert [t.state.name for t in study.trials] == ["PRUNED", "COMPLETE", "FAIL"]
    last = TrialRecord(study.trials[2])
    assert (last.failure, last.late) == ("trial 1 goes on with the same network", True)
    assert finished_count(study) == 1


@pytest.mark.parametrize("n_trials", [1, None])  # promoted before it is missing, or after
def test_a_missing_checkpoint_is_trained_again(
    n_trials: int | None, digits: ImageData, store: FileSystemArtifactStore, tmp_path: Path
) -> None:
    made = make(digits, store)
    study = study_of(made, OneRungPromoter(promote=1, n_trials=n_trials, audit=0.0))
    study.optimize(made, n_trials=1)
    for name in checkpoints(tmp_path):
        store.remove(name)
    finish(study, made)
    first, second = map(TrialRecord, study.trials)
    assert (first.parked, second.complete) == (1, True)
    assert numbers(second)[0] == numbers(first)[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": {}},
        {"state": None},
        {"state": {"model": {}, "trainer": {}, "random": {}}},
        {"steps": {}},
        {"epochs": 7},
        {"network": "another"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_checkpoint_with_other_contents_is_trained_again(
    wrong: dict[str, Any], digits: ImageData, store: FileSystemArtifactStore, tmp_path: Path
) -> None:
    made = make(digits, store)
    study = study_of(made, OneRungPromoter(promote=1, audit=0.0))
    study.optimize(made, n_trials=1)
    for name in checkpoints(tmp_path):
        file = tmp_path / "files" / name
        torch.save({**torch.load(file), **wrong}, file)
    with pytest.warns(UserWarning, match="it is trained anew"):
        finish(study, made)
    first, second = map(TrialRecord, study.trials)
    assert (first.parked, second.complete, sorted(second.steps)) == (1, True, [0, 1, 2])
    assert numbers(second)[0] == numbers(first)[0]


def test_a_duplicate_of_a_parked_trial_is_one_of_what_became_of_it(
    digits: ImageData, store: FileSystemArtifactStore
) -> None:
    made = make(digits, store)
    study = study_of(made, OneRungPromoter(promote=1, n_trials=1, audit=0.0))
    study.enqueue_trial({"width": 3, "slope": 0.5})
    study.optimize(made, n_trials=1)
    params = study.trials[0].params
    # The promotion waits before these.
    for _ in range(2):
        study.enqueue_trial(params)
    study.optimize(made, n_trials=3)
    assert [t.state.name for t in study.trials] == ["PRUNED"] + ["COMPLETE"] * 3
    assert [TrialRecord(t).duplicate_of for t in study.trials] == [None, None, 1, 1]
    assert study.trials[3].values == study.trials[1].values


def test_disk_use_is_bounded(
    digits: ImageData, store: FileSystemArtifactStore, tmp_path: Path
) -> None:
    made = make(digits, store, epochs=2)
    study = study_of(made, OneRungPromoter(promote=1, keep=3, audit=0.0))
    run_study(study, made, n_trials=7)
    assert len(checkpoints(tmp_path)) == 2  # of the best three one was promoted
    networks = study.pruner.board(study).networks  # type: ignore[attr-defined]
    best = study.pruner.board(study).judge.order(networks, 1)  # type: ignore[attr-defined]
    kept = [n.number for n in best if n.parked][:2]
    names = {TrialRecord(study.trials[n]).checkpoint for n in kept}
    assert {name.rpartition("-")[0] for name in checkpoints(tmp_path)} == names


def test_as_many_are_kept_as_will_go_on(digits: ImageData, store: FileSystemArtifactStore) -> None:
    made = make(digits, store, epochs=2)
    study = study_of(made, OneRungPromoter(promote=0.5, keep=1, audit=0.0))
    run_study(study, made, n_trials=6)
    assert sum(TrialRecord(trial).complete for trial in study.trials) == 3


def test_a_half_written_checkpoint_is_none(store: FileSystemArtifactStore, tmp_path: Path) -> None:
    kept = Checkpoints(store)

    def after(epochs: int) -> Checkpoint:
        weights = {"w": torch.full((3,), float(epochs))}
        return Checkpoint("key", epochs, weights, {epochs - 1: {"loss": 0.5}}, {})

    for epochs in (1, 2, 3):
        kept.save("parked-a", after(epochs))
        assert len(checkpoints(tmp_path)) == 1
    content = (tmp_path / "files" / checkpoints(tmp_path)[0]).read_bytes()
    (tmp_path / "files" / "parked-a-0.pt").write_bytes(content[: len(content) // 2])
    found = kept.load("parked-a", torch.device("cpu"))
    assert found is not None
    assert (found.epochs, found.steps, found.state["w"].tolist()) == (
        3,
        {2: {"loss": 0.5}},
        [3.0] * 3,
    )
    kept.save("parked-a", after(4))
    assert checkpoints(tmp_path) == ["parked-a-0.pt"]
    assert kept.has("parked-a")
    kept.drop("parked-a")
    assert not kept.has("parked-a")
    assert kept.load("parked-a", torch.device("cpu")) is None


def killed_in_the_second_epoch(data: ImageData, folder: Path) -> None:
    def kill(_: object, epoch: EpochResult, __: object) -> None:
        if epoch.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    made = make(data, FileSystemArtifactStore(folder / "files"), on_epoch=kill)
    study = study_of(made, OneRungPromoter(rung=5), open_storage(f"sqlite:///{folder}/s.db"))
    study.optimize(made, n_trials=1)


def test_a_killed_process_loses_one_epoch(
    digits: ImageData, store: FileSystemArtifactStore, tmp_path: Path
) -> None:
    seen_epochs: list[tuple[int, int]] = []
    made = make(
        digits,
        store,
        epochs=3,
        on_epoch=lambda trial, epoch, _: seen_epochs.append((trial.number, epoch.epoch)),
    )
    code, _, err = Program(killed_in_the_second_epoch, digits, tmp_path).end()
    assert code == -signal.SIGKILL, err
    study = study_of(made, OneRungPromoter(rung=5), open_storage(f"sqlite:///{tmp_path}/s.db"))
    assert [t.state.name for t in study.trials] == ["FAIL"]
    run_study(study, made, n_trials=1)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    assert seen_epochs == [(1, 2), (1, 3)]
    assert finished_count(study) == 1
    went_on = TrialRecord(study.trials[1])
    assert went_on.promotion == Promotion(0, 0, 0, "cut off")
    whole = make(digits, None)
    other = study_of(whole, halving())
    other.pruner = optuna.pruners.NopPruner()
    other.optimize(whole, n_trials=1)
    assert numbers(went_on) == numbers(TrialRecord(other.trials[0]))
    assert checkpoints(tmp_path) == []


def test_workers_never_run_a_network_twice_at_once(
    digits: ImageData, store: FileSystemArtifactStore, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study_of(make(digits, store), halving(), open_storage(url))
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            made = make(digits, store)
            study = open_study("s", open_storage(url), made, sampler="random", worker=worker)
            study.pruner = halving()
            run_study(study, made, target=6)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    study = optuna.load_study(study_name="s", storage=url)
    assert finished_count(study) == 6
    trials = read_trials(study.trials)
    assert not {t.state for t in trials} & {"RUNNING", "WAITING"}
    told = [t.promotion for t in trials if t.promotion is not None and t.state != "FAIL"]
    assert told
    assert max(Counter((p.trial, p.after) for p in told).values()) == 1
    spans: dict[int, list[Any]] = {}
    for trial, found in zip(study.trials, trials, strict=True):
        if found.steps:
            first = found.promotion.trial if found.promotion is not None else found.number
            spans.setdefault(first, []).append(trial)
    for parts in spans.values():
        for earlier, later in itertools.pairwise(parts):
            # A promotion may be taken in the moment in which its trial is told.
            assert TrialRecord(earlier).parked is not None
            assert later.number > earlier.number


def test_what_waits_at_the_end_is_withdrawn(
    digits: ImageData, store: FileSystemArtifactStore
) -> None:
    made = make(digits, store)
    study = study_of(made, OneRungPromoter(promote=1, n_trials=1, audit=0.0))
    study.optimize(made, n_trials=1)
    assert study.trials[1].state == TrialState.WAITING
    run_study(study, made, n_trials=1, timeout=1e-9)
    assert study.trials[1].state == TrialState.FAIL
    assert TrialRecord(study.trials[1]).late
    run_study(study, made, n_trials=0)
    assert [t.state.name for t in study.trials][2:] == ["COMPLETE"]


def test_what_has_not_learnt_yet_may_learn_later(
    digits: ImageData, store: FileSystemArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(digits, store, objectives=("accuracy", "flatness"), min_accuracy=0.0)
    study = study_of(made, OneRungPromoter(promote=1, n_trials=1, audit=0.0))

    def least(_: object) -> float:
        return 1.0 if len(study.trials) == 1 else 0.0

    monkeypatch.setattr(type(made._standard), "accuracy", property(least), raising=False)
    study.optimize(made, n_trials=2)
    first, second = map(TrialRecord, study.trials)
    assert first.guesses
    assert second.complete
    assert second.feasible


def test_what_guesses_is_infeasible_to_samplers(
    digits: ImageData, store: FileSystemArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(digits, store, objectives=("accuracy", "flatness"))
    monkeypatch.setattr(made._standard, "accuracy", 1.5)
    study = study_of(made, halving())
    study.optimize(made, n_trials=3)
    assert {TrialRecord(trial).parked for trial in study.trials} >= {1}
    for trial in seen(study).trials:
        assert max(record.read_constraints(trial).values(), default=0) > 0


def test_nsga2_keeps_its_parents(digits: ImageData) -> None:
    study = optuna.create_study(
        directions=["minimize"] * 2,
        pruner=HalvingPromoter(("-a",), epochs=9, audit=0.0),
        sampler=PromotionSampler(optuna.samplers.NSGAIISampler(population_size=4, seed=0)),
    )
    study.set_metric_names(["a", "b"])
    for _ in range(40):
        trial = study.ask()
        promotion = TrialRecord(trial).promotion
        x = [trial.suggest_float(f"x{i}", 0, 1) for i in range(3)]
        done = 1 if promotion is None else promotion.until
        for step in range(done):
            record.write_step(trial, step, {"a": x[0] - step, "b": x[1] + x[2]})
        if done < 9:
            record.write_trial(trial, parked=done)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [x[0] - 8, x[1] + x[2]])
        for told in study.pruner.next_promotions(study):  # type: ignore[attr-defined]
            attributes = {TrialRecord.promotion.key: told.to_dict()}
            study.enqueue_trial(study.trials[told.trial].params, user_attrs=attributes)
    assert {t.state.name for t in study.trials} >= {"PRUNED", "COMPLETE"}


@pytest.mark.parametrize("prune_mode", ["hard", "soft"])
def test_samplers_see_every_network_once(
    digits: ImageData, store: FileSystemArtifactStore, prune_mode: Any
) -> None:
    made = make(digits, store, prune_mode=prune_mode)
    study = study_of(made, OneRungPromoter(promote=1, audit=0.0))
    study.optimize(made, n_trials=2)
    early = [TrialRecord(t).steps[0]["accuracy"] for t in study.trials]
    shown = seen(study).get_trials(deepcopy=False)
    assert [(t.state.name, t.value) for t in shown] == [("COMPLETE", value) for value in early]
    run_study(study, made, n_trials=0)
    shown = seen(study).get_trials(deepcopy=False)
    promotion = TrialRecord(study.trials[2]).promotion
    assert promotion is not None
    first, other = promotion.trial, 1 - promotion.trial
    assert (shown[first].state, shown[2].state) == (TrialState.COMPLETE, TrialState.FAIL)
    assert shown[first].value == study.trials[2].value
    # What the promoted one has gained since is what the other is predicted to gain.
    gained = (study.trials[2].value or 0) - early[first]
    assert shown[other].value == pytest.approx(early[other] + gained)
    assert all(value <= 0 for i in (0, 1) for value in record.read_constraints(shown[i]).values())
    complete = seen(study).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    assert [t.number for t in complete] == [0, 1]
    # The study itself is left alone.
    assert study.trials[other].value != shown[other].value or gained == 0


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", pytest.param("gp", marks=gp_takes_several)])
def test_samplers_take_it(digits: ImageData, store: FileSystemArtifactStore, sampler: str) -> None:
    made = make(digits, store, epochs=2, objectives=("accuracy", "flatness"))
    study = open_study("s", InMemoryStorage(), made, sampler=sampler)
    study.pruner = halving()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_study(study, made, n_trials=12 if sampler == "tpe" else 4)
    assert finished_count(study) == (12 if sampler == "tpe" else 4)
    assert any(record.TrialRecord(t).promotion for t in study.trials)
