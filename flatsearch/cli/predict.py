"""`flatsearch predict`."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Printing, Quiet, print_json
from flatsearch.errors import COUNT, DataError
from flatsearch.settings import REQUIRED, setting
from flatsearch.settings.values import Switch, Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flatsearch.export.classifier import Classifier, Prediction

__all__ = ["COMMAND"]

_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class _Options(Printing, Quiet):
    """What `flatsearch predict` is told."""

    model: str = setting(
        REQUIRED, Text(), "a .pt2, .onnx or .pth file, or a saved model", positional=True
    )
    images: tuple[str, ...] = setting(
        REQUIRED,
        Text(),
        "files, folders, or patterns such as 'new/*.jpg'",
        positional=True,
        many=True,
        metavar="IMAGE",
    )
    top: int = setting(1, COUNT, "classes to print", metavar="K")
    csv: bool = setting(
        False, Switch(), "print a table: image, class, and the probability of every class"
    )


def _predict(options: _Options) -> int:
    from flatsearch.export.classifier import load

    classifier = load(options.model)
    files, left_out = _files(options.images)
    predictions: dict[str, Prediction] = {}
    errors: list[str] = []
    for start in range(0, len(files), _BATCH):
        found, failed = _some(classifier, files[start : start + _BATCH])
        predictions |= found
        errors += failed
    if not predictions:
        raise DataError("; ".join(errors))
    _print(options, predictions, classifier.class_names)
    for line in left_out:
        options.note(f"flatsearch predict: {line}")
    for line in errors:
        print(f"flatsearch predict: {line}", file=sys.stderr)
    if len(files) > 1 or errors:
        counts = f"{len(predictions)} of {len(files)} images read"
        options.note(f"flatsearch predict: {counts}")
    return 1 if errors else 0


def _files(given: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the files that are meant, each once, and what was left out of folders."""
    import glob
    from pathlib import Path

    from flatsearch.data.scan import image_files

    files: list[str] = []
    left_out: list[str] = []
    for text in given:
        path = Path(text).expanduser()
        if path.is_dir():
            inside, remarks = image_files(path)
            if not inside:
                raise DataError("; ".join([f"folder {text!r} holds no images", *remarks]))
            files += map(str, inside)
            left_out += [f"{text}: {remark}" for remark in remarks]
        elif not path.exists() and glob.has_magic(text):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute ones, too
            if not matches:
                raise DataError(f"no file is like {text!r}")
            files += matches
        else:
            files.append(text)
    return list(dict.fromkeys(files)), left_out


def _some(classifier: Classifier, files: list[str]) -> tuple[dict[str, Prediction], list[str]]:
    """Return the predictions of files that can be read, and what is wrong with the others."""
    import torch

    tried = dict(zip(files, classifier.items(files).tried(), strict=True))
    errors = [str(error) for error in tried.values() if isinstance(error, DataError)]
    images = {file: image for file, image in tried.items() if not isinstance(image, DataError)}
    if not images:
        return {}, errors
    predictions = classifier.predict(torch.stack(list(images.values())))
    return dict(zip(images, predictions, strict=True)), errors


def _print(
    options: _Options, predictions: Mapping[str, Prediction], class_names: tuple[str, ...]
) -> None:
    if options.json:
        rows = [
            {
                "image": image,
                "class": found.class_name,
                "probability": found.probability,
                "probabilities": found.probabilities,
            }
            for image, found in predictions.items()
        ]
        print_json({"model": options.model, "predictions": rows})
    elif options.csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["image", "class", "probability", *class_names])
        table.writerows(_rows(predictions, class_names))
    else:
        for image, found in predictions.items():
            best = list(found.probabilities.items())[: options.top]
            print(f"{image}: " + ", ".join(f"{name} ({p:.1%})" for name, p in best))


def _rows(
    predictions: Mapping[str, Prediction], class_names: tuple[str, ...]
) -> Iterator[list[str]]:
    for image, found in predictions.items():
        probabilities = [found.probability, *(found.probabilities[name] for name in class_names)]
        yield [image, found.class_name, *(f"{p:.6f}" for p in probabilities)]


COMMAND = Command(
    "predict",
    "classify images",
    "Print the class of images, by a model that flatsearch saved or exported. Files that cannot be"
    " read are named on standard error, and the exit code is 1 then.",
    (_Options,),
    _predict,
)
