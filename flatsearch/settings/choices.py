"""Samplers and pruners by the names that a run takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatsearch.settings.objectives import Direction

__all__ = ["DEFAULT_PRUNER", "PRUNERS", "PRUNER_FOR_GOOD", "PRUNE_ON", "SAMPLERS"]

SAMPLERS = ("tpe", "nsga2", "gp", "random")
PRUNERS = ("flatness", "promote", "median", "asha", "hyperband", "none")
DEFAULT_PRUNER = "promote"
# Where nothing can be parked.
PRUNER_FOR_GOOD = "flatness"
# What pruners other than "flatness" can judge by, beside the Pareto rank, and which way is good.
PRUNE_ON: dict[str, Direction] = {
    "pareto_rank": "minimize",
    "accuracy": "maximize",
    "loss": "minimize",
    "train_accuracy": "maximize",
    "train_loss": "minimize",
}
