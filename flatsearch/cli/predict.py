"""`flatsearch predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsearch.cli.options import (
    add_json,
    print_json,
)
from flatsearch.errors import UsageError

if TYPE_CHECKING:
    import argparse


__all__ = ["add_predict"]


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch predict`."""
    parser.description = "Print the class of images, by a model that flatsearch saved or exported."
    parser.add_argument("model", help="a .pt2, .onnx or .pth file, or a saved model")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, ...")
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="classes to print (default: %(default)s)"
    )
    add_json(parser)
    parser.set_defaults(call=_predict)


def _predict(options: argparse.Namespace) -> None:
    from flatsearch.export.classifier import load

    if options.top < 1:
        raise UsageError(f"--top must be at least 1 but got {options.top}")
    predictions = load(options.model).predict(options.images)
    if options.json:
        rows = [
            {"image": image, "class": p.class_name, "probability": p.probability,
             "probabilities": p.probabilities}
            for image, p in zip(options.images, predictions, strict=True)
        ]  # fmt: skip
        print_json({"model": options.model, "predictions": rows})
        return
    for image, prediction in zip(options.images, predictions, strict=True):
        best = list(prediction.probabilities.items())[: options.top]
        print(f"{image}: " + ", ".join(f"{name} ({p:.1%})" for name, p in best))
