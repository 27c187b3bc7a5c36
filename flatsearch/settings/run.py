"""The settings that make the trials of a study comparable: the only place for their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flatsearch.errors import COUNT, FRACTION, IMAGE_SIZE, SEED, Range, SettingsError
from flatsearch.settings.fields import setting
from flatsearch.settings.objectives import OBJECTIVES, Direction, Limits
from flatsearch.settings.values import Choice, Names, Switch
from flatsearch.signals.table import PROXIES

__all__ = ["BUDGET", "SEARCH", "RunSettings"]

# Headings in the help.
SEARCH = "search"
BUDGET = "budget"
_TRAINING = "training"
_MEASURING = "data and measuring"
# The settings that `flatsearch.load_data` takes as arguments of the same names.
_OF_THE_DATA = ("image_size", "validation_fraction", "probe_size", "seed", "normalisation")


@dataclass(frozen=True)
class RunSettings(Limits):
    """How every candidate of a study is trained and measured.

    Trials of one study are comparable only under the same settings, so these are stored with
    the study and must agree when it is resumed. Where and for how long it runs is not among
    them: see `RunOptions`.

    Raises:
        SettingsError: If a value is out of range.
    """

    objectives: tuple[str, ...] = setting(
        ("accuracy", "flatness"),
        Names("objective", OBJECTIVES, least=1),
        "what to optimise, comma-separated",
        group=SEARCH,
        metavar="NAMES",
    )
    epochs: int = setting(8, COUNT, "epochs per trial", group=BUDGET, metavar="E")
    batch_size: int = setting(
        64, Range(least=2, whole=True), "images per step", group=_TRAINING, metavar="N"
    )
    lr: float = setting(0.1, Range(above=0), "peak of the one-cycle schedule", group=_TRAINING)
    weight_decay: float = setting(
        5e-4, Range(least=0), "L2 penalty on all parameters", group=_TRAINING, metavar="X"
    )
    momentum: float = setting(
        0.9, Range(least=0, below=1), "Nesterov; 0 for plain SGD", group=_TRAINING, metavar="X"
    )
    class_weights: str = setting(
        "none",
        Choice("class weights", ("none", "balanced")),
        "balanced: rare classes count in the training loss as much as frequent ones",
        more="The weight of a class is the number of images over that of classes times its own."
        " Accuracies and validation losses stay as they are",
        group=_TRAINING,
    )
    augment: str = setting(
        "auto",
        Choice("augmentation", ("auto", "none", "crop", "crop+flip")),
        "random changes of training images",
        more="auto is crop for digits and letters, crop+flip for all other images: give crop where"
        " left and right matter",
        group=_TRAINING,
    )
    precision: str = setting(
        "auto",
        Choice("precision", ("auto", "float32", "bfloat16")),
        "numbers that networks are trained with",
        more="auto is bfloat16 where the device computes it natively and a network has enough"
        " arithmetic for it; weights and the measure are float32 in any case",
        group=_TRAINING,
    )
    memory_format: str = setting(
        "auto",
        Choice("memory format", ("auto", "contiguous", "channels_last")),
        "layout of maps in memory",
        more="auto is channels_last on CUDA and for networks that gain from it; on a CPU it is"
        " contiguous in any case where gradients would be wrong",
        group=_TRAINING,
    )
    cuda_graphs: bool = setting(
        True,
        Switch(),
        "on a GPU, replay every training step as one CUDA graph",
        more="A step that cannot be captured is taken as it is written, and the trial says why",
        compared=False,
        group=_TRAINING,
    )
    flatness_share: float = setting(
        0.05,
        Range(above=0),
        "share of a candidate's training time that measuring flatness may take",
        more="Counted in forward passes, not by a clock: images of the probe, and epochs in which"
        " all convolutions are measured, are left out until it fits",
        group=_MEASURING,
        metavar="X",
    )
    probe_size: int = setting(
        256, COUNT, "training images the flatness is measured on", group=_MEASURING, metavar="N"
    )
    layers: str = setting(
        "all",
        Choice("layers", ("main", "last", "all")),
        "convolutions whose flatness is measured",
        more="main is the last one of the longest path, gates and shortcuts aside, last the one"
        " executed last: it is measured after every epoch. With all, main is, and also all of them"
        " together in the first epochs, where that says most about the final accuracy, and at the"
        " end, as far as the share of measuring allows, or after every epoch if noise_loss_all is"
        " an objective",
        group=_MEASURING,
    )
    validation_fraction: float = setting(
        0.2, FRACTION, "share of the training images to score by", group=_MEASURING, metavar="X"
    )
    image_size: int | None = setting(
        None,
        IMAGE_SIZE,
        "height and width to resize images to",
        unset="their own size, their median one if they differ; at most 64",
        group=_MEASURING,
        metavar="PIXELS",
    )
    normalisation: str | None = setting(
        None,
        Choice("normalisation", ("data", "imagenet")),
        "mean and deviation that pixels are normalised by: of the training images, or of ImageNet",
        unset="imagenet where networks begin with published weights, else data",
        group=_MEASURING,
    )
    seed: int = setting(0, SEED, "seed of everything random", group=SEARCH, metavar="N")
    tune_recipe: bool = setting(
        False,
        Switch(),
        "search learning rate, weight decay, batch size and augmentation too, in place of the"
        " settings of those names",
        group=SEARCH,
    )
    duplicates: str = setting(
        "reuse",
        Choice("way with duplicates", ("reuse", "retrain")),
        "what becomes of a candidate that is the same network as an earlier one",
        more="reuse takes its result over and does not count as a trial; retrain trains it with"
        " other random numbers",
        group=SEARCH,
    )
    signals: tuple[str, ...] = setting(
        (),
        Names("signal to record", PROXIES),
        "scores of others to record of every candidate beside what is recorded anyway,"
        " comma-separated",
        more="The pruner learns from them too; all but gradient_norm and weight_movement are"
        " computed before training",
        group=_MEASURING,
        metavar="NAMES",
    )
    min_accuracy: float | None = setting(
        None,
        Range(least=0, below=1),
        "validation accuracy that a trial must reach to be on the front of several objectives",
        unset="90% of what the best trial has learnt beyond guessing; 0 for none",
        more="Networks that know little are flat for that alone. Of the objective"
        " balanced_accuracy, where that is one",
        group=SEARCH,
        metavar="A",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.needs_all and self.layers != "all":
            raise SettingsError(
                "the objective 'noise_loss_all' is of all convolutions, but `layers` is"
                f" {self.layers!r}"
            )

    @property
    def layer(self) -> str:
        """Which single convolution is measured after every epoch: "main" or "last"."""
        return "last" if self.layers == "last" else "main"

    @property
    def accuracy(self) -> str:
        """The accuracy by which it is judged what a network has learnt."""
        return "balanced_accuracy" if "balanced_accuracy" in self.objectives else "accuracy"

    @property
    def needs_all(self) -> bool:
        """Whether an objective is of all convolutions."""
        return "noise_loss_all" in self.objectives

    def measures_all(self, epoch: int) -> bool:
        """Return whether all convolutions are measured after an epoch, counted from 1.

        In the first quarter of the epochs, at least two, and in the last one: what their flatness
        adds to the free signals shrinks as training goes on, and it costs a backward pass per
        class. After every epoch if it is an objective, which pruners compare.

        Example:
            >>> [e for e in range(1, 13) if RunSettings(epochs=12).measures_all(e)]
            [1, 2, 3, 12]
        """
        early = epoch <= max(2, math.ceil(self.epochs / 4))
        return self.layers == "all" and (self.needs_all or early or epoch == self.epochs)

    @property
    def directions(self) -> list[Direction]:
        """Optuna's directions of the objectives."""
        return [OBJECTIVES[name] for name in self.objectives]

    def data_options(self) -> dict[str, Any]:
        """Return the arguments of `flatsearch.load_data` that are settings."""
        return {name: getattr(self, name) for name in _OF_THE_DATA}
