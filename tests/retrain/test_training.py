"""The final training: from the record alone, resumable, with one look at the test split."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
import torch
from rich.console import Console
from torch import nn

import flatsearch
from flatsearch import FlatnessObjective, RunSettings, UsageError, record
from flatsearch.analysis.selection import choose
from flatsearch.analysis.summary import summarise
from flatsearch.errors import DivergedError, FlatsearchError
from flatsearch.reports.tables import calibration, confusions, seeds
from flatsearch.reports.terminal import print_final
from flatsearch.reports.verdicts import shipped
from flatsearch.retrain.checkpoint import SeedTraining
from flatsearch.retrain.ranking import Finished, rank
from flatsearch.retrain.result import read_final
from flatsearch.retrain.training import retrain
from flatsearch.training.evaluation import evaluate, score
from tests.fakes import Smallest

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.analysis.selection import Choice
    from flatsearch.data.splits import ImageData, Split

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="session")
def digits(few_digits: ImageData) -> ImageData:
    def half(split: Split) -> Split:
        return dataclasses.replace(split, images=split.images[::2], targets=split.targets[::2])

    return dataclasses.replace(
        few_digits, validation=half(few_digits.validation), test=half(few_digits.test)
    )


@pytest.fixture(scope="module")
def searched(digits: ImageData) -> optuna.Study:
    """A study made with the Python interface, of one small network."""
    objective = FlatnessObjective(
        "plain_cnn", digits, settings=RunSettings(epochs=1, tune_recipe=True), device="cpu"
    )
    study = optuna.create_study(
        study_name="s", directions=objective.directions, sampler=Smallest(seed=3)
    )
    study.set_metric_names(objective.metric_names)
    study.optimize(objective, n_trials=1)
    return study


@pytest.fixture
def study(searched: optuna.Study) -> optuna.Study:
    """A copy of it, in which a test may leave something behind."""
    storage = optuna.storages.InMemoryStorage()
    optuna.copy_study(from_study_name="s", from_storage=searched._storage, to_storage=storage)
    return optuna.load_study(study_name="s", storage=storage)


@pytest.fixture
def choice(study: optuna.Study) -> Choice:
    return choose(summarise(study), "0")


def weights(file: str) -> dict[str, torch.Tensor]:
    model, _ = flatsearch.load_model(file)
    return model.state_dict()


def test_the_saved_model_is_the_tested_one(
    study: optuna.Study, choice: Choice, digits: ImageData, tmp_path: Path
) -> None:
    seen = []
    final = retrain(
        study,
        choice,
        digits,
        tmp_path / "out",
        epochs=2,
        seeds=2,
        on_epoch=lambda *args: seen.append(args[:2]),
    )
    assert seen == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert (final.trial, final.epochs, len(final.seeds)) == (0, 2, 2)
    for seed in final.seeds:
        model, card = flatsearch.load_model(seed.file)
        assert score(model, digits.test) == seed.test
        assert card.class_names == digits.class_names
        result = flatsearch.relative_flatness(model, digits.probe.tensors())
        assert result.relative_flatness == pytest.approx(seed.flatness, rel=1e-5)
    accuracies = [seed.test.accuracy for seed in final.seeds]
    assert final.accuracy == pytest.approx(sum(accuracies) / 2)
    assert final.low < final.accuracy < final.high
    assert final.model == final.seeds[0].file
    first, second = (weights(seed.file) for seed in final.seeds)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["accuracy"] == final.accuracy
    again = read_final(tmp_path / "out" / "seed-1.pt")
    assert again is not None
    for table in (seeds, confusions, calibration):
        assert table(again) == table(final)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "results.json",
        "seed-0.pt",
        "seed-1.pt",
    ]


class Recorded(Exception):  # noqa: N818 - not an error
    pass


def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    study: optuna.Study, choice: Choice, digits: ImageData, tmp_path: Path
) -> None:
    whole = retrain(study, choice, digits, tmp_path / "whole", epochs=3)

    def stop(seed: int, epoch: int, loss: float) -> None:
        if epoch == 2:
            raise Recorded

    with pytest.raises(Recorded):
        retrain(study, choice, digits, tmp_path / "parts", epochs=3, on_epoch=stop)
    assert not (tmp_path / "parts" / "results.json").exists()
    assert len(record.StudyRecord(study).tests) == 1  # the test split was not looked at
    epochs = []
    parts = retrain(
        study,
        choice,
        digits,
        tmp_path / "parts",
        epochs=3,
        on_epoch=lambda _seed, epoch, _loss: epochs.append(epoch),
    )
    assert epochs == [3]
    first, second = weights(whole.model), weights(parts.model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert parts.seeds[0].test == whole.seeds[0].test


def test_it_trains_on_validation_images_too_and_not_on_the_test(
    study: optuna.Study,
    choice: Choice,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(
        "flatsearch.retrain.checkpoint.Trainer",
        lambda model, data, *args, **kwargs: (
            seen.append(data) or Trainer(model, data, *args, **kwargs)
        ),
    )
    from flatsearch.training.trainer import Trainer

    retrain(study, choice, digits, tmp_path / "out", epochs=1)
    (data,) = seen
    images = torch.cat([digits.train.images, digits.validation.images])
    assert torch.equal(data.train.images, images)
    assert len(data.train.targets) == len(images)


def test_the_recipe_of_the_trial_is_used(
    study: optuna.Study,
    choice: Choice,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flatsearch.training.trainer import Trainer

    seen = []

    def spy(model: nn.Module, data: ImageData, settings: RunSettings, **kwargs: object) -> Trainer:
        seen.append((settings, kwargs["label_smoothing"], kwargs["accumulate"]))
        return Trainer(model, data, settings, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("flatsearch.retrain.checkpoint.Trainer", spy)
    retrain(study, choice, digits, tmp_path / "out", epochs=1)
    trial = copy.copy(choice.trial)
    trial.retried = "out of memory"
    halved = dataclasses.replace(choice, trial=trial)
    retrain(study, halved, digits, tmp_path / "halved", epochs=1)
    (settings, smoothing, whole), (_, _, parts) = seen
    assert (whole, parts) == (1, 2)  # as the search had to
    recipe = choice.trial.recipe
    assert recipe
    assert {name: getattr(settings, name) for name in recipe} == recipe
    assert smoothing == 0.1


def test_the_weights_are_averaged(
    study: optuna.Study,
    choice: Choice,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flatsearch.retrain.training as module

    last = []
    inner = module.SeedTraining.run

    def run(self: module.SeedTraining, on_epoch: object) -> nn.Module:
        final = inner(self, on_epoch)  # type: ignore[arg-type]
        last.append((self.model, final))
        return final

    monkeypatch.setattr(module.SeedTraining, "run", run)
    retrain(study, choice, digits, tmp_path / "out", epochs=2)
    ((model, final),) = last
    assert not torch.equal(model.classifier.weight, final.classifier.weight)
    # Near it all the same: an average of the last steps.
    cosine = torch.cosine_similarity(
        model.classifier.weight.flatten(), final.classifier.weight.flatten(), 0
    )
    assert cosine > 0.9


def test_the_study_remembers_every_look_at_the_test_split(
    study: optuna.Study, choice: Choice, digits: ImageData, tmp_path: Path
) -> None:
    first = retrain(study, choice, digits, tmp_path / "a", epochs=1)
    assert first.earlier == ()
    second = retrain(study, choice, digits, tmp_path / "b", epochs=1)
    assert second.earlier == ((0, first.accuracy),)
    assert record.StudyRecord(study).trained(0) == str(tmp_path / "b" / "seed-0.pt")
    assert record.StudyRecord(study).trained(1) is None


def stored_validation_loss(file: str, data: ImageData) -> float:
    model, _ = flatsearch.load_model(file)
    return evaluate(model, data.validation)[0]


def test_seeds_are_ranked_by_their_loss_on_images_they_have_not_seen(
    study: optuna.Study, choice: Choice, digits: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen = []
    init = SeedTraining.__init__

    def spy(self: SeedTraining, model: nn.Module, data: ImageData, *args: Any) -> None:
        seen.append(data)
        init(self, model, data, *args)

    monkeypatch.setattr(SeedTraining, "__init__", spy)
    final = retrain(study, choice, digits, tmp_path, epochs=1, seeds=3)
    assert all(data is digits for data in seen)  # without the validation images
    losses = [stored_validation_loss(seed.file, digits) for seed in final.seeds]
    assert losses == sorted(losses)
    assert final.criterion == "the lowest validation loss of 3"
    assert final.seeds[0].validation.behind is None
    for seed, loss in zip(final.seeds, losses, strict=True):
        assert seed.validation.loss.value == pytest.approx(loss, rel=1e-5)
        assert seed.noise_loss_error > 0
    behind = final.seeds[2].validation.behind
    assert behind.value == pytest.approx(losses[2] - losses[0], abs=1e-5)
    assert behind.low < behind.value < behind.high
    assert final.accuracy == pytest.approx(fmean(seed.test.accuracy for seed in final.seeds))
    assert record.StudyRecord(study).trained(0) == final.model
    sentence = shipped(final)
    assert sentence.startswith(f"The model is seed {final.seeds[0].seed} of trial 0, by the lowest")


def test_several_trials_are_ranked(digits: ImageData, tmp_path: Path) -> None:
    objective = FlatnessObjective("plain_cnn", digits, epochs=1, device="cpu")
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=1)
    )
    for width in (8, 24):
        study.enqueue_trial({
            "width": width,
            "stages": 1,
            "convs_1": 1,
            "kernel": 3,
            "activation": "relu",
        })
    study.optimize(objective, n_trials=2)
    choices = [choose(summarise(study), number) for number in "01"]
    labels: list[object] = []
    final = retrain(
        study, choices, digits, tmp_path / "out", epochs=3,
        on_epoch=lambda seed, *_: labels.append(seed),
    )  # fmt: skip
    assert [*dict.fromkeys(labels)] == ["0 of trial 0", "0 of trial 1"]
    best, other = final.seeds
    assert final.trial == best.trial
    assert stored_validation_loss(best.file, digits) < stored_validation_loss(other.file, digits)
    assert final.accuracy == best.test.accuracy
    known = record.StudyRecord(study)
    assert [known.trained(seed.trial) for seed in final.seeds] == [best.file, other.file]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "results.json", "trial-0-seed-0.pt", "trial-1-seed-0.pt",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="without `hold_out` nothing ranks several trials"):
        retrain(study, choices, digits, tmp_path / "b", hold_out=False)
    with pytest.raises(UsageError, match="trial 1 is given twice"):
        retrain(study, [choices[1]] * 2, digits, tmp_path / "b")


def test_a_network_that_diverges_is_told_and_left_out(
    study: optuna.Study,
    choice: Choice,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epoch = SeedTraining._epoch
    monkeypatch.setattr(
        SeedTraining,
        "_epoch",
        lambda self: epoch(self) * (float("nan") if "seed-0" in str(self.checkpoint) else 1),
    )
    final = retrain(study, choice, digits, tmp_path, epochs=1, seeds=2)
    assert [seed.seed for seed in final.seeds] == [1]
    assert final.diverged == ("trial 0, seed 0: training diverged in epoch 1",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "seed-1.pt"]
    out = io.StringIO()
    print_final(final, Console(file=out, width=100))
    assert "left out: trial 0, seed 0: training diverged in epoch 1" in out.getvalue()


def test_one_criterion_ranks() -> None:
    looks = [Finished(np.array(losses), np.ones(2), None) for losses in ([1, 2], [0, 1], [0, 3])]
    assert rank(looks) == [1, 0, 2]


def test_nothing_is_overwritten_without_force(
    study: optuna.Study, choice: Choice, digits: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    retrain(study, choice, digits, out, epochs=1)
    before = (out / "seed-0.pt").read_bytes()
    with pytest.raises(UsageError, match="holds a finished training; `force` overwrites it"):
        retrain(study, choice, digits, out, epochs=2)
    assert (out / "seed-0.pt").read_bytes() == before
    assert retrain(study, choice, digits, out, epochs=2, force=True).epochs == 2


def test_a_checkpoint_of_another_training_is_refused(
    study: optuna.Study, choice: Choice, digits: ImageData, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        raise Recorded

    for epochs in (3, 4):
        error = Recorded if epochs == 3 else UsageError
        with pytest.raises(error, match=None if epochs == 3 else "is of another training"):
            retrain(study, choice, digits, tmp_path, epochs=epochs, on_epoch=stop)
    (tmp_path / "seed-0.checkpoint").write_bytes(b"half a file")
    with pytest.raises(UsageError, match=r"cannot be read .*; `force` starts anew"):
        retrain(study, choice, digits, tmp_path, epochs=3)
    assert retrain(study, choice, digits, tmp_path, epochs=1, force=True).epochs == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1 but got 0"),
        ({"seeds": 0}, "`seeds` must be at least 1 but got 0"),
        ({"space": "gone"}, "unknown search space 'gone'"),
    ],
)
def test_refused(
    study: optuna.Study,
    choice: Choice,
    digits: ImageData,
    tmp_path: Path,
    arguments: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        retrain(study, choice, digits, tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert record.StudyRecord(study).tests == ()


SPACE = """
from torch import nn
from flatsearch import Architecture, GapCnn

