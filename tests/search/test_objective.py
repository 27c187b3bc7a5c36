from __future__ import annotations

import math
import pickle
from typing import TYPE_CHECKING

import optuna
import pytest
import torch
from optuna.storages import InMemoryStorage
from torch import nn

import flatsearch
from flatsearch import Architecture, FlatnessObjective, GapCnn, RunSettings, record
from flatsearch.errors import SpaceError, UnsupportedModelError
from tests.fakes import Tiny

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.data.splits import ImageData


# Two convolutions of `plain_cnn`.
SMALL = {"width": 8, "stages": 1, "convs_1": 2, "kernel": 3}


def run(objective: FlatnessObjective, n_trials: int = 2, **parameters: int) -> optuna.Study:
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.enqueue_trial(parameters)
    study.optimize(objective, n_trials=n_trials)
    return study


def test_the_record_of_a_trial(digits: ImageData) -> None:
    # So few images to train on allow for little measuring, by default.
    settings = RunSettings(epochs=3, flatness_share=10.0)
    objective = FlatnessObjective(Tiny(), digits, settings=settings, device="cpu")
    (frozen,) = run(objective, 1).trials
    trial = record.TrialRecord(frozen)
    assert trial.computation == {"precision": "float32", "memory_format": "contiguous"}
    assert trial.schedule["epochs_of_all"] == [1, 2, 3]
    assert trial.architecture == Architecture("tiny", frozen.params)
    assert list(trial.steps) == [0, 1, 2]
    for metrics in trial.steps.values():
        assert {
            "accuracy", "loss", "train_loss", "train_accuracy", "flatness", "hessian_trace",
            "flatness_standard_error", "probe_loss", "train_seconds",
            "flatness_all", "hessian_trace_all", "noise_loss", "noise_loss_all",
        } == set(metrics)  # fmt: skip
        assert all(math.isfinite(value) for value in metrics.values())
    assert trial.values == (trial.steps[2]["accuracy"], trial.steps[2]["flatness"])
    assert trial.metrics["accuracy"] == trial.values[0]
    width = frozen.params["width"]
    assert trial.metrics["parameters"] == width * 10 + width * 10 + 10
    assert trial.metrics["flops"] == 2 * (width * 9 * 64 + width * 10)


def test_all_convolutions_are_measured_early_and_at_the_end(digits: ImageData) -> None:
    settings = RunSettings(epochs=5, flatness_share=10.0)
    objective = FlatnessObjective("plain_cnn", digits, settings=settings, device="cpu")
    trial = record.TrialRecord(run(objective, 1, **SMALL).trials[0])
    assert [step for step, m in trial.steps.items() if "flatness_all" in m] == [0, 1, 4]
    last = trial.steps[4]
    assert sum(trial.layers.values()) == pytest.approx(last["flatness_all"], rel=1e-4)
    assert len(trial.layers) >= 2
    one = FlatnessObjective(Tiny(), digits, settings=RunSettings(epochs=2, layers="last"))
    trial = record.TrialRecord(run(one, 1).trials[0])
    assert not any("flatness_all" in metrics for metrics in trial.steps.values())
    assert trial.layers == {}


