"""What goes wrong around parked trials: dead processes, artifact stores, workers at once."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import NSGAIISampler, RandomSampler
from optuna.trial import TrialState

import flatsearch
from flatsearch import (
    HalvingPromoter,
    OneRungPromoter,
    PromotionSampler,
    ResumableObjective,
    StorageError,
)
from flatsearch.pruners.metric_view import claim
from flatsearch.record import Promotion, TrialRecord, write_step, write_study, write_trial
from flatsearch.search import sampler_view
from flatsearch.search.checkpoints import Checkpoint, Checkpoints
from flatsearch.search.duplicates import TrainedNetworks
from flatsearch.search.liveness import fail_dead_trials, this_process
from flatsearch.search.parking import Parking, withdraw
from flatsearch.search.sampler_view import seen
from flatsearch.search.storage import artifact_store
from flatsearch.search.tally import Tally
from flatsearch.search.trial_budget import Budget
from tests.fakes import DEAD, Resumable, Tiny

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def counting(trial: optuna.Trial) -> Resumable:
    return Resumable(trial.suggest_float("x", 0, 1))


class Broken(FileSystemArtifactStore):
    """A store of which some operations fail."""

    fails: tuple[str, ...] = ()

    def _do(self, operation: str) -> None:
        if operation in self.fails:
            raise ConnectionError("no network")

    def open_reader(self, artifact_id: str) -> BinaryIO:
        self._do("open_reader")
        return super().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._do("write")
        super().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        self._do("remove")
        super().remove(artifact_id)


class Silent(FileSystemArtifactStore):
    """A store that has an error of its own for what is not there, as Google's."""

    def remove(self, artifact_id: str) -> None:
        try:
            super().remove(artifact_id)
        except Exception:
            raise LookupError(artifact_id) from None


def study_of(pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
    study = optuna.create_study(
        sampler=PromotionSampler(RandomSampler(seed=0)),
        pruner=pruner or OneRungPromoter(("-loss",), epochs=3, promote=1, audit=0.0),
    )
    study.set_metric_names(["loss"])
    return study


def ask(study: optuna.Study, *, parked: bool = False, **facts: Any) -> optuna.Trial:
    """Ask for a trial that has been trained for an epoch."""
    trial = study.ask()
    write_step(trial, 0, {"loss": trial.suggest_float("x", 0, 1)})
    write_trial(trial, checkpoint="parked-a", **facts)
    if parked:
        write_trial(trial, parked=1)
        study.tell(trial, state=TrialState.PRUNED)
    return trial


def enqueue(study: optuna.Study, promotion: Promotion) -> None:
    attributes = {TrialRecord.promotion.key: promotion.to_dict()}
    study.enqueue_trial({"x": 0.5}, user_attrs=attributes)


def test_one_that_was_about_to_be_parked_is_told_so() -> None:
    study = study_of()
    write_trial(ask(study), worker=DEAD, parked=1)
    write_trial(ask(study), worker=DEAD)
    fail_dead_trials(study)
    assert [t.state.name for t in study.trials] == ["PRUNED", "FAIL"]


def test_a_trial_says_at_once_which_process_runs_it() -> None:
    study = study_of()
    study.ask()
    assert TrialRecord(study.trials[0]).worker == this_process()


def test_a_trial_that_never_says_so_is_dead_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of()
    study.sampler = RandomSampler()
    study.ask()
    monkeypatch.setattr("flatsearch.search.liveness._MOST_SILENT_SECONDS", -1.0)
    assert fail_dead_trials(study) == []  # somebody else's objective never does
    write_study(study, settings={"epochs": 3})
    assert [trial.number for trial in fail_dead_trials(study)] == [0]


@pytest.mark.parametrize("fails", ["open_reader", "remove", "write"])
def test_no_trial_is_lost_for_its_artifact_store(tmp_path: Path, fails: str) -> None:
    store = Broken(tmp_path)
    store.fails = (fails,)
    study = study_of(HalvingPromoter(("-loss",), epochs=3, factor=2, keep=1, audit=0.0))
    objective = ResumableObjective(counting, 3, ["loss"], artifact_store=store)
    why = "it is trained anew" if fails == "open_reader" else "ConnectionError: no network"
    with pytest.warns(UserWarning, match=why):
        study.optimize(objective, n_trials=4)
    assert {t.state.name for t in study.trials[:4]} <= {"PRUNED", "COMPLETE"}


def test_a_folder_that_cannot_be_written_to_ends_a_run(tmp_path: Path) -> None:
    study, folder = study_of(), tmp_path / "artifacts"
    folder.mkdir()
    store = artifact_store(str(folder))
    objective = ResumableObjective(counting, 3, ["loss"], artifact_store=store)
    study.optimize(objective, n_trials=1)
    shutil.rmtree(folder)
    folder.touch()
    with pytest.raises(StorageError, match="finished trials are kept"):
        study.optimize(objective, n_trials=2)
    assert [t.state.name for t in study.trials] == ["PRUNED", "FAIL"]


def test_a_store_may_refuse_to_remove_what_is_not_there(tmp_path: Path) -> None:
    kept = Checkpoints(Silent(tmp_path))
    for epochs in (1, 2):
        kept.save("a", Checkpoint("", epochs, {}, {0: {"loss": 1.0}}, {}))
    kept.drop("a")
    assert list(tmp_path.iterdir()) == []
    broken = Broken(tmp_path)
    Checkpoints(broken).save("a", Checkpoint("", 1, {}, {0: {"loss": 1.0}}, {}))
    broken.fails = ("remove",)
    with pytest.raises(ConnectionError):
        Checkpoints(broken).drop("a")


def test_only_one_of_several_workers_enqueues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of()
    parking = Parking(FileSystemArtifactStore(tmp_path))
    for _ in range(2):
        trial = ask(study)
        parking.save("parked-a", Checkpoint("", 1, {}, {}, {}))
        write_trial(trial, parked=1)
        study.tell(trial, state=TrialState.PRUNED)
    stale = study.pruner.next_promotions(study, ends=True)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(study.pruner), "next_promotions", lambda *_, **__: stale)
    assert [parking.promote(study, ends=True) for _ in range(3)] == [1, 0, 0]


