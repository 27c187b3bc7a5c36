"""Objectives of one's own that are parked and go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore

import flatsearch
from flatsearch import (
    HalvingPromoter,
    OneRungPromoter,
    PromotionSampler,
    ResumableObjective,
    SettingsError,
)
from flatsearch.record import TrialRecord, read_trials
from tests.fakes import Resumable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EPOCHS = 9


class Falling(Resumable):
    """A loss that falls from 1 towards what the parameter is worth; remembers every epoch."""

    trained: list[tuple[float, int]] = []  # noqa: RUF012 - all of the test

    def __init__(self, trial: optuna.Trial) -> None:
        super().__init__(trial.suggest_float("x", 0, 1))

    def epoch(self) -> Mapping[str, float]:
        (x,) = super().epoch().values()
        self.trained.append((x, self.done))
        return {"loss": x + (1 - x) * (1 - self.done / EPOCHS), "x": x}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "lists": [1, {"a": 2.0}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["lists"] == [1, {"a": 2.0}]
        super().load_state_dict(state)


@pytest.fixture
def study() -> optuna.Study:
    Falling.trained = []
    return optuna.create_study(
        sampler=PromotionSampler(optuna.samplers.TPESampler(seed=0)),
        pruner=HalvingPromoter(("-loss",), epochs=EPOCHS, audit=0.0),
    )


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trials_are_parked_and_go_on_until_nothing_is_left(
    study: optuna.Study, tmp_path: Path
) -> None:
    store = FileSystemArtifactStore(tmp_path)
    objective = ResumableObjective(Falling, EPOCHS, ["loss"], artifact_store=store)
    study.set_metric_names(objective.metric_names)
    study.optimize(objective, n_trials=20)
    flatsearch.finish(study, objective)
    assert {t.state.name for t in study.trials} == {"COMPLETE", "PRUNED"}
    trials = read_trials(study.trials)
    assert any(t.promotion is not None for t in trials)
    # No epoch of any network was trained twice, or left out.
    for x in {x for x, _ in Falling.trained}:
        epochs = [epoch for other, epoch in Falling.trained if other == x]
        assert epochs == list(range(1, len(epochs) + 1))
    best = min((t for t in trials if t.own), key=lambda t: t.params["x"])
    assert best.complete
    assert [round(m["loss"], 9) for m in best.steps.values()][-1] == round(best.params["x"], 9)
    assert len(best.steps) == EPOCHS
    assert study.best_trial.number == best.number
    assert objective(study.best_trial) == study.best_value
    Falling.trained = Falling.trained[:-EPOCHS]
    spent = len(Falling.trained)
    assert spent < 0.6 * EPOCHS * len({t.params["x"] for t in trials})
    flatsearch.finish(study, objective)
    assert len(Falling.trained) == spent


def test_without_a_store_it_is_pruned(study: optuna.Study) -> None:
    objective = ResumableObjective(Falling, EPOCHS, ["loss"])
    with pytest.warns(UserWarning, match="without an artifact store"):
        study.optimize(objective, n_trials=4)
    assert {t.state.name for t in study.trials} <= {"PRUNED", "COMPLETE"}
    assert all(TrialRecord(t).parked is None for t in study.trials)


def test_arguments() -> None:
    with pytest.raises(SettingsError, match="`epochs` must be at least 1 but got 0"):
        ResumableObjective(Falling, 0, ["loss"])
    with pytest.raises(SettingsError, match="`objectives` must be names of metrics"):
        ResumableObjective(Falling, 1, "loss")


class Watches(optuna.samplers.RandomSampler):
    """Notes how many finished trials it sees at every proposal, as TPE and GP look at them."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.seen: list[int] = []

    def sample_independent(self, study: optuna.Study, *given: Any) -> Any:
        trials = study._get_trials(deepcopy=False, use_cache=True)
        self.seen.append(sum(trial.state.is_finished() for trial in trials))
        return super().sample_independent(study, *given)


def test_a_sampler_sees_every_trial_that_has_ended(study: optuna.Study, tmp_path: Path) -> None:
    study.sampler = PromotionSampler(watches := Watches())
    store = FileSystemArtifactStore(tmp_path)
    objective = ResumableObjective(Falling, EPOCHS, ["loss"], artifact_store=store)
    study.set_metric_names(objective.metric_names)
    study.optimize(objective, n_trials=12)
    begun = [t.number for t in read_trials(study.trials) if t.promotion is None]
    assert watches.seen == begun
    assert len(begun) > 5


def point(trial: optuna.Trial) -> Resumable:
    return Resumable(sum((trial.suggest_float(name, 0, 1) - 0.7) ** 2 for name in "wxyz"))


def test_genetic_samplers_see_how_good_parked_trials_are(tmp_path: Path) -> None:
    study = optuna.create_study(
        sampler=PromotionSampler(optuna.samplers.NSGAIISampler(population_size=6, seed=0)),
        pruner=OneRungPromoter(("-loss",), epochs=2),
    )
    store = FileSystemArtifactStore(tmp_path)
    objective = ResumableObjective(point, 2, ["loss"], artifact_store=store)
    study.optimize(objective, n_trials=36)
    assert study.metric_names == ["loss"]  # by which values are predicted
    found = [TrialRecord(trial).steps[0]["loss"] for trial in study.trials]
    assert sum(found[-12:]) < 0.5 * sum(found[:12])


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.GridSampler({"x": [0.0, 0.5, 1.0]}, seed=0),
        optuna.samplers.BruteForceSampler(seed=0),
    ],
)
def test_a_sampler_with_nothing_left_ends_the_study(
    tmp_path: Path, sampler: optuna.samplers.BaseSampler
) -> None:
    def stepped(trial: optuna.Trial) -> Resumable:
        return Resumable(trial.suggest_float("x", 0, 1, step=0.5))

    study = optuna.create_study(
        sampler=PromotionSampler(sampler), pruner=OneRungPromoter(("-loss",), epochs=2)
    )
    store = FileSystemArtifactStore(tmp_path)
    objective = ResumableObjective(stepped, 2, ["loss"], artifact_store=store)
    study.set_metric_names(objective.metric_names)
    study.optimize(objective, n_trials=9)
    assert sorted(trial.params["x"] for trial in study.trials) == [0.0, 0.5, 1.0]
    flatsearch.finish(study, objective)
    assert study.best_params == {"x": 0.0}


def test_a_promoter_inside_another_pruner_says_that_it_prunes_for_good(tmp_path: Path) -> None:
    pruner = flatsearch.AnyPruner(OneRungPromoter(("-loss",), epochs=2))
    study = optuna.create_study(pruner=pruner)
    store = FileSystemArtifactStore(tmp_path)
    objective = ResumableObjective(point, 2, ["loss"], artifact_store=store)
    with pytest.warns(UserWarning, match="OneRungPromoter parks nothing inside a AnyPruner"):
        study.optimize(objective, n_trials=2)
    assert {trial.state.name for trial in study.trials} == {"PRUNED"}