class Twice(Tiny):
    """A network whose first kernel is used twice, which the measure of all layers refuses."""

    def build(
        self, architecture: Architecture, in_channels: int = 3, num_classes: int = 10
    ) -> nn.Module:
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Conv2d(in_channels, 4, 1)
                self.shared = nn.Conv2d(4, 4, 1)
                self.last = nn.Conv2d(4, 4, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.last(self.shared(self.shared(self.first(x)).relu())).relu()

        return GapCnn(Shared(), 4, num_classes)


def test_a_network_of_which_not_all_layers_are_covered_is_searched_all_the_same(
    digits: ImageData,
) -> None:
    trial = record.TrialRecord(run(FlatnessObjective(Twice(), digits, epochs=1), 1).trials[0])
    assert trial.state == "COMPLETE"
    assert "flatness" in trial.steps[0]
    assert "flatness_all" not in trial.steps[0]
    asked = FlatnessObjective(Twice(), digits, ("accuracy", "noise_loss_all"), epochs=1)
    with pytest.raises(SpaceError, match=r"'features\.shared': its kernel is used 2 times"):
        asked.check()
    with pytest.raises(UnsupportedModelError, match=r"'features\.shared'"):
        run(asked, 1)


class ShortcutLast(Tiny):
    """Networks whose last convolution is that of a shortcut."""

    def build(
        self, architecture: Architecture, in_channels: int = 3, num_classes: int = 10
    ) -> nn.Module:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.branch = nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.Conv2d(4, 4, 3))
                self.shortcut = nn.Conv2d(in_channels, 4, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.branch(x) + self.shortcut(x)

        return GapCnn(Block(), 4, num_classes)


@pytest.mark.parametrize(
    ("layers", "name"),
    [("all", "branch.1"), ("main", "branch.1"), ("last", "shortcut")],
)
def test_which_convolution_is_measured(layers: str, name: str, digits: ImageData) -> None:
    settings = RunSettings(epochs=1, layers=layers, flatness_share=10.0)
    trial = record.TrialRecord(
        run(FlatnessObjective(ShortcutLast(), digits, settings=settings), 1).trials[0]
    )
    assert trial.measured == f"features.{name}"
    assert list(trial.layers) == (
        [f"features.{each}" for each in ("branch.0", "branch.1", "shortcut")]
        if layers == "all"
        else []
    )
    if layers == "all":
        last = trial.layers[trial.measured]
        assert trial.steps[0]["flatness"] == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize("name", ["noise_loss", "noise_loss_all"])
def test_the_noise_loss_is_an_objective(name: str, digits: ImageData) -> None:
    settings = RunSettings(("accuracy", name), epochs=4, flatness_share=10.0)
    objective = FlatnessObjective("plain_cnn", digits, settings=settings, device="cpu")
    assert objective.directions == ["maximize", "minimize"]
    trial = record.TrialRecord(run(objective, 1, **SMALL).trials[0])
    assert [step for step, metrics in trial.steps.items() if name in metrics] == [0, 1, 2, 3]
    assert trial.values == (trial.steps[3]["accuracy"], trial.steps[3][name])
    assert 0 < trial.steps[3]["noise_loss"] < trial.steps[3]["noise_loss_all"]


def test_the_recorded_flatness_is_the_measure_of_the_saved_model(
    digits: ImageData, tmp_path: Path
) -> None:
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    objective = FlatnessObjective(
        "resnet_small", digits, epochs=1, device="cpu", artifact_store=store
    )
    trial = record.TrialRecord(run(objective, 1).trials[0])
    assert trial.artifact is not None
    model, card = flatsearch.load_model(tmp_path / trial.artifact)
    inputs = card.normalise(digits.probe.images)
    result = flatsearch.relative_flatness(model, (inputs, digits.probe.targets))
    assert result.relative_flatness == pytest.approx(trial.metrics["flatness"], rel=1e-4)
    assert result.loss == pytest.approx(trial.metrics["probe_loss"], rel=1e-4)
    assert card.space == "resnet_small"
    assert card.class_names == digits.class_names


def test_same_seed_same_numbers(digits: ImageData) -> None:
    first, second, other = (
        [t.values for t in run(FlatnessObjective(Tiny(), digits, epochs=1, settings=s)).trials]
        for s in (RunSettings(), RunSettings(), RunSettings(seed=5))
    )
    assert first == second
    assert first != other


class Dropping(Tiny):
    """Networks that draw random numbers in training."""

    def build(self, architecture: Architecture, in_channels: int, num_classes: int) -> nn.Module:
        model = super().build(architecture, in_channels, num_classes)
        model.features.append(nn.Dropout(0.3))
        return model


def test_threads_have_the_numbers_of_one(digits: ImageData) -> None:
    settings = RunSettings(epochs=2, signals=("expressivity",))
    objective = FlatnessObjective(Dropping(), digits, settings=settings, device="cpu")

    def numbers(n_jobs: int) -> list[object]:
        study = optuna.create_study(
            directions=objective.directions, pruner=optuna.pruners.NopPruner()
        )
        for width in (2, 3, 4, 5):
            study.enqueue_trial({"width": width, "slope": width / 10})
        study.optimize(objective, n_trials=4, n_jobs=n_jobs)
        trials = map(record.TrialRecord, study.trials)
        return [(t.values, {**t.metrics, "train_seconds": 0.0}) for t in trials]

    assert numbers(4) == numbers(1)


def test_torchs_own_generator_is_left_alone(digits: ImageData) -> None:
    objective = FlatnessObjective(Tiny(), digits, epochs=1)
    before = torch.get_rng_state()
    run(objective, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("names", "directions"),
    [
        (["accuracy"], ["maximize"]),
        (["flatness"], ["minimize"]),
        (["accuracy", "parameters", "flops"], ["maximize", "minimize", "minimize"]),
    ],
)
def test_objectives(digits: ImageData, names: list[str], directions: list[str]) -> None:
    objective = FlatnessObjective(Tiny(), digits, objectives=names, epochs=1)
    assert objective.directions == directions
    assert objective.metric_names == names
    trial = record.TrialRecord(run(objective, 1).trials[0])
    assert trial.values == tuple(trial.metrics[name] for name in names)


def test_divergence_is_pruned_with_its_reason(digits: ImageData) -> None:
    class Explosive(Tiny):
        def build(
            self, architecture: Architecture, in_channels: int, num_classes: int
        ) -> nn.Module:
            model = super().build(architecture, in_channels, num_classes)
            with torch.no_grad():
                model.classifier.weight.fill_(float("inf"))
            return model

    (frozen,) = run(FlatnessObjective(Explosive(), digits, epochs=2), 1).trials
    assert frozen.state == optuna.trial.TrialState.PRUNED
    assert "diverged in epoch 1" in record.TrialRecord(frozen).failure


def test_names_that_are_not_those_of_the_values_are_refused(digits: ImageData) -> None:
    objective = FlatnessObjective(Tiny(), digits, epochs=1)
    study = optuna.create_study(directions=objective.directions)
    study.set_metric_names(["flatness", "accuracy"])
    with pytest.raises(
        flatsearch.SettingsError, match="names are flatness, accuracy but the objective's are acc"
    ):
        study.optimize(objective, n_trials=1)


def test_an_objective_can_be_pickled(digits: ImageData, tmp_path: Path) -> None:
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    objective = FlatnessObjective(Tiny(), digits, epochs=1, artifact_store=store)
    again = pickle.loads(pickle.dumps(objective))
    study = run(again, n_trials=1)
    third = pickle.loads(pickle.dumps(again))
    third(study.trials[0])
    assert run(third, n_trials=1).trials[0].values == study.trials[0].values


@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "flatness")])
def test_the_pruner_is_asked_after_every_epoch_but_the_last(
    digits: ImageData, objectives: tuple[str, ...]
) -> None:
    asked: list[int] = []

    class Spy(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            asked.append(max(record.TrialRecord(trial).steps))
            return trial.number == 1 and asked[-1] == 1

    objective = FlatnessObjective(Tiny(), digits, objectives=objectives, epochs=4)
    study = optuna.create_study(directions=objective.directions, pruner=Spy())
    study.optimize(objective, n_trials=2)
    assert asked == [0, 1, 2, 0, 1]
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED"]
    assert list(record.TrialRecord(study.trials[1]).steps) == [0, 1]


def test_an_accuracy_study_reports_accuracy_to_optuna(digits: ImageData) -> None:
    objective = FlatnessObjective(Tiny(), digits, objectives=["accuracy"], epochs=2)
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=1)
    # Under a study without names Optuna's pruners would see nothing.
    assert study.metric_names == ["accuracy"]
    steps = record.TrialRecord(study.trials[0]).steps
    assert study.trials[0].intermediate_values == {s: m["accuracy"] for s, m in steps.items()}


