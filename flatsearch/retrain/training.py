"""The final training of a chosen architecture, and the one look at the test split.

The architecture is rebuilt from the study's record alone and trained on training and validation
images together: the search's own recipe, longer, with label smoothing and an exponential moving
average of the weights, which is the model that is kept. A checkpoint after every epoch makes it
resumable. The test split is read after the last epoch of the last seed, and the study remembers it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from flatsearch.data.loading import load_data
from flatsearch.errors import (
    COUNT,
    NonFiniteError,
    UnsupportedModelError,
    UsageError,
)
from flatsearch.export.card import ModelCard
from flatsearch.export.checkpoint import save_model
from flatsearch.flatness import relative_flatness
from flatsearch.networks.cost import count_parameters
from flatsearch.record import FinalTest, StudyRecord, write_study
from flatsearch.retrain.checkpoint import SeedTraining
from flatsearch.spaces.registry import load_space
from flatsearch.spaces.space import build_model
from flatsearch.training.evaluation import Scores, accuracy_interval, score

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import optuna
    from torch import nn

    from flatsearch.analysis.selection import Choice
    from flatsearch.data.splits import ImageData
    from flatsearch.record.trial import TrialRecord
    from flatsearch.settings import RunSettings

__all__ = ["FinalTraining", "SeedResult", "default_epochs", "load_images", "retrain"]

# Epochs, as a multiple of the search's, where none are given.
_LONGER = 5


@dataclass(frozen=True)
class SeedResult:
    """One trained network.

    Attributes:
        seed: Of its initialisation, batch order and augmentation.
        file: Where it was saved.
        test: Its scores on the test split.
        flatness: Relative flatness of one convolution, as in the search; None if not covered.
        train_loss: Running training loss (with label smoothing) of the last epoch.
    """

    seed: int
    file: str
    test: Scores
    flatness: float | None
    train_loss: float


@dataclass(frozen=True)
class FinalTraining:
    """What the final training gave.

    Attributes:
        trial: Number of the trial whose architecture it is.
        reason: Why that one.
        epochs: Per network.
        accuracy: Mean test accuracy over the seeds.
        low: Lower end of the 95% interval of one network's accuracy on so many test images.
        high: Upper end.
        spread: Standard deviation over the seeds; None with one.
        seeds: One result each; the first is the model to ship.
        class_names: One per class.
        earlier: Earlier looks at the test split on this study, as (trial, accuracy).
    """

    trial: int
    reason: str
    epochs: int
    accuracy: float
    low: float
    high: float
    spread: float | None
    seeds: tuple[SeedResult, ...]
    class_names: tuple[str, ...]
    earlier: tuple[tuple[int, float], ...]

    @property
    def model(self) -> str:
        """The file of the model to ship: the first seed's, which no test result has chosen."""
        return self.seeds[0].file


def default_epochs(study: optuna.Study) -> int:
    """Return the epochs of a final training where none are given: five times the search's."""
    return StudyRecord(study).run_settings().epochs * _LONGER


def load_images(
    study: optuna.Study, *, data: str | None = None, root: str | None = None
) -> ImageData:
    """Load the images of a study.

    Args:
        study: The study.
        data: Where they are, if not where the search was told.
        root: Where torchvision data sets are, if not where the search was told.

    Returns:
        The images, split as in the search.
    """
    known = StudyRecord(study)
    settings, run = known.run_settings(), known.run or {}
    return load_data(
        data or run.get("data") or (known.settings or {})["data"],
        root=root or run.get("data_root") or "data",
        **settings.data_options(),
    )


