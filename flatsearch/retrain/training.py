"""The final training of a chosen architecture, and the one look at the test split.

The architecture is rebuilt from the study's record alone and trained on training and validation
images together: the search's own recipe, longer, with label smoothing and an exponential moving
average of the weights, which is the model that is kept. Of several networks the validation images
are held out, to rank them. A checkpoint after every epoch makes it resumable. The test split is
read once all networks are trained and ranked, and the study remembers it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import torch

from flatsearch.analysis.paired import estimate, fraction, paired
from flatsearch.analysis.selection import Choice
from flatsearch.data.loading import load_data
from flatsearch.errors import COUNT, DataError, DivergedError, UsageError
from flatsearch.export.card import ModelCard
from flatsearch.export.checkpoint import save_model
from flatsearch.networks.cost import count_parameters
from flatsearch.record import FinalTest, StudyRecord, write_study
from flatsearch.retrain.checkpoint import SeedTraining
from flatsearch.retrain.ranking import CRITERION, look_at, rank
from flatsearch.retrain.result import RESULTS, FinalTraining, SeedResult, Validated
from flatsearch.spaces.registry import load_space
from flatsearch.spaces.space import build_model
from flatsearch.training.evaluation import accuracy_interval, score

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import optuna
    from torch import nn

    from flatsearch.data.splits import ImageData
    from flatsearch.record.trial import TrialRecord
    from flatsearch.retrain.ranking import Finished
    from flatsearch.spaces.space import SearchSpace
    from flatsearch.training.evaluation import Scores

__all__ = [
    "FinalTraining",
    "SeedResult",
    "build_network",
    "default_epochs",
    "load_images",
    "retrain",
]

# Epochs, as a multiple of the search's, where none are given.
_LONGER = 5


@dataclass(frozen=True)
class _Trained:
    """A network that is trained to the end.

    Attributes:
        choice: The trial.
        seed: The seed.
        model: The averaged network, in eval mode.
        run: Its training, with the checkpoint.
        file: Where it is saved.
    """

    choice: Choice
    seed: int
    model: nn.Module
    run: SeedTraining
    file: Path


def default_epochs(study: optuna.Study) -> int:
    """Return the epochs of a final training where none are given: five times the search's."""
    return StudyRecord(study).run_settings().epochs * _LONGER


def load_images(
    study: optuna.Study,
    *,
    data: str | None = None,
    root: str | None = None,
    memory: int | None = None,
) -> ImageData:
    """Return the images of a study, split as in the search.

    Of `data`, and torchvision's of `root`, if they are not where the search was told; `memory` is
    `flatsearch.load_data`'s.

    Raises:
        DataError: If they are not there, or cannot be read.
    """
    known = StudyRecord(study)
    settings, run = known.run_settings(), known.run or {}
    source = data or run.get("data") or (known.settings or {})["data"]
    try:
        return load_data(
            source,
            root=root or run.get("data_root") or "data",
            memory=memory,
            **settings.data_options(),
        )
    except DataError as error:
        if data is not None:
            raise
        raise DataError(
            f"{error}; if the images of the study have moved, give `data` or `data_root`"
        ) from None