def test_epoch_callback(digits: ImageData) -> None:
    seen: list[tuple[int, str]] = []
    objective = FlatnessObjective(
        Tiny(), digits, epochs=2, on_epoch=lambda t, e, f: seen.append((e.epoch, f.kind))
    )
    run(objective, 1)
    assert seen == [(1, "hessian"), (2, "hessian")]


def test_arrays_as_data() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(60, 6, 6, generator=generator)
    objective = FlatnessObjective(Tiny(), (images, torch.arange(60) % 2), epochs=1)
    assert run(objective, 1).trials[0].values is not None


class NoGap(Tiny):
    def build(self, architecture: Architecture, in_channels: int, num_classes: int) -> nn.Module:
        conv = nn.Conv2d(in_channels, 2, 3, padding=1)
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(128, num_classes))


class Broken(Tiny):
    def suggest(self, trial: optuna.Trial) -> Architecture:
        raise KeyError("width")


class NotAnArchitecture(Tiny):
    def suggest(self, trial: optuna.Trial) -> Architecture:
        return {"width": 3}  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (NoGap, "NoGap.build returned a model whose flatness cannot be measured: layer '0'"),
        (Broken, "Broken.suggest failed: KeyError: 'width'"),
        (NotAnArchitecture, "NotAnArchitecture.suggest must return an Architecture"),
    ],
)
def test_check_names_the_class_and_the_method(
    digits: ImageData, space: type[Tiny], message: str
) -> None:
    with pytest.raises(flatsearch.SpaceError, match=message):
        FlatnessObjective(space(), digits).check()


class OtherChoices(Tiny):
    def suggest(self, trial: optuna.Trial) -> Architecture:
        widths = (2, 4) if trial.suggest_float("share", 0, 1) < 0.9 else (4, 6)
        return Architecture("tiny", {"width": trial.suggest_categorical("width", widths)})


class OtherKind(Tiny):
    def suggest(self, trial: optuna.Trial) -> Architecture:
        log = trial.suggest_categorical("kind", ["a", "b"]) == "b"
        return Architecture("tiny", {"width": trial.suggest_int("width", 2, 4, log=log)})


