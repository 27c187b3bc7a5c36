"""The training recipe as a part of a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest

from flatsearch import FlatnessObjective, RunSettings, SpaceError, record
from flatsearch.search.recipe import suggest_recipe
from flatsearch.training.trainer import Trainer
from tests.fakes import Tiny

if TYPE_CHECKING:
    from flatsearch.data.splits import ImageData


def drawn(space: Tiny, count: int = 40, *, may_flip: bool = True) -> list[RunSettings]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    settings = RunSettings(epochs=3, momentum=0.8)
    return [
        suggest_recipe(space, study.ask(), settings, may_flip=may_flip)[0] for _ in range(count)
    ]


def test_the_default_recipe() -> None:
    recipes = drawn(Tiny())
    assert {r.augment for r in recipes} == {"none", "crop", "crop+flip"}
    assert {r.augment for r in drawn(Tiny(), may_flip=False)} == {"none", "crop"}
    assert {r.batch_size for r in recipes} == {32, 64, 128, 256}
    assert all(0.01 <= r.lr <= 0.5 and 1e-5 <= r.weight_decay <= 1e-2 for r in recipes)
    # On a logarithmic scale half of them are below the geometric mean.
    assert 10 <= sum(r.lr < 0.07 for r in recipes) <= 30
    assert {(r.epochs, r.momentum) for r in recipes} == {(3, 0.8)}  # not part of it


def test_a_recipe_of_the_spaces_own() -> None:
    class Own(Tiny):
        def suggest_recipe(self, trial: optuna.Trial) -> dict[str, Any]:
            return {"lr": trial.suggest_float("lr", 0.3, 0.4), "momentum": 0.5}

    for recipe in drawn(Own()):
        assert 0.3 <= recipe.lr <= 0.4
        assert (recipe.momentum, recipe.batch_size) == (0.5, RunSettings().batch_size)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"epochs": 100}, "Own.suggest_recipe must return settings of lr, .* returned 'epochs'"),
        ({"lr": -1}, "Own.suggest_recipe: `lr` must be above 0 but got -1.0"),
        (3, "Own.suggest_recipe must return settings by name but returned 3"),
        ({1: 2, "a": 3}, "returned 1, 'a'"),
        ({"lr": True}, "Own.suggest_recipe: `lr` must be a finite Python number but got True"),
    ],
)
def test_a_broken_recipe(returned: Any, message: str) -> None:
    class Own(Tiny):
        def suggest_recipe(self, trial: optuna.Trial) -> Any:
            return returned

    with pytest.raises(SpaceError, match=message):
        drawn(Own())


def test_it_is_trained_with_the_recipe(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    import flatsearch.search.epochs

    used: list[RunSettings] = []

    def spy(model: Any, data: Any, settings: RunSettings, **options: Any) -> Trainer:
        used.append(settings)
        return Trainer(model, data, settings, **options)

    monkeypatch.setattr(flatsearch.search.epochs, "Trainer", spy)
    objective = FlatnessObjective(Tiny(), digits, settings=RunSettings(epochs=1, tune_recipe=True))
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=2)
    for settings, trial in zip(used, study.trials, strict=True):
        assert settings.lr == trial.params["recipe_lr"]
        recipe = record.TrialRecord(trial).recipe
        assert {name: getattr(settings, name) for name in recipe} == recipe
    assert used[0].lr != used[1].lr
