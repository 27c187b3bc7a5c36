"""A user's search spaces: quick to train, waiting for others, and learning something."""

import os
import time
from pathlib import Path

from torch import nn

from flatsearch import Architecture, GapCnn


class MySpace:
    """Networks of one layer."""

    def suggest(self, trial):
        width = trial.suggest_int("width", 2, 8)
        return Architecture("mine", {"width": width, "slope": trial.suggest_int("slope", 0, 99)})

    def build(self, architecture, in_channels=3, num_classes=10):
        width = architecture["width"]
        conv = nn.Conv2d(in_channels, width, 3, padding=1)
        act = nn.LeakyReLU(architecture["slope"] / 100)
        return GapCnn(nn.Sequential(conv, act), width, num_classes)


class Waits(MySpace):
    """From its fourth trial on waits for a process that is not among those in a file `before`."""

    def suggest(self, trial):
        drawing, before = Path("drawing"), Path("before")
        drawing.mkdir(exist_ok=True)
        (drawing / str(os.getpid())).touch()
        deadline = time.monotonic() + 120
        while trial.number >= 3 and time.monotonic() < deadline:
            others = before.read_text().split() if before.exists() else None
            if others and {file.name for file in drawing.iterdir()} - set(others):
                break
            time.sleep(0.05)
        return super().suggest(trial)


class Learns:
    """Networks of two layers."""

    def suggest(self, trial):
        return Architecture("learns", {"width": trial.suggest_int("width", 8, 64)})

    def build(self, architecture, in_channels=3, num_classes=10):
        width = architecture["width"]
        layers = [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        return GapCnn(nn.Sequential(*layers), width, num_classes)