class Mine:
    def suggest(self, trial):
        return Architecture("mine", {"width": trial.suggest_int("width", 4, 8)})

    def build(self, architecture, in_channels=3, num_classes=10):
        width = architecture["width"]
        layers = [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.Dropout(0.3)]
        return GapCnn(nn.Sequential(*layers), width, num_classes)
"""


def test_dropout_goes_on_where_it_was(digits: ImageData, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SPACE)
    objective = FlatnessObjective(f"{tmp_path}/mine.py:Mine", digits, epochs=1, device="cpu")
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=1)
    choice = choose(summarise(study), "0")

    def stop(seed: int, epoch: int, loss: float) -> None:
        if epoch == 2:
            raise Recorded

    # The record of a study made in Python has a file's name, not its folder.
    how = {"space": f"{tmp_path}/mine.py:Mine", "epochs": 3}
    whole = retrain(study, choice, digits, tmp_path / "whole", **how)
    with pytest.raises(Recorded):
        retrain(study, choice, digits, tmp_path / "parts", on_epoch=stop, **how)
    torch.manual_seed(99)
    parts = retrain(study, choice, digits, tmp_path / "parts", **how)
    first, second = weights(whole.model), weights(parts.model)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_search_space_that_has_changed_is_refused(digits: ImageData, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SPACE)
    objective = FlatnessObjective(f"{tmp_path}/mine.py:Mine", digits, epochs=1, device="cpu")
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=1)
    (tmp_path / "other.py").write_text(SPACE.replace('["width"]', '["width"] * 3'))
    with pytest.raises(UsageError, match=r"the search space has changed: it builds .* parameters"):
        retrain(
            study,
            choose(summarise(study), "0"),
            digits,
            tmp_path / "out",
            space=f"{tmp_path}/other.py:Mine",
        )


def test_a_forced_training_leaves_nothing_of_the_earlier_one(
    study: optuna.Study, choice: Choice, digits: ImageData, tmp_path: Path
) -> None:
    retrain(study, choice, digits, tmp_path, epochs=1, seeds=2)

    def stop(*_: object) -> None:
        raise Recorded

    with pytest.raises(Recorded):
        retrain(study, choice, digits, tmp_path, epochs=2, force=True, on_epoch=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["seed-0.checkpoint"]
    epochs: list[int] = []
    retrain(
        study,
        choice,
        digits,
        tmp_path,
        epochs=2,
        on_epoch=lambda _seed, epoch, _loss: epochs.append(epoch),
    )
    assert epochs == [2]  # it went on


def test_other_images_are_refused(
    study: optuna.Study, choice: Choice, digits: ImageData, tmp_path: Path
) -> None:
    images = digits.train.images.clone()
    images[0] += 1
    train = dataclasses.replace(digits.train, images=images)
    with pytest.raises(UsageError, match="data 'digits' are not those of the study"):
        retrain(study, choice, dataclasses.replace(digits, train=train), tmp_path)


def test_a_study_of_others_is_refused(choice: Choice, digits: ImageData, tmp_path: Path) -> None:
    other = optuna.create_study(study_name="theirs")
    with pytest.raises(UsageError, match="study 'theirs' has no settings of flatsearch"):
        retrain(other, choice, digits, tmp_path)


def test_divergence_and_memory_are_told_in_one_line(
    study: optuna.Study,
    choice: Choice,
    digits: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "flatsearch.training.trainer.Trainer.epoch", lambda self: (float("nan"), 0.0)
    )
    monkeypatch.setattr("flatsearch.training.trainer.Trainer.epochs_done", 1, raising=False)
    with pytest.raises(DivergedError, match="training diverged in epoch"):
        retrain(study, choice, digits, tmp_path, epochs=2)

    def full(self: object) -> tuple[float, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("flatsearch.training.trainer.Trainer.epoch", full)
    with pytest.raises(FlatsearchError, match="memory is used up after epoch 0"):
        retrain(study, choice, digits, tmp_path, epochs=2)
