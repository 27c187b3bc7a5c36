"""Stand-ins that several tests share."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
import pytest
from torch import nn

from flatsearch import Architecture, GapCnn
from flatsearch.cli import main
from flatsearch.search.liveness import this_process

if TYPE_CHECKING:
    from collections.abc import Mapping

# A process of this machine that is gone.
DEAD = f"{this_process().split(':')[0]}:99999999:1.00"
# Marks a test of GP in a study of several objectives.
gp_takes_several = pytest.mark.skipif(
    tuple(map(int, optuna.__version__.split(".")[:2])) < (4, 4),
    reason="Optuna's GP takes one objective before 4.4",
)


class Tiny:
    """A space of one-layer networks, quick to train."""

    def suggest(self, trial: optuna.Trial) -> Architecture:
        width = trial.suggest_int("width", 2, 6)
        # Continuous: no two candidates are the same network.
        return Architecture("tiny", {"width": width, "slope": trial.suggest_float("slope", 0, 1)})

    def build(self, architecture: Architecture, in_channels: int, num_classes: int) -> nn.Module:
        width = architecture["width"]
        act = nn.LeakyReLU(architecture.values.get("slope", 0.0))
        features = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), act)
        return GapCnn(features, width, num_classes)


class Resumable:
    """A training that only counts its epochs, of a loss that is known from the first one on."""

    def __init__(self, loss: float) -> None:
        self.loss, self.done = loss, 0

    def epoch(self) -> Mapping[str, float]:
        self.done += 1
        return {"loss": self.loss}

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


class Smallest(optuna.samplers.RandomSampler):
    """Draws small networks: the low end of every range of integers."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        if isinstance(distribution, optuna.distributions.IntDistribution):
            return distribution.low
        return super().sample_independent(study, trial, name, distribution)


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Leave out pictures of trials and figures of studies: they take longer than the training."""
    patch.setattr("flatsearch.search.pictures.is_available", lambda: False)
    patch.setattr("flatsearch.reports.dashboard.publish", lambda *_: None)


class Done(NamedTuple):
    """What a command printed."""

    out: str
    err: str


def call(*arguments: str, code: int = 0) -> Done:
    """Run a command of ours in this process and this folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main(arguments)
    assert found == code, err.getvalue() + out.getvalue()
    return Done(out.getvalue(), err.getvalue())
