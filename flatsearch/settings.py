"""The settings of a run: the only place for defaults."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from flatsearch.errors import SettingsError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AUGMENTATIONS",
    "COSTS",
    "DEFAULT_ARTIFACTS",
    "DEFAULT_FAILURES",
    "DEFAULT_PRUNER",
    "DEFAULT_STORAGE",
    "DEFAULT_TRIALS",
    "DUPLICATES",
    "LAYERS",
    "OBJECTIVES",
    "PRUNERS",
    "PRUNE_MODES",
    "PRUNE_ON",
    "SAMPLERS",
    "SOFT_SAMPLERS",
    "RunSettings",
]

Direction: TypeAlias = Literal["minimize", "maximize"]
DEFAULT_STORAGE = "sqlite:///flatsearch.db"
DEFAULT_ARTIFACTS = "flatsearch-artifacts"
# A study is filled up to this many finished trials where no number is given.
DEFAULT_TRIALS = 20
# This many failed trials in a row mean that something is wrong with more than a candidate.
DEFAULT_FAILURES = 3
# What a candidate costs, known before it is trained; what `flatsearch.cost` measures.
COSTS = ("parameters", "flops", "memory", "latency", "batch_latency")
# What can be optimised, and which way.
OBJECTIVES: dict[str, Direction] = {
    "accuracy": "maximize",
    "flatness": "minimize",
    **dict.fromkeys(COSTS, "minimize"),
}
SAMPLERS = ("tpe", "nsga2", "gp", "random")
PRUNERS = ("flatness", "median", "asha", "hyperband", "none")
DEFAULT_PRUNER = "flatness"
# What pruners other than "flatness" can judge by, beside the Pareto rank, and which way is good.
PRUNE_ON: dict[str, Direction] = {
    "pareto_rank": "minimize",
    "accuracy": "maximize",
    "loss": "minimize",
    "train_accuracy": "maximize",
    "train_loss": "minimize",
}
PRUNE_MODES = ("auto", "hard", "soft")
# Samplers that learn nothing from a trial in Optuna's state PRUNED.
SOFT_SAMPLERS = ("nsga2", "gp")
AUGMENTATIONS = ("auto", "none", "crop", "crop+flip")
DUPLICATES = ("reuse", "retrain")
LAYERS = ("last", "all")


@dataclass(frozen=True)
class RunSettings:
    """How every candidate of a study is trained and measured.

    Trials of one study are comparable only under the same settings, so these are stored with
    the study and must agree when it is resumed. Where and for how long it runs is not among
    them.

    Attributes:
        objectives: Names from `OBJECTIVES`; one for a single-objective study.
        epochs: Epochs per candidate.
        batch_size: Training batch.
        lr: Peak learning rate of the one-cycle schedule.
        weight_decay: L2 penalty on all parameters.
        momentum: Nesterov momentum; 0 for plain SGD.
        augment: "none", "crop", "crop+flip", or "auto" for what suits the data set.
        probe_size: Training images the flatness is measured on.
        layers: Convolutions whose flatness is measured: the "last" after every epoch; with "all"
            also all of them together in the first epochs, where that says most about the final
            accuracy, and at the end.
        validation_fraction: Share of the training data held out to score candidates.
        image_size: Height and width to resize to; None for the data's own.
        seed: Of splits, initialisation, batch order and sampler.
        tune_recipe: Whether learning rate, weight decay, batch size and augmentation are
            parameters of every trial too, in place of the settings of those names.
        duplicates: What becomes of a candidate that is the same network as an earlier one:
            "reuse" that one's result, or "retrain" it, with other random numbers.
        min_accuracy: Validation accuracy that a trial must reach to be on the front, in a study
            with other objectives; None for clearly better than guessing, see
            `flatsearch.data.ImageData.guessing_accuracy`. Networks that have learnt nothing are
            perfectly flat.
        max_parameters: Candidates with more are not trained.
        max_flops: The same, for one image.
        max_memory: The same, bytes of activations for one image; see `count_memory`.
        max_latency: The same, milliseconds for one image where the search runs.
        max_batch_latency: The same, for a batch; see `measure_latency`.

    Raises:
        SettingsError: If a value is out of range.
    """

    objectives: tuple[str, ...] = ("accuracy", "flatness")
    epochs: int = 8
    batch_size: int = 64
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    augment: str = "auto"
    probe_size: int = 256
    layers: str = "all"
    validation_fraction: float = 0.2
    image_size: int | None = None
    seed: int = 0
    tune_recipe: bool = False
    duplicates: str = "reuse"
    min_accuracy: float | None = None
    max_parameters: int | None = None
    max_flops: int | None = None
    max_memory: int | None = None
    max_latency: float | None = None
    max_batch_latency: float | None = None

    def __post_init__(self) -> None:
        self._check_names()
        self._check_counts()
        self._check_numbers()

    def _check_names(self) -> None:
        names = self.objectives
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise SettingsError(f"`objectives` must be several names but got {names!r}")
        object.__setattr__(self, "objectives", tuple(names))
        if not self.objectives:
            raise SettingsError(f"`objectives` must name at least one of: {', '.join(OBJECTIVES)}")
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise SettingsError(unknown_name("objective", name, OBJECTIVES))
        if len(set(self.objectives)) < len(self.objectives):
            raise SettingsError(f"`objectives` has a name twice: {', '.join(self.objectives)}")
        if self.augment not in AUGMENTATIONS:
            raise SettingsError(unknown_name("augmentation", str(self.augment), AUGMENTATIONS))
        if self.duplicates not in DUPLICATES:
            raise SettingsError(
                unknown_name("way with duplicates", str(self.duplicates), DUPLICATES)
            )
        if self.layers not in LAYERS:
            raise SettingsError(unknown_name("layers", str(self.layers), LAYERS))
        if not isinstance(self.tune_recipe, bool):
            raise SettingsError(f"`tune_recipe` must be True or False but got {self.tune_recipe!r}")

    def _check_counts(self) -> None:
        counts = {"epochs": 1, "batch_size": 2, "probe_size": 1, "seed": 0, "image_size": 4}
        for name, least in counts.items():
            value = getattr(self, name)
            if name == "image_size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise SettingsError(f"`{name}` must be a whole number but got {value!r}")
            if value < least:
                raise SettingsError(f"`{name}` must be at least {least} but got {value}")
        if self.seed >= 2**32:
            raise SettingsError(f"`seed` must be below 2^32 but got {self.seed}")

    def _check_numbers(self) -> None:
        for name, limit in self.limits.items():
            if not isinstance(limit, (int, float)) or not (math.isfinite(limit) and limit > 0):
                raise SettingsError(f"`max_{name}` must be a positive number but got {limit!r}")
        least = self.min_accuracy
        if least is not None and not (isinstance(least, (int, float)) and 0 <= least < 1):
            raise SettingsError(f"`min_accuracy` must be at least 0 and below 1 but got {least!r}")
        for name in ("lr", "weight_decay", "momentum", "validation_fraction"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise SettingsError(f"`{name}` must be a finite Python number but got {value!r}")
        if not self.lr > 0:
            raise SettingsError(f"`lr` must be positive but got {self.lr}")
        if self.weight_decay < 0:
            raise SettingsError(f"`weight_decay` must not be negative but got {self.weight_decay}")
        if not 0 <= self.momentum < 1:
            raise SettingsError(f"`momentum` must be at least 0, below 1 but got {self.momentum}")
        if not 0 < self.validation_fraction < 1:
            raise SettingsError(
                f"`validation_fraction` must be between 0 and 1 but got {self.validation_fraction}"
            )

    @property
    def limits(self) -> dict[str, float]:
        """Limits on a candidate's cost, by the names of the objectives."""
        limits = {name: getattr(self, f"max_{name}") for name in COSTS}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def measures_all(self, epoch: int) -> bool:
        """Return whether all convolutions are measured after an epoch, counted from 1.

        In the first quarter of the epochs, at least two, and in the last one: what their flatness
        adds to the free signals shrinks as training goes on, and it costs a backward pass per
        class.

        Example:
            >>> [e for e in range(1, 13) if RunSettings(epochs=12).measures_all(e)]
            [1, 2, 3, 12]
        """
        early = epoch <= max(2, math.ceil(self.epochs / 4))
        return self.layers == "all" and (early or epoch == self.epochs)

    @property
    def directions(self) -> list[Direction]:
        """Optuna's directions of the objectives."""
        return [OBJECTIVES[name] for name in self.objectives]

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> RunSettings:
        """Return the settings that `to_dict` gave, from among other entries."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {**dataclasses.asdict(self), "objectives": list(self.objectives)}