@pytest.mark.parametrize(
    ("space", "choices"),
    [
        (OtherChoices, "2, 4 in one branch and for 4, 6"),
        (OtherKind, "2 to 4, log in one branch and for 2 to 4"),
    ],
)
def test_check_finds_one_name_with_other_choices(
    digits: ImageData, space: type[Tiny], choices: str
) -> None:
    message = rf"{space.__name__}.suggest: the parameter name 'width' stands for {choices}"
    with pytest.raises(flatsearch.SpaceError, match=message):
        FlatnessObjective(space(), digits).check()


def test_a_finished_trial_again_and_one_with_fixed_parameters(
    digits: ImageData, tmp_path: Path
) -> None:
    store = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    objective = FlatnessObjective(
        Tiny(), digits, ["accuracy", "flatness"], epochs=2, artifact_store=store
    )
    study = run(objective, 2)
    files = set(tmp_path.iterdir())
    frozen = study.trials[1]
    fixed = optuna.trial.FixedTrial(frozen.params, number=1)
    assert objective(frozen) == objective(fixed) == tuple(frozen.values)
    known, found = record.TrialRecord(frozen), record.TrialRecord(fixed)
    assert found.metrics == known.metrics
    assert len(study.trials) == 2
    assert set(tmp_path.iterdir()) == files
    with pytest.raises(flatsearch.SpaceError, match="'slope' is not found"):
        objective(optuna.trial.FixedTrial({"width": 3}))


def test_a_study_of_other_directions_is_refused(digits: ImageData) -> None:
    objective = FlatnessObjective(Tiny(), digits, ["accuracy", "flatness"], epochs=1)
    for wrong in (["minimize"], ["minimize", "minimize"]):
        study = optuna.create_study(directions=wrong)
        with pytest.raises(flatsearch.SettingsError, match=r"directions=objective\.directions"):
            study.optimize(objective, n_trials=2)
        assert len(study.trials) == 1


def test_check_trains_nothing_and_accepts_good_spaces(digits: ImageData) -> None:
    FlatnessObjective(Tiny(), digits).check()
    FlatnessObjective("resnet_small", digits).check()


def test_devices(digits: ImageData) -> None:
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(flatsearch.SettingsError, match=f"device '{name}' is not available"):
            FlatnessObjective(Tiny(), digits, device=name)


class Hungry(Tiny):
    """Its networks need memory for more than 40 images at a time, which there is not."""

    def build(self, architecture: Architecture, in_channels: int, num_classes: int) -> nn.Module:
        model = super().build(architecture, in_channels, num_classes)

        def check(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            if module.training and len(inputs[0]) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

        model.register_forward_pre_hook(check)
        return model

    most = 40


def test_out_of_memory_is_tried_again_with_half_the_batch(digits: ImageData) -> None:
    (trial,) = run(FlatnessObjective(Hungry(), digits, epochs=2, device="cpu"), 1).trials
    assert trial.state == optuna.trial.TrialState.COMPLETE
    assert list(record.TrialRecord(trial).steps) == [0, 1]
    assert trial.user_attrs["flatsearch:retried"] == (
        "CUDA out of memory. Tried to allocate 2.00 GiB"
    )


def test_out_of_memory_twice_fails(digits: ImageData) -> None:
    space = Hungry()
    space.most = 20
    objective = FlatnessObjective(space, digits, epochs=1, device="cpu")
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=1, catch=(torch.OutOfMemoryError,))
    assert study.trials[0].state == optuna.trial.TrialState.FAIL


def test_another_runtime_error_is_not_tried_again(digits: ImageData) -> None:
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        raise RuntimeError("something else")

    objective = FlatnessObjective(Tiny(), digits, epochs=1, device="cpu", on_epoch=fail)
    with pytest.raises(RuntimeError, match="something else"):
        run(objective, 1)
    assert len(calls) == 1


def test_every_study_gets_the_settings_whatever_its_name(digits: ImageData) -> None:
    objective = FlatnessObjective(Tiny(), digits, epochs=1)
    for _ in range(2):
        study = optuna.create_study(
            study_name="s", storage=InMemoryStorage(), directions=objective.directions
        )
        study.optimize(objective, n_trials=1)
        assert record.StudyRecord(study).settings == objective.shared_settings()


def test_a_trial_that_was_pruned_softly_sets_no_standard(digits: ImageData) -> None:
    objective = FlatnessObjective(Tiny(), digits, epochs=1, prune_mode="soft")
    study = optuna.create_study(directions=objective.directions, pruner=optuna.pruners.NopPruner())
    pruned = study.ask()
    record.write_trial(pruned, metrics={"accuracy": 1.0})
    flatsearch.mark_pruned(pruned, pruned=True)
    study.tell(pruned, (1.0, 0.0))
    study.optimize(objective, n_trials=1)
    trial, least = record.TrialRecord(study.trials[1]), record.StudyRecord(study).least
    assert least is not None
    accuracy = trial.metrics["accuracy"]
    assert trial.constraints["flatsearch:min_accuracy"] == least.beside(accuracy) - accuracy