def retrain(
    study: optuna.Study,
    choice: Choice | Sequence[Choice],
    data: ImageData,
    folder: Path,
    *,
    space: str | None = None,
    epochs: int | None = None,
    seeds: int = 1,
    hold_out: bool | None = None,
    force: bool = False,
    on_epoch: Callable[[int | str, int, float], None] | None = None,
) -> FinalTraining:
    """Train chosen architectures to the end, rank the networks, test them once, and save them.

    Args:
        study: With the trials.
        choice: From `flatsearch.analysis.selection.choose`; several are ranked.
        data: The study's images, on the device.
        folder: Where models, checkpoints and `results.json` go.
        space: The search space; that of the study where None.
        epochs: Per network; five times the search's where None.
        seeds: Networks to train of every choice, with seeds 0, 1, ...
        hold_out: Whether the validation images are held out of the training, so that they can rank
            the networks; where there are several networks if None.
        force: Overwrite what is in the folder.
        on_epoch: Called with (seed, epoch, training loss) after every epoch; with several choices
            the seed is a text that names the trial, too.

    Returns:
        Test results and files.

    Raises:
        DivergedError: If the training of every network leaves the finite numbers.
        FlatsearchError: If memory is used up.
        UsageError: If the folder holds a finished training or another one's checkpoint, the data
            are other images, a trial is given twice, nothing could rank several trials, or a number
            is out of range.
    """
    known = StudyRecord(study)
    search, stored = known.run_settings(), known.settings or {}
    epochs = default_epochs(study) if epochs is None else epochs
    for name, value in (("epochs", epochs), ("seeds", seeds)):
        COUNT.check(name, value)
    choices = [choice] if isinstance(choice, Choice) else list(choice)
    hold_out = _holds_out(choices, seeds, hold_out)
    results = folder / RESULTS
    if results.exists() and not force:
        raise UsageError(f"{str(folder)!r} holds a finished training; `force` overwrites it")
    known.check_data(data)
    if "train" in stored:
        raise UsageError(
            f"study {study.study_name!r} was trained by {stored['train']!r}, a loop of its own:"
            " build the architecture and train it with that"
        )
    spaces = {c.trial.number: _space(space or known.space, c.trial) for c in choices}
    folder.mkdir(parents=True, exist_ok=True)
    if force:  # nothing of an earlier training is left beside the new one
        results.unlink(missing_ok=True)
        for stem in ("seed-*", "trial-*-seed-*"):
            for old in (*folder.glob(f"{stem}.pt"), *folder.glob(f"{stem}.checkpoint")):
                old.unlink()
    images = data if hold_out else data.merged()
    trained: list[_Trained] = []
    diverged: list[str] = []
    checkpoints = []
    for chosen in choices:
        trial, several = chosen.trial, len(choices) > 1
        settings = dataclasses.replace(search, **{**trial.recipe, "epochs": epochs})
        assert trial.architecture is not None  # noqa: S101 - `_space` has refused it
        reference, loaded = spaces[trial.number]
        card = ModelCard.of(data, reference, trial.architecture)
        for seed in range(seeds):
            name = f"trial-{trial.number}-seed-{seed}" if several else f"seed-{seed}"
            facts = [asdict(settings), asdict(card), seed, stored.get("data_fingerprint")]
            run = SeedTraining(
                build_network(loaded, trial, seed, data),
                images,
                settings,
                seed,
                folder / f"{name}.checkpoint",
                json.dumps([*facts, "held out"] if hold_out else facts),
                2 if trial.halved else 1,
            )
            checkpoints.append(run.checkpoint)
            run.resume()
            label = f"{seed} of trial {trial.number}" if several else seed
            try:
                final = run.run(None if on_epoch is None else partial(on_epoch, label))
            except DivergedError as error:  # the others are none the worse for it
                diverged.append(f"trial {trial.number}, seed {seed}: {error}")
                continue
            file = folder / f"{name}.pt"
            save_model(final, card, file)
            trained.append(_Trained(chosen, seed, final, run, file))
    if not trained:
        raise DivergedError("; ".join(diverged))
    final_training = _finish(study, data, folder, trained, tuple(diverged), ranked=hold_out)
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)
    return final_training


def _holds_out(choices: Sequence[Choice], seeds: int, hold_out: bool | None) -> bool:
    """Return whether the validation images are held out of the training."""
    numbers = [choice.trial.number for choice in choices]
    for number in numbers:
        if numbers.count(number) > 1:
            raise UsageError(f"trial {number} is given twice")
    if len(choices) > 1 and hold_out is False:
        raise UsageError("without `hold_out` nothing ranks several trials")
    return len(choices) * seeds > 1 if hold_out is None else hold_out


