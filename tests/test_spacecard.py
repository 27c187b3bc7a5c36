"""What `flatsearch spaces` says about a space."""

from __future__ import annotations

from typing import Any

from flatsearch import Architecture
from flatsearch.spacecard import count_architectures


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
