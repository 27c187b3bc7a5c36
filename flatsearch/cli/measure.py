"""`flatsearch measure`: the flatness of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsearch.cli.options import (
    add_data,
    add_device,
    add_json,
    make_console,
    print_json,
)
from flatsearch.errors import UsageError
from flatsearch.settings import RunSettings

if TYPE_CHECKING:
    import argparse

    from flatsearch.flatness.result import Flatness

__all__ = ["add_measure"]


def add_measure(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch measure`."""
    parser.description = (
        "Measure a model's relative flatness on the training probe of the data. A torchvision"
        " model has random weights unless --weights is given."
    )
    parser.add_argument(
        "model", help="a model file saved by 'flatsearch run', a .pt2 file saved by"
        " torch.export.save, or torchvision:NAME (resnet18, ...)",
    )  # fmt: skip
    add_data(parser, None)
    parser.add_argument(
        "--layers",
        default="last",
        help="last, all, head (the linear classifier), or comma-separated names (default:"
        " %(default)s)",
    )
    parser.add_argument(
        "--normalize", action="store_true",
        help="measure kernels on inputs of unit standard deviation per channel",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=int, metavar="N",
        help="samples at a time (default: what fits into the free memory)",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=512, help="training images to use (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="resize images")
    parser.add_argument(
        "--weights", metavar="NAME",
        help="of a torchvision model: DEFAULT, another published name, or a file with a state"
        " dictionary",
    )  # fmt: skip
    parser.add_argument("--float64", action="store_true", help="compute in double precision")
    parser.add_argument("--seed", type=int, default=RunSettings().seed, help="of the data split")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(call=_measure)


def _measure(options: argparse.Namespace) -> None:
    if options.samples < 1:
        raise UsageError(f"--samples must be at least 1 but got {options.samples}")
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1 but got {options.batch_size}")
    import torch

    from flatsearch.cli.measure_input import load_for_measuring
    from flatsearch.device import resolve_device
    from flatsearch.flatness import relative_flatness
    from flatsearch.reports.terminal import print_flatness

    device = resolve_device(options.device)
    model, inputs, targets, note = load_for_measuring(
        options.model,
        options.data,
        samples=options.samples,
        image_size=options.image_size,
        weights=options.weights,
        seed=options.seed,
        root=options.data_root,
    )
    layers = options.layers
    keyword = layers in {"last", "all", "head"}
    result = relative_flatness(
        model.to(device),
        (inputs, targets),
        layers=layers if keyword else [name.strip() for name in layers.split(",")],
        normalize="input" if options.normalize else None,
        dtype=torch.float64 if options.float64 else None,
        batch_size=options.batch_size,
    )
    if options.json:
        import dataclasses

        fields = {**dataclasses.asdict(result), **_noise(result)}
        for name, layer in result.layers.items():
            fields["layers"][name] |= _noise(layer)
        fields |= {"model": options.model, "data": options.data, "note": note}
        print_json(fields)
        return
    print_flatness(result, make_console())
    if note:
        print(note)


def _noise(measured: Flatness) -> dict[str, float]:
    return {
        "noise_loss": measured.noise_loss(),
        "noise_loss_error": measured.noise_loss_error(),
    }