def test_finishing_trains_nothing_new_if_somebody_else_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of()
    objective = ResumableObjective(
        counting, 3, ["loss"], artifact_store=FileSystemArtifactStore(tmp_path)
    )
    study.optimize(objective, n_trials=3)
    optimize = study.optimize

    def after_another(*args: Any, **options: Any) -> None:
        for trial in study.get_trials(states=(TrialState.WAITING,)):
            assert claim(study, trial)
            assert not claim(study, trial)
        optimize(*args, **options)

    monkeypatch.setattr(study, "optimize", after_another)
    flatsearch.finish(study, objective)
    last = TrialRecord(study.trials[-1])
    assert (last.state, last.late, last.steps) == ("FAIL", True, {})
    assert [t.state.name for t in study.trials[3:]] == ["RUNNING", "FAIL"]


def test_finishing_goes_on_with_what_was_cut_off(tmp_path: Path) -> None:
    study = study_of()
    store = FileSystemArtifactStore(tmp_path)
    objective = ResumableObjective(counting, 3, ["loss"], artifact_store=store)
    study.optimize(objective, n_trials=2)
    objective.parking.promote(study, ends=True)
    write_trial(ask(study), worker=DEAD, checkpoint=TrialRecord(study.trials[0]).checkpoint)
    number = TrialRecord(study.trials[2]).begun_by
    flatsearch.finish(study, objective)
    again = TrialRecord(study.trials[3]).promotion
    assert again == Promotion(number, 1, 3, "cut off")
    assert study.trials[3].state == TrialState.COMPLETE


def test_what_is_withdrawn_may_wait_behind_others() -> None:
    study = study_of()
    ask(study, parked=True)
    study.enqueue_trial({"x": 0.1})
    enqueue(study, Promotion(0, 1, 3))
    withdraw(study)
    assert [t.state.name for t in study.trials] == ["PRUNED", "WAITING", "FAIL"]
    assert TrialRecord(study.trials[2]).late


def test_nobody_waits_for_the_queue_that_nobody_takes_then() -> None:
    study = study_of()
    study.tell(ask(study), state=TrialState.FAIL)
    enqueue(study, Promotion(0, 0, 0, "cut off"))
    write_trial(study.ask(), worker=DEAD)  # has taken it, and dies
    study.tell(1, state=TrialState.FAIL)
    enqueue(study, Promotion(0, 0, 0, "cut off"))
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING))
    assert Budget(1).state(study, 3) == "done"
    assert Budget(2).state(study, 3) == "run"
    assert Budget(1).state(study) == "wait"


def test_a_network_that_waits_to_go_on_is_not_begun_again() -> None:
    study = study_of()
    study.tell(ask(study, network="same"), state=TrialState.FAIL)
    enqueue(study, Promotion(0, 0, 0, "cut off"))
    found = TrainedNetworks()
    other = optuna.trial.create_trial(state=TrialState.RUNNING)
    study.add_trial(other)
    earlier = found.find(study, 2, "same")
    assert earlier is not None
    assert earlier.number == 0
    study.ask()  # it is taken up
    assert found.find(study, 1, "same") is None


def test_what_is_promoted_hides_nothing_of_an_exhausted_space() -> None:
    study = study_of()
    ask(study, parked=True)
    tally = Tally(Tiny(), 3)
    tally._exhausted = 2
    for _ in range(4):
        trial = study.ask()
        write_trial(trial, duplicate_of=0)
        study.tell(trial, state=TrialState.PRUNED)
        tally.count(study, study.trials[-1])
    enqueue(study, Promotion(0, 1, 3))
    study.tell(study.ask(), 0.5)
    tally.count(study, study.trials[-1])
    assert tally.duplicates == 4


def test_duplicates_of_a_parked_network_are_not_held_against_it() -> None:
    study = study_of()
    ask(study, parked=True)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    write_trial(trial, duplicate_of=0)
    study.tell(trial, state=TrialState.PRUNED)
    shown = seen(study).trials
    assert [t.state.name for t in shown] == ["COMPLETE", "FAIL"]


def test_a_sampler_is_shown_the_study_through_one_view(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    show = sampler_view._show
    monkeypatch.setattr(
        sampler_view,
        "_show",
        lambda *given: shown.append(1) or show(*given),  # type: ignore[func-returns-value]
    )
    study = study_of()
    inner = NSGAIISampler(seed=0, population_size=2)
    nested = PromotionSampler(PromotionSampler(inner))
    assert nested.sampler is inner
    study.sampler = PromotionSampler(optuna.samplers.TPESampler(seed=0, n_startup_trials=1))
    for _ in range(3):
        ask(study, parked=True)
    before = len(shown)
    trial = study.ask()
    for i in range(5):
        trial.suggest_float(f"y{i}", 0, 1)
    assert len(shown) <= before + 1
    view = seen(study)
    storage: Any = view._storage
    key = "constraints"
    study._storage.set_trial_system_attr(trial._trial_id, key, [1.0])
    assert storage.get_trial_system_attrs(trial._trial_id)[key] == [1.0]
    told = study._storage.get_trial(study.trials[0]._trial_id)
    assert storage.get_trial(told._trial_id).state == TrialState.COMPLETE
    assert storage.get_trial_system_attrs(told._trial_id) == view.trials[0].system_attrs
