"""A training loop of the user's inside of the objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import nn

from flatsearch import FlatnessObjective, RunSettings, SettingsError, UsageError, record
from flatsearch.analysis.selection import choose
from flatsearch.analysis.summary import summarise
from flatsearch.retrain.training import retrain
from flatsearch.search.study import open_study
from tests.fakes import Tiny

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from flatsearch.data.splits import ImageData

SETTINGS = RunSettings(objectives=("accuracy",), epochs=3)
closed: list[int] = []


def adamw(
    model: nn.Module, data: ImageData, settings: RunSettings, seed: int
) -> Generator[tuple[float, float], None, None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    try:
        for epoch in range(settings.epochs):
            assert model.training
            for x, y in data.train.batches(settings.batch_size, generator=generator):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
                optimizer.step()
            yield 1.0 / (epoch + 1), 0.5
    finally:
        closed.append(seed)


def short(*_: Any) -> Generator[tuple[float, float], None, None]:
    yield 1.0, 0.5


def wordy(*_: Any) -> Generator[str, None, None]:
    yield "done"


def exploding(*_: Any) -> Generator[tuple[float, float], None, None]:
    yield float("nan"), 0.5


def search(digits: ImageData, train: Any, **options: Any) -> optuna.Study:
    objective = FlatnessObjective(Tiny(), digits, settings=SETTINGS, train=train, device="cpu")
    study = open_study("own", optuna.storages.InMemoryStorage(), objective, **options)
    study.optimize(objective, n_trials=1)
    return study


def test_it_trains_and_everything_else_stays(digits: ImageData, tmp_path: Path) -> None:
    study = search(digits, adamw)
    trial = record.TrialRecord(study.trials[0])
    assert [step["train_loss"] for step in trial.steps.values()] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert {"accuracy", "loss", "flatness", "noise_loss"} <= set(trial.steps[0])
    assert trial.values == (trial.metrics["accuracy"],)
    # A plain training of the same network leads elsewhere.
    assert search(digits, None).trials[0].user_attrs["loss"] != trial.metrics["loss"]
    with pytest.raises(UsageError, match=r"was trained by '.*:adamw', a loop of its own"):
        retrain(study, choose(summarise(study)), digits, tmp_path / "final")


def test_a_pruned_trial_ends_it(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatsearch.search.epochs.should_prune", lambda _: True)
    closed.clear()
    (trial,) = search(digits, adamw).trials
    assert trial.state == TrialState.PRUNED
    assert len(record.TrialRecord(trial).steps) == len(closed) == 1


def test_divergence_is_recorded(digits: ImageData) -> None:
    (trial,) = search(digits, exploding).trials
    assert record.TrialRecord(trial).diverged


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (short, "must yield after each of 3 epochs but ended after 1"),
        (wordy, r"must yield .training loss, training accuracy. after every epoch"),
    ],
)
def test_what_a_loop_does_wrong(digits: ImageData, train: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search(digits, train)


@pytest.mark.parametrize("first", [adamw, None])
def test_a_study_has_one_loop(digits: ImageData, first: Any) -> None:
    storage = optuna.storages.InMemoryStorage()
    own, other = (
        FlatnessObjective(Tiny(), digits, settings=SETTINGS, train=train)
        for train in (first, adamw if first is None else None)
    )
    open_study("own", storage, own)
    open_study("own", storage, own)
    with pytest.raises(SettingsError, match="exists with other settings: train="):
        open_study("own", storage, other)