def retrain(
    study: optuna.Study,
    choice: Choice,
    data: ImageData,
    folder: Path,
    *,
    space: str | None = None,
    epochs: int | None = None,
    seeds: int = 1,
    force: bool = False,
    on_epoch: Callable[[int, int, float], None] | None = None,
) -> FinalTraining:
    """Train a chosen architecture to the end, test it once, and save it.

    Args:
        study: With the trial.
        choice: From `flatsearch.analysis.selection.choose`.
        data: The study's images, on the device.
        folder: Where models, checkpoints and `results.json` go.
        space: The search space; that of the study where None.
        epochs: Per network; five times the search's where None.
        seeds: Networks to train, with seeds 0, 1, ...
        force: Overwrite what is in the folder.
        on_epoch: Called with (seed, epoch, training loss) after every epoch.

    Returns:
        Test results and files.

    Raises:
        DivergedError: If training leaves the finite numbers.
        FlatsearchError: If memory is used up.
        UsageError: If the folder holds a finished training or another one's checkpoint, the data
            are other images, or a number is out of range.
    """
    known = StudyRecord(study)
    search, stored = known.run_settings(), known.settings or {}
    epochs = default_epochs(study) if epochs is None else epochs
    for name, value in (("epochs", epochs), ("seeds", seeds)):
        COUNT.check(name, value)
    results = folder / "results.json"
    if results.exists() and not force:
        raise UsageError(f"{str(folder)!r} holds a finished training; `force` overwrites it")
    known.check_data(data)
    trial = choice.trial
    assert trial.architecture is not None  # noqa: S101 - `choose` has refused it
    settings = dataclasses.replace(search, **{**trial.recipe, "epochs": epochs})
    reference = space or known.space or trial.architecture.space
    loaded = load_space(reference)
    card = ModelCard.of(data, reference, trial.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    if force:  # nothing of an earlier training is left beside the new one
        for old in (results, *folder.glob("seed-*.pt"), *folder.glob("seed-*.checkpoint")):
            old.unlink(missing_ok=True)
    merged = data.merged()
    trained = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = build_model(
            loaded,
            trial.architecture,
            in_channels=data.in_channels,
            num_classes=data.num_classes,
            image_size=data.image_size,
        ).to(data.train.targets.device)
        _check_size(model, trial)
        key = json.dumps([asdict(settings), asdict(card), seed, stored.get("data_fingerprint")])
        run = SeedTraining(
            model,
            merged,
            settings,
            seed,
            folder / f"seed-{seed}.checkpoint",
            key,
            2 if trial.halved else 1,
        )
        run.resume()
        final = run.run(None if on_epoch is None else _of_seed(on_epoch, seed))
        save_model(final, card, folder / f"seed-{seed}.pt")
        trained.append((seed, final, run))
    return _finish(study, choice, data, settings, folder, trained)


def _check_size(model: nn.Module, trial: TrialRecord) -> None:
    """Refuse a search space that builds another network than it did in the search."""
    known, built = trial.metrics.get("parameters"), count_parameters(model)
    if known is not None and known != built:
        raise UsageError(
            f"the search space has changed: it builds {built:,} parameters now, and built"
            f" {known:,.0f} for trial {trial.number}"
        )


def _of_seed(on_epoch: Callable[[int, int, float], None], seed: int) -> Callable[..., None]:
    return lambda epoch, loss: on_epoch(seed, epoch, loss)


def _flatness(model: nn.Module, data: ImageData, layer: str) -> float | None:
    try:
        return relative_flatness(model, data.probe.tensors(), layer).relative_flatness
    except (NonFiniteError, UnsupportedModelError):
        return None


def _finish(
    study: optuna.Study,
    choice: Choice,
    data: ImageData,
    settings: RunSettings,
    folder: Path,
    trained: list[tuple[int, nn.Module, SeedTraining]],
) -> FinalTraining:
    """Test the networks, record it, and clear the checkpoints away."""
    earlier = StudyRecord(study).tests
    tests = [score(model, data.test) for _, model, _ in trained]
    accuracies = torch.tensor([test.accuracy for test in tests], dtype=torch.float64)
    accuracy = float(accuracies.mean())
    # What has been looked at is told before anything else can go wrong.
    first = (folder / "seed-0.pt").resolve()
    write_study(study, tests=[*earlier, FinalTest(choice.trial.number, accuracy, str(first))])
    seeds = tuple(
        SeedResult(
            seed=seed,
            file=str(folder / f"seed-{seed}.pt"),
            test=test,
            flatness=_flatness(model, data, settings.layer),
            train_loss=run.train_loss,
        )
        for (seed, model, run), test in zip(trained, tests, strict=True)
    )
    low, high = accuracy_interval(accuracy, seeds[0].test.n_samples)
    final = FinalTraining(
        trial=choice.trial.number,
        reason=choice.reason,
        epochs=settings.epochs,
        accuracy=accuracy,
        low=low,
        high=high,
        spread=float(accuracies.std()) if len(seeds) > 1 else None,
        seeds=seeds,
        class_names=data.class_names,
        earlier=tuple((test.trial, test.accuracy) for test in earlier),
    )
    part = folder / "results.part"
    part.write_text(json.dumps(asdict(final), indent=1) + "\n")
    part.replace(folder / "results.json")
    for _, _, run in trained:
        run.checkpoint.unlink(missing_ok=True)
    return final
