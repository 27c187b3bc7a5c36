"""A search space of your own, in one file: `flatsearch run --space examples/own_space.py:Wide`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from flatsearch import Architecture, GapCnn

if TYPE_CHECKING:
    import optuna


class Wide:
    """Plain networks of one to three layers."""

    def suggest(self, trial: optuna.Trial) -> Architecture:
        depth = trial.suggest_int("depth", 1, 3)
        widths = [trial.suggest_int(f"width_{i}", 8, 32, step=8) for i in range(depth)]
        return Architecture("wide", {"widths": widths})

    def build(
        self, architecture: Architecture, in_channels: int = 3, num_classes: int = 10
    ) -> GapCnn:
        layers: list[nn.Module] = []
        for width in architecture["widths"]:
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers += [nn.ReLU()]
            in_channels = width
        return GapCnn(nn.Sequential(*layers), in_channels, num_classes)


if __name__ == "__main__":
    import optuna

    import flatsearch

    objective = flatsearch.FlatnessObjective(Wide(), "digits", ["accuracy", "parameters"], epochs=2)
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=3)
    for trial in study.best_trials:
        print(trial.number, trial.values, trial.user_attrs["architecture"])
