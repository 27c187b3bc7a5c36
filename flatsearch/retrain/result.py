"""What a final training gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatsearch.analysis.paired import Estimate
from flatsearch.errors import UsageError
from flatsearch.training.evaluation import Scores

__all__ = ["RESULTS", "FinalTraining", "SeedResult", "Validated", "read_final", "read_results"]

# The file beside the trained networks that says what they did.
RESULTS = "results.json"


@dataclass(frozen=True)
class Validated:
    """What a network did on validation images that it was not trained on.

    Attributes:
        loss: The mean cross-entropy, with its interval.
        accuracy: The fraction right, with its interval.
        behind: By how much its loss is above the best network's on the same images, with the
            interval of the difference; None of the best one.
    """

    loss: Estimate
    accuracy: Estimate
    behind: Estimate | None


@dataclass(frozen=True)
class SeedResult:
    """One trained network.

    Attributes:
        trial: The number of the trial whose architecture it has.
        seed: Of its initialisation, batch order and augmentation.
        file: Where it was saved.
        test: Its scores on the test split.
        flatness: Relative flatness of one convolution, as in the search; None if not covered.
        flatness_error: Its standard error over the probe.
        noise_loss: The rise of the loss under noise of 10% on that convolution's filters.
        noise_loss_error: Its standard error over the probe.
        train_loss: Running training loss (with label smoothing) of the last epoch.
        validation: What it did on the validation images; None if it was trained on them.
    """

    trial: int
    seed: int
    file: str
    test: Scores
    flatness: float | None
    flatness_error: float | None
    noise_loss: float | None
    noise_loss_error: float | None
    train_loss: float
    validation: Validated | None


@dataclass(frozen=True)
class FinalTraining:
    """What the final training gave.

    Attributes:
        trial: Number of the trial whose architecture the model to ship has.
        reason: Why that trial was among those trained.
        criterion: What the networks were ranked by; None where nothing ranks them.
        epochs: Per network.
        accuracy: Mean test accuracy over the networks of that trial.
        low: Lower end of the 95% interval of one network's accuracy on so many test images.
        high: Upper end.
        spread: Standard deviation over the networks of that trial; None with one.
        seeds: One result each, the best first, or in the order of training where nothing ranks
            them: no test result has a say.
        class_names: One per class.
        earlier: Earlier looks at the test split on this study, as (trial, accuracy).
        diverged: Networks whose training left the finite numbers, a line each.
        data: What was read, in a line.
    """

    trial: int
    reason: str
    criterion: str | None
    epochs: int
    accuracy: float
    low: float
    high: float
    spread: float | None
    seeds: tuple[SeedResult, ...]
    class_names: tuple[str, ...]
    earlier: tuple[tuple[int, float], ...]
    diverged: tuple[str, ...] = ()
    data: str = ""

    @property
    def model(self) -> str:
        """The file of the model to ship: the first network's."""
        return self.seeds[0].file


def read_results(model: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return what a final training said, of all and of one of its networks, by attributes' names.

    None for a model that is of no final training.
    """
    file = model.parent / RESULTS
    if not file.is_file():
        return None
    final: dict[str, Any] = json.loads(file.read_text())
    own = (seed for seed in final["seeds"] if Path(seed["file"]).name == model.name)
    return next(((final, seed) for seed in own), None)


def read_final(model: Path) -> FinalTraining | None:
    """Return the final training that a network is of; None if its results are not beside it.

    Raises:
        UsageError: If they cannot be read.
    """
    try:
        found = read_results(model)
        if found is None:
            return None
        fields = found[0]
        return FinalTraining(**{**fields, "seeds": tuple(map(_seed, fields["seeds"]))})
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UsageError(
            f"{str(model.parent / RESULTS)!r} cannot be read: {type(error).__name__}: {error}"
        ) from None


def _seed(fields: dict[str, Any]) -> SeedResult:
    validated = fields["validation"]
    if validated is not None:
        validated = Validated(**{n: v and Estimate(**v) for n, v in validated.items()})
    return SeedResult(**{**fields, "test": Scores(**fields["test"]), "validation": validated})
