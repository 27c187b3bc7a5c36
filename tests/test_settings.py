"""The settings of a run and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from flatsearch import RunSettings, SettingsError, UsageError
from flatsearch.settings import AUGMENTATIONS, OBJECTIVES

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"objectives": ()}, "`objectives` must name at least one of: accuracy, flatness, "),
    ({"objectives": ("acuracy",)}, "unknown objective 'acuracy' (did you mean 'accuracy'?); known"),
    ({"objectives": ("flops", "accuracy", "flops")}, "`objectives` has a name twice: flops, acc"),
    ({"epochs": 0}, "`epochs` must be at least 1 but got 0"),
    ({"batch_size": 1}, "`batch_size` must be at least 2 but got 1"),
    ({"lr": 0}, "`lr` must be positive but got 0"),
    ({"lr": -0.1}, "`lr` must be positive but got -0.1"),
    ({"lr": float("nan")}, "`lr` must be a finite Python number but got nan"),
    ({"weight_decay": -1e-9}, "`weight_decay` must not be negative but got -1e-09"),
    ({"weight_decay": float("nan")}, "`weight_decay` must be a finite Python number but got nan"),
    ({"momentum": -0.1}, "`momentum` must be at least 0, below 1 but got -0.1"),
    ({"momentum": 1.0}, "`momentum` must be at least 0, below 1 but got 1.0"),
    ({"min_accuracy": 1}, "`min_accuracy` must be at least 0 and below 1 but got 1"),
    ({"lr": True}, "`lr` must be a finite Python number but got True"),
    ({"momentum": float("nan")}, "`momentum` must be a finite Python number but got nan"),
    ({"augment": "flip"}, "unknown augmentation 'flip' (did you mean 'crop+flip'?); known: auto"),
    ({"probe_size": 0}, "`probe_size` must be at least 1 but got 0"),
    ({"validation_fraction": 0}, "`validation_fraction` must be between 0 and 1 but got 0"),
    ({"validation_fraction": 1}, "`validation_fraction` must be between 0 and 1 but got 1"),
    ({"image_size": 3}, "`image_size` must be at least 4 but got 3"),
    ({"image_size": 0}, "`image_size` must be at least 4 but got 0"),
    ({"seed": -1}, "`seed` must be at least 0 but got -1"),
    ({"max_parameters": 0}, "`max_parameters` must be a positive number but got 0"),
    ({"max_flops": -1}, "`max_flops` must be a positive number but got -1"),
    ({"max_memory": 0}, "`max_memory` must be a positive number but got 0"),
    ({"max_latency": float("nan")}, "`max_latency` must be a positive number but got nan"),
    ({"max_batch_latency": 0}, "`max_batch_latency` must be a positive number but got 0"),
    ({"duplicates": "keep"}, "unknown way with duplicates 'keep'; known: retrain, reuse"),
    ({"layers": "every"}, "unknown layers 'every'; known: all, last"),
    ({"tune_recipe": "yes"}, "`tune_recipe` must be True or False but got 'yes'"),
]
ACCEPTED: list[dict[str, Any]] = [
    {"epochs": 1, "batch_size": 2, "probe_size": 1, "seed": 0, "image_size": 4},
    {"weight_decay": 0, "momentum": 0.01, "validation_fraction": 0.99, "lr": 1e-9},
    *({"augment": name} for name in AUGMENTATIONS),
    *({"objectives": (name,)} for name in OBJECTIVES),
    {"objectives": tuple(OBJECTIVES)},
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[f"{c}" for c, _ in REFUSED])
def test_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RunSettings(**change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UsageError)


def test_every_setting_can_be_refused() -> None:
    fields = {field.name for field in dataclasses.fields(RunSettings)}
    assert {name for change, _ in REFUSED for name in change} == fields


@pytest.mark.parametrize("change", ACCEPTED, ids=str)
def test_accepted(change: dict[str, Any]) -> None:
    settings = RunSettings(**change)
    assert {name: getattr(settings, name) for name in change} == change


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
