"""Choosing one of a few networks: the regret of doing it by signals or by validation images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import ranks
from design import SEEDS
from table import FOCUS, OUTCOMES, SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable

    from table import Table

    Criterion = Callable[[np.ndarray, np.random.Generator], np.ndarray]

__all__ = ["choices"]

SET, SETS, GROUP, GROUPS = 20, 200, 25, 40
VALIDATION = (25, 50, 125, 250, 1000)


def _held_out(data: Table, checkpoint: str) -> tuple[np.ndarray, np.ndarray]:
    """Return how many are right and the mean loss, of every network and group, (networks, 40)."""
    hits, losses = np.zeros((2, len(SEEDS) * len(data.indices), GROUPS))
    keys = [(index, seed) for seed in SEEDS for index in data.indices]
    for place, key in enumerate(keys):
        row = data.rows.get(key)
        if row is not None and row[f"loss@{checkpoint}"]:
            hits[place] = row[f"validation_hits@{checkpoint}"].split()
            losses[place] = row[f"validation_losses@{checkpoint}"].split()
    return hits, losses


def _validation(hits: np.ndarray, losses: np.ndarray, images: int, *, accuracy: bool) -> Criterion:
    """Return the criterion of a random set of validation images, another one for every choice."""

    def criterion(chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        count = images // GROUP
        some = generator.random((len(chosen), GROUPS)).argpartition(count - 1)[:, None, :count]
        loss = losses[chosen[:, :, None], some].mean(2)
        # Equal accuracies are decided by the loss.
        wrong = -hits[chosen[:, :, None], some].sum(2)
        return wrong + loss / (1 + loss) if accuracy else loss

    return criterion


def _both(first: Criterion, second: Criterion) -> Criterion:
    """Return the sum of ranks of two criteria; the second decides between equal sums."""

    def criterion(chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        a, b = (c(chosen, generator).argsort(1).argsort(1) for c in (first, second))
        return a + b + b / (10 * SET)

    return criterion


def choices(
    data: Table, checkpoint: str, samples: int, wanted: set[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the regrets of choosing at a checkpoint, in points of test accuracy at the end.

    Args:
        data: The networks.
        checkpoint: Where signals and validation accuracies are read.
        samples: Bootstrap samples of configurations.
        wanted: Names of criteria; all where None.

    Returns:
        By criterion, (1 + samples,).
    """
    outcome = 100 * (1 - data.values(OUTCOMES["test error"], "end"))
    signals = {name: data.values(SIGNALS[name], checkpoint).ravel() for name in FOCUS}
    outcome[~np.isfinite(signals["nu all"].reshape(outcome.shape))] = np.nan
    criteria: dict[str, Criterion] = {
        name: lambda chosen, _, values=values: values[chosen] for name, values in signals.items()
    }
    criteria["at random"] = lambda chosen, generator: generator.random(chosen.shape)
    hits, losses = _held_out(data, checkpoint)
    for images in VALIDATION:
        criteria[f"loss, {images}"] = _validation(hits, losses, images, accuracy=False)
        own = _validation(hits, losses, images, accuracy=True)
        criteria[f"accuracy, {images}"] = own
        for name in ("nu all", "-parameters"):
            criteria[f"accuracy, {images}, and {name}"] = _both(criteria[name], own)
    kept = {name: criteria[name] for name in criteria if wanted is None or name in wanted}
    weights = ranks.resample(len(data.indices), samples)
    return ranks.regrets(kept, outcome, weights, size=SET, sets=SETS)
