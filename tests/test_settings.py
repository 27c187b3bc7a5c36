"""The settings of a run and what they refuse."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import pytest

from flatsearch import FlatnessObjective, RunSettings, SettingsError, UsageError, load_data
from flatsearch.errors import Range
from flatsearch.settings import (
    COSTS,
    OBJECTIVES,
    RunOptions,
    SettingsRecord,
    same,
    setting,
    settings_table,
)
from flatsearch.signals.table import PROXIES

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"objectives": ()}, "`objectives` must name at least 1 of: accuracy, balanced_accuracy, "),
    ({"objectives": ("acuracy",)}, "unknown objective 'acuracy' (did you mean 'accuracy'?); known"),
    ({"objectives": ("flops", "accuracy", "flops")}, "`objectives` has a name twice: flops, acc"),
    ({"epochs": 0}, "`epochs` must be at least 1 but got 0"),
    ({"batch_size": 1}, "`batch_size` must be at least 2 but got 1"),
    ({"lr": 0}, "`lr` must be above 0 but got 0"),
    ({"lr": -0.1}, "`lr` must be above 0 but got -0.1"),
    ({"lr": float("nan")}, "`lr` must be a finite Python number but got nan"),
    ({"weight_decay": -1e-9}, "`weight_decay` must be at least 0 but got -1e-09"),
    ({"weight_decay": float("nan")}, "`weight_decay` must be a finite Python number but got nan"),
    ({"momentum": -0.1}, "`momentum` must be at least 0 and below 1 but got -0.1"),
    ({"momentum": 1.0}, "`momentum` must be at least 0 and below 1 but got 1.0"),
    ({"min_accuracy": 1}, "`min_accuracy` must be at least 0 and below 1 but got 1"),
    ({"lr": True}, "`lr` must be a finite Python number but got True"),
    ({"momentum": float("nan")}, "`momentum` must be a finite Python number but got nan"),
    ({"augment": "flip"}, "unknown augmentation 'flip' (did you mean 'crop+flip'?); known: auto"),
    ({"precision": "half"}, "unknown precision 'half'; known: auto, bfloat16, float32"),
    ({"memory_format": "nhwc"}, "unknown memory format 'nhwc'; known: auto, channels_last, cont"),
    ({"cuda_graphs": "yes"}, "`cuda_graphs` must be"),
    ({"flatness_share": 0}, "`flatness_share` must be above 0 but got 0"),
    ({"probe_size": 0}, "`probe_size` must be at least 1 but got 0"),
    ({"validation_fraction": 0}, "`validation_fraction` must be above 0 and below 1 but got 0"),
    ({"validation_fraction": 1}, "`validation_fraction` must be above 0 and below 1 but got 1"),
    ({"image_size": 3}, "`image_size` must be at least 4 but got 3"),
    ({"image_size": 0}, "`image_size` must be at least 4 but got 0"),
    ({"normalisation": "mean"}, "unknown normalisation 'mean'; known: data, imagenet"),
    ({"class_weights": "even"}, "unknown class weights 'even'; known: balanced, none"),
    ({"max_onnx_latency": 0}, "`max_onnx_latency` must be above 0 but got 0"),
    ({"max_onnx_memory": 0}, "`max_onnx_memory` must be above 0 but got 0"),
    ({"seed": -1}, "`seed` must be at least 0 and below 4294967296 but got -1"),
    ({"seed": 2**32}, "`seed` must be at least 0 and below 4294967296 but got 4294967296"),
    ({"epochs": 2.0}, "`epochs` must be a whole number but got 2.0"),
    ({"objectives": "acuracy"}, "unknown objective 'acuracy' (did you mean 'accuracy'?)"),
    ({"objectives": 3}, "`objectives` must be several names but got 3"),
    ({"max_parameters": 0}, "`max_parameters` must be above 0 but got 0"),
    ({"max_flops": -1}, "`max_flops` must be above 0 but got -1"),
    ({"max_memory": 0}, "`max_memory` must be above 0 but got 0"),
    ({"max_latency": float("nan")}, "`max_latency` must be a finite Python number but got nan"),
    ({"max_batch_latency": 0}, "`max_batch_latency` must be above 0 but got 0"),
    ({"duplicates": "keep"}, "unknown way with duplicates 'keep'; known: retrain, reuse"),
    ({"layers": "every"}, "unknown layers 'every'; known: all, last"),
    (
        {"signals": ("nwott",)},
        "unknown signal to record 'nwott' (did you mean 'nwot'?); known: exp",
    ),
    ({"signals": ("nwot", "nwot")}, "`signals` has a name twice: nwot, nwot"),
    ({"tune_recipe": "yes"}, "`tune_recipe` must be True or False but got 'yes'"),
]
REFUSED_OPTIONS: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: 1}, f"`{name}` must be a text but got 1")
        for name in ("space", "data", "data_root", "study", "storage", "artifacts", "device")
    ),
    *(
        ({name: 0}, f"`{name}` must be at least 1 but got 0")
        for name in ("trials", "workers", "max_failures")
    ),
    ({"data_memory": 0}, "`data_memory` must be above 0 but got 0"),
    ({"timeout": 0}, "`timeout` must be above 0 but got 0"),
    ({"data_memory": 0}, "`data_memory` must be above 0 but got 0"),
    ({"timeout": float("inf")}, "`timeout` must be a finite Python number but got inf"),
    ({"sampler": "tpo"}, "unknown sampler 'tpo' (did you mean 'tpe'?); known: gp, nsga2, random"),
    ({"sampler": None}, "unknown sampler 'None'"),
    ({"pruner": ["median"]}, "unknown pruner \"('median',)\""),
    ({"prune_on": "x"}, "unknown metric to prune on 'x'; known: accuracy, loss, pareto_rank"),
    ({"prune_mode": "x"}, "unknown prune mode 'x'; known: auto, hard, soft"),
]
ACCEPTED: list[dict[str, Any]] = [
    {"epochs": 1, "batch_size": 2, "probe_size": 1, "seed": 0, "image_size": 4},
    {"signals": ()},
    {"signals": tuple(PROXIES)},
    {"weight_decay": 0, "momentum": 0.01, "validation_fraction": 0.99, "lr": 1e-9},
    *({"augment": name} for name in ("auto", "none", "crop", "crop+flip")),
    *({"objectives": (name,)} for name in OBJECTIVES),
    {"objectives": ("accuracy", "noise_loss"), "layers": "last"},
    {"objectives": tuple(OBJECTIVES)},
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[f"{c}" for c, _ in REFUSED])
def test_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RunSettings(**change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(("change", "message"), REFUSED_OPTIONS, ids=lambda x: f"{x}"[:40])
def test_refused_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RunOptions(**{"space": "resnet_small", **change})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("record", "refused"), [(RunSettings, REFUSED), (RunOptions, REFUSED_OPTIONS)]
)
def test_every_setting_can_be_refused(record: type[SettingsRecord], refused: Any) -> None:
    assert {name for change, _ in refused for name in change} == set(record.settings())


@pytest.mark.parametrize("change", ACCEPTED, ids=str)
def test_accepted(change: dict[str, Any]) -> None:
    settings = RunSettings(**change)
    assert {name: getattr(settings, name) for name in change} == change


def test_the_noise_loss_of_all_convolutions_needs_all_to_be_measured() -> None:
    objectives = ("accuracy", "noise_loss_all")
    settings = RunSettings(objectives=objectives, epochs=12)
    assert all(map(settings.measures_all, range(1, 13)))  # pruners compare it after every epoch
    with pytest.raises(SettingsError, match="'noise_loss_all' is of all convolutions"):
        RunSettings(objectives=objectives, layers="last")


def test_changed_settings_are_checked_too() -> None:
    with pytest.raises(SettingsError, match="`epochs`"):
        dataclasses.replace(RunSettings(), epochs=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunSettings().epochs = 0  # type: ignore[misc]


def test_directions_follow_the_objectives() -> None:
    assert RunSettings().directions == ["maximize", "minimize"]
    assert RunSettings(objectives=("flops", "accuracy")).directions == ["minimize", "maximize"]
    assert RunSettings(objectives=("parameters", "flatness")).directions == ["minimize"] * 2


def test_to_dict_is_json_and_comes_back() -> None:
    settings = RunSettings(objectives=("accuracy", "flops"), lr=0.3, image_size=16, seed=7)
    fields = json.loads(json.dumps(settings.to_dict()))
    assert fields == settings.to_dict()  # lists, as JSON has no tuples
    assert set(fields) == {field.name for field in dataclasses.fields(RunSettings)}
    assert fields["objectives"] == ["accuracy", "flops"]
    assert RunSettings(**{**fields, "objectives": tuple(fields["objectives"])}) == settings
    assert hash(RunSettings()) == hash(RunSettings())


def test_what_an_older_version_stored_comes_back() -> None:
    stored = {"space": "resnet_small", "data_fingerprint": "x", "lr": 0.2, "max_flops": 3e7}
    assert RunSettings.from_dict(stored) == RunSettings(lr=0.2, max_flops=30_000_000)


def test_every_cost_is_an_objective_and_can_be_limited() -> None:
    limits = {cost: 2.5 + index for index, cost in enumerate(COSTS)}
    settings = RunSettings(**{f"max_{cost}": limit for cost, limit in limits.items()})  # type: ignore[arg-type]
    assert settings.limits == limits
    assert RunSettings().limits == {}
    assert RunSettings(objectives=COSTS).directions == ["minimize"] * len(COSTS)


def test_data_options_are_the_arguments_of_load_data_with_the_same_defaults() -> None:
    arguments = inspect.signature(load_data).parameters
    options = RunSettings().data_options()
    assert options == {name: arguments[name].default for name in options}
    assert set(arguments) == {"source", "root", "memory", "device", *options}


def test_a_setting_is_one_field() -> None:
    @dataclasses.dataclass(frozen=True)
    class More(RunSettings):
        """The settings, and one."""

        warmup: int = setting(2, Range(least=0, whole=True), "epochs of warm-up", more="None is 0")
        heat: float = same(RunSettings, "lr", default=1.0)

    assert More(warmup=3).to_dict() == {**RunSettings().to_dict(), "warmup": 3, "heat": 1.0}
    assert More.from_dict({"warmup": 1}).warmup == 1
    with pytest.raises(SettingsError, match="`warmup` must be at least 0 but got -1"):
        More(warmup=-1)
    with pytest.raises(SettingsError, match="`heat` must be above 0 but got 0"):
        More(heat=0)
    assert "    warmup: Epochs of warm-up (default: 2). None is 0." in (More.__doc__ or "")
    assert "    max_flops: Floating-point operations" in (More.__doc__ or "")
    assert More.settings()["warmup"].option("warmup") == "--warmup"


def test_workers_are_told_what_they_cannot_know() -> None:
    options = RunOptions(
        space="s:S", sampler="gp", storage="postgresql://me:secret@there/db", trials=3
    )
    told = options.for_workers()
    assert told["space"] == "s:S"
    assert not {"storage", "device", "trials", "workers", "timeout", "study"} & set(told)
    again = RunOptions.from_dict(json.loads(json.dumps(told)))
    assert again.for_workers() == told
    assert options.how_to_prune == again.how_to_prune == "soft"
    assert RunOptions(space="s").how_to_prune == "hard"
    assert RunOptions(space="s", sampler="gp", prune_mode="hard").how_to_prune == "hard"


def test_the_table_has_every_setting() -> None:
    table = settings_table()
    for name in (*RunOptions.settings(), *RunSettings.settings()):
        assert table.count(f"\n| `{name}` |") == 1
    assert "| `tune_recipe` | `--tune-recipe` | true or false | false |" in table
    assert "| `max_parameters` | `--max-params` | above 0 | none |" in table


def test_one_objective_may_be_a_text() -> None:
    assert RunSettings(objectives="accuracy").objectives == ("accuracy",)  # type: ignore[arg-type]
    objective = FlatnessObjective("resnet_small", "digits", "accuracy,parameters", 1)
    assert objective.metric_names == ["accuracy", "parameters"]
