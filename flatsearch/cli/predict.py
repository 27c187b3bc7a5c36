"""`flatsearch predict`."""

from __future__ import annotations

from dataclasses import dataclass

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Printing, print_json
from flatsearch.errors import COUNT
from flatsearch.settings import REQUIRED, setting
from flatsearch.settings.values import Text

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(Printing):
    """What `flatsearch predict` is told."""

    model: str = setting(
        REQUIRED, Text(), "a .pt2, .onnx or .pth file, or a saved model", positional=True
    )
    images: tuple[str, ...] = setting(
        REQUIRED, Text(), "PNG, JPEG, ...", positional=True, many=True, metavar="IMAGE"
    )
    top: int = setting(1, COUNT, "classes to print", metavar="K")


def _predict(options: _Options) -> None:
    from flatsearch.export.classifier import load

    predictions = load(options.model).predict(options.images)
    if options.json:
        rows = [
            {
                "image": image,
                "class": found.class_name,
                "probability": found.probability,
                "probabilities": found.probabilities,
            }
            for image, found in zip(options.images, predictions, strict=True)
        ]
        print_json({"model": options.model, "predictions": rows})
        return
    for image, prediction in zip(options.images, predictions, strict=True):
        best = list(prediction.probabilities.items())[: options.top]
        print(f"{image}: " + ", ".join(f"{name} ({p:.1%})" for name, p in best))


COMMAND = Command(
    "predict",
    "classify images",
    "Print the class of images, by a model that flatsearch saved or exported.",
    (_Options,),
    _predict,
)