def _space(reference: str, trial: TrialRecord) -> tuple[str, SearchSpace]:
    """Return the reference of a trial's search space, and the space."""
    if trial.architecture is None:
        raise UsageError(f"trial {trial.number} has no architecture on record")
    reference = reference or trial.architecture.space
    return reference, load_space(reference)


def build_network(space: SearchSpace, trial: TrialRecord, seed: int, data: ImageData) -> nn.Module:
    """Return a trial's network with the weights of a seed."""
    assert trial.architecture is not None  # noqa: S101 - `_space` has refused it
    torch.manual_seed(seed)
    model = build_model(
        space,
        trial.architecture,
        in_channels=data.in_channels,
        num_classes=data.num_classes,
        image_size=data.image_size,
    ).to(data.train.targets.device)
    known, built = trial.metrics.get("parameters"), count_parameters(model)
    if known is not None and known != built:
        raise UsageError(
            f"the search space has changed: it builds {built:,} parameters now, and built"
            f" {known:,.0f} for trial {trial.number}"
        )
    return model


def _finish(
    study: optuna.Study,
    data: ImageData,
    folder: Path,
    trained: list[_Trained],
    diverged: tuple[str, ...],
    *,
    ranked: bool,
) -> FinalTraining:
    """Rank the networks, then test them, and record it."""
    looks = [look_at(t.model, data, t.run.settings.layer) for t in trained]
    order = rank(looks) if ranked else list(range(len(trained)))
    best = trained[order[0]]
    earlier = StudyRecord(study).tests
    tests = [score(network.model, data.test) for network in trained]
    by_trial: dict[int, list[int]] = {}
    for i in order:
        by_trial.setdefault(trained[i].choice.trial.number, []).append(i)
    accuracies = {number: [tests[i].accuracy for i in own] for number, own in by_trial.items()}
    # What has been looked at is told before anything else can go wrong. Of several trials the best
    # one last, as the latest look.
    write_study(
        study,
        tests=[
            *earlier,
            *(
                FinalTest(number, fmean(accuracies[number]), str(trained[own[0]].file.resolve()))
                for number, own in reversed(by_trial.items())
            ),
        ],
    )
    seeds = tuple(
        _result(trained[i], looks[i], tests[i], looks[order[0]] if ranked else None) for i in order
    )
    own = accuracies[best.choice.trial.number]
    low, high = accuracy_interval(fmean(own), len(data.test))
    final = FinalTraining(
        trial=best.choice.trial.number,
        reason=best.choice.reason,
        criterion=f"{CRITERION} of {len(trained)}" if ranked and len(trained) > 1 else None,
        epochs=best.run.settings.epochs,
        accuracy=fmean(own),
        low=low,
        high=high,
        spread=stdev(own) if len(own) > 1 else None,
        seeds=seeds,
        class_names=data.class_names,
        earlier=tuple((test.trial, test.accuracy) for test in earlier),
        diverged=diverged,
        data=str(data),
    )
    part = folder / "results.part"
    part.write_text(json.dumps(asdict(final), indent=1) + "\n")
    part.replace(folder / RESULTS)
    return final


def _result(network: _Trained, look: Finished, test: Scores, best: Finished | None) -> SeedResult:
    """Return what is told of a network, with its distance to the best one where it is ranked."""
    measured, validation = look.flatness, None
    numbers: tuple[float | None, ...] = (None,) * 4
    if measured is not None:
        noise = measured.noise_loss(), measured.noise_loss_error()
        numbers = measured.relative_flatness, measured.standard_error, *noise
    if best is not None:
        behind = None if best is look else paired(look.losses, best.losses)[0]
        validation = Validated(estimate(look.losses), fraction(look.hits), behind)
    flatness, flatness_error, noise_loss, noise_loss_error = numbers
    return SeedResult(
        trial=network.choice.trial.number,
        seed=network.seed,
        file=str(network.file),
        test=test,
        flatness=flatness,
        flatness_error=flatness_error,
        noise_loss=noise_loss,
        noise_loss_error=noise_loss_error,
        train_loss=network.run.train_loss,
        validation=validation,
    )
