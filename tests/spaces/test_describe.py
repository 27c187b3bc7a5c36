"""What `flatsearch spaces` says about a space."""

from __future__ import annotations

from typing import Any

import pytest

from flatsearch import Architecture, load_space
from flatsearch.spaces.describe import count_architectures, describe_space, estimate_settings
from tests.fakes import Tiny


class Conditional:
    """1 + 3 depths of 2 kernels each; a shift that changes nothing; 4 settings give one network."""

    def suggest(self, trial: Any) -> Architecture:
        values = {"deep": trial.suggest_categorical("deep", [False, True])}
        if values["deep"]:
            values["depth"] = trial.suggest_int("depth", 2, 6, step=2)
            values["kernel"] = trial.suggest_categorical("kernel", [3, 5])
            values["ratio"] = trial.suggest_float("ratio", 0.5, 1.0, step=0.25)
        else:
            trial.suggest_int("ignored", 1, 4)
        return Architecture("conditional", values)


class Continuous(Conditional):
    def suggest(self, trial: Any) -> Architecture:
        if trial.suggest_categorical("continuous", [False, True]):
            return Architecture("continuous", {"x": trial.suggest_float("x", 0, 1)})
        return Architecture("continuous", {})


def test_every_setting_is_tried_once() -> None:
    assert count_architectures(Conditional()) == 1 + 3 * 2 * 3  # type: ignore[arg-type]
    assert count_architectures(Conditional(), most=22) == 19  # type: ignore[arg-type]
    assert count_architectures(Conditional(), most=21) is None  # type: ignore[arg-type]


def test_continuous_parameters_cannot_be_counted() -> None:
    assert count_architectures(Continuous()) is None  # type: ignore[arg-type]


def test_an_estimate_of_settings_is_exact_for_a_uniform_tree_and_unbiased_else() -> None:
    class Deep:
        """2 + 2 * 10 settings: half of the paths go deeper."""

        def suggest(self, trial: Any) -> Architecture:
            deep = trial.suggest_categorical("deep", [False, True])
            values = {"deep": deep, "width": trial.suggest_int("width", 1, 2)}
            if deep:
                values["more"] = trial.suggest_int("more", 0, 9)
            return Architecture("deep", values)

    assert count_architectures(Deep())  # type: ignore[arg-type] == 22
    assert estimate_settings(Deep(), samples=4000) == pytest.approx(22, rel=0.05)


def test_a_continuous_parameter_has_no_number_of_settings() -> None:
    assert count_architectures(load_space("regnet_small")) is None
    assert estimate_settings(load_space("regnet_small")) is None


def test_the_drawing_is_of_the_example() -> None:
    card = describe_space(Tiny(), samples=5)
    assert len([line for line in card["drawing"] if "global pool" in line]) >= 1
    assert card["drawing"][0].startswith("image")
