"""`flatsearch export`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Printing, TrialOptions, as_told, print_json
from flatsearch.errors import UsageError
from flatsearch.settings import setting
from flatsearch.settings.values import Switch, Text

if TYPE_CHECKING:
    import optuna
    from torch import nn

    from flatsearch.analysis.selection import Choice, SavedModel
    from flatsearch.analysis.summary import StudySummary
    from flatsearch.data.splits import ImageData
    from flatsearch.training.evaluation import Scores

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(TrialOptions, Printing):
    """What `flatsearch export` is told."""

    format: str | None = setting(
        None,
        Text(),
        "pt2, onnx, onnx-int8 (weights and activations of 8 bits, calibrated on training images"
        " and scored) or state_dict",
        unset="by --out's ending, or pt2",
        metavar="F",
    )
    out: str | None = setting(
        None, Text(), "where to", unset="STUDY-trial-N.ENDING", metavar="FILE"
    )
    model: str | None = setting(None, Text(), "a model file, instead of a study's", metavar="FILE")
    artifacts: str | None = as_told("artifacts", help="where the search saved its models")
    data: str | None = as_told("data", help="where the study's images are, for onnx-int8")
    data_root: str | None = as_told("data_root")
    force: bool = setting(False, Switch(), "overwrite what is there")


def _export(options: _Options) -> None:
    from flatsearch.export.checkpoint import load_model
    from flatsearch.export.formats import FORMATS, choose_format, export_model
    from flatsearch.reports.model_card import Origin, card_file, model_card, within

    kind = choose_format(options.format, options.out)
    if kind == "onnx-int8" and options.model is not None:
        raise UsageError(
            "onnx-int8 is calibrated and scored on the images of a study: name the study in the"
            " place of `model`"
        )
    chosen, study, summary, number = _chosen(options)
    out = Path(options.out or f"{chosen.name}{FORMATS[kind]}")
    model, card = load_model(chosen.file)
    chosen.check(card)
    data = _images(study, options) if study is not None and kind == "onnx-int8" else None
    train = None if data is None else data.train
    difference = export_model(model, card, kind, out, train=train, force=options.force)
    size = out.stat().st_size
    scored = None if data is None else _scored(out, model, chosen, data)
    origin = Origin(chosen.file, summary, number, scored and (scored[0], scored[2]))
    readme = card_file(out)
    readme.write_text(model_card(out, kind, model, card, origin), encoding="utf-8")
    if options.json:
        fields: dict[str, Any] = {"file": str(out), "format": kind, "model": str(chosen.file)}
        if scored is not None:
            found, whole, split = scored
            fields |= {"split": split, "images": found.n_samples}
            fields |= {"accuracy": found.accuracy, "float_accuracy": whole.accuracy}
        fields |= {"what": chosen.what, "max_difference": difference, "size": size}
        print_json({**fields, "card": str(readme)})
        return
    print(chosen.what)
    print(
        f"written: {out} ({size:,} bytes); its logits differ from the model's by at most"
        f" {difference:.1e}"
    )
    if scored is not None:
        found, whole, split = scored
        print(
            f"accuracy on {found.n_samples} {split} images:"
            f" {within(found.accuracy, found.n_samples)}; of the float model {whole.accuracy:.3f}"
        )
    print(f"model card: {readme}")
    file = shlex.quote(str(out))
    print(f"next:\n  flatsearch predict {file} IMAGE.png\n  flatsearch demo {file}")


def _images(study: optuna.Study, options: _Options) -> ImageData:
    """Return the images that a file of 8 bits is calibrated and scored on."""
    from flatsearch.record import StudyRecord
    from flatsearch.retrain.training import load_images

    data = load_images(study, data=options.data, root=options.data_root)
    StudyRecord(study).check_data(data)
    return data


def _scored(
    file: Path, model: nn.Module, chosen: SavedModel, data: ImageData
) -> tuple[Scores, Scores, str]:
    """Return what a file did, what the model did, and on which images.

    The test images are for networks that were tested before.
    """
    import torch

    from flatsearch.export.classifier import load
    from flatsearch.retrain.result import read_results
    from flatsearch.training.evaluation import EVALUATION_BATCH, score, scores_of

    name = "validation" if read_results(chosen.file) is None else "test"
    split = getattr(data, name)
    classifier = load(file)
    logits = torch.cat([classifier(part.pixels()) for part in split.parts(EVALUATION_BATCH)])
    return scores_of(logits.double(), split.targets), score(model, split), name


def _chosen(
    options: _Options,
) -> tuple[SavedModel, optuna.Study | None, StudySummary | None, int | None]:
    """Return the model to export, with the study, its summary and the number of the trial."""
    from flatsearch.analysis.selection import SavedModel, saved_model
    from flatsearch.analysis.summary import summarise
    from flatsearch.search.storage import artifacts_of

    if options.model is not None:
        file = Path(options.model)
        return SavedModel(file, file.stem, "the given model"), None, None, None
    study = options.load()
    summary = summarise(study, statistics=False)
    choice = _choice(study, summary, options)
    model = saved_model(study, choice, Path(options.artifacts or artifacts_of(study)))
    return model, study, summary, choice.trial.number


def _choice(study: optuna.Study, summary: StudySummary, options: _Options) -> Choice:
    """Return the trial of the last final training, unless another is asked for."""
    import dataclasses

    from flatsearch.analysis.selection import choose
    from flatsearch.record import StudyRecord

    tests = StudyRecord(study).tests
    asked = options.trial != "best" or options.prefer is not None
    if asked or not tests or not Path(tests[-1].file).exists():
        return choose(summary, options.trial, options.prefer)
    return dataclasses.replace(choose(summary, str(tests[-1].trial)), reason="trained last")


COMMAND = Command(
    "export",
    "export a trained model",
    "Export a trained model: that of the last 'flatsearch train', or of a trial: of its final"
    " training if there is one, else of the search. The file is checked to compute the same. pt2"
    " and onnx hold normalisation and class names, and need neither flatsearch nor the search"
    " space. A model card is written beside it.",
    (_Options,),
    _export,
)
