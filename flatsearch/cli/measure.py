"""`flatsearch measure`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Preparing, Printing, Quiet, layers_of, make_console, print_json
from flatsearch.errors import COUNT, UnsupportedModelError
from flatsearch.settings import REQUIRED, RunOptions, RunSettings, same, setting
from flatsearch.settings.values import Choice, Switch, Text

if TYPE_CHECKING:
    from flatsearch.data.splits import Split
    from flatsearch.flatness.result import Flatness

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(Preparing, Printing, Quiet):
    """What `flatsearch measure` is told."""

    model: str = setting(
        REQUIRED,
        Text(),
        "a model file saved by 'flatsearch run', a .pt2 file saved by torch.export.save, or"
        " torchvision:NAME (resnet18, ...)",
        positional=True,
    )
    data: str = same(RunOptions, "data", default=REQUIRED, group="options")
    layers: str = setting(
        "last",
        Text(),
        "last (the last convolution executed), main (the last one of the longest path, gates and"
        " shortcuts aside), all, head (the linear classifier), or comma-separated names",
    )
    skip_unsupported: bool = setting(
        False, Switch(), "measure the other layers where some are not covered, and say which"
    )
    normalize: bool = setting(
        False, Switch(), "measure kernels on inputs of unit standard deviation per channel"
    )
    batch_size: int | None = setting(
        None, COUNT, "samples at a time", unset="what fits into the free memory", metavar="N"
    )
    classes: int | None = setting(
        None,
        COUNT,
        "the most backward passes per batch: with more classes, layers that take one for each are"
        " estimated from that many",
        unset="no limit",
        metavar="N",
    )
    samples: int = setting(512, COUNT, "images to use", metavar="N")
    split: str = setting(
        "train",
        Choice("split", ("train", "validation", "test")),
        "which images to measure on",
        more="The measure is defined on training images",
    )
    image_size: int | None = same(RunSettings, "image_size", group="options")
    weights: str | None = setting(
        None,
        Text(),
        "weights of a torchvision model: DEFAULT, another published name, or a file with a state"
        " dictionary",
        unset="random ones",
        metavar="NAME",
    )
    float64: bool = setting(False, Switch(), "compute in double precision")
    seed: int = same(
        RunSettings, "seed", help="seed of the data split and of random weights", group="options"
    )
    data_root: str = same(RunOptions, "data_root")
    data_memory: int | None = same(RunOptions, "data_memory", group="options")
    device: str = same(RunOptions, "device")


def _measure(options: _Options) -> None:
    import torch

    from flatsearch.cli.measure_input import load_with_images
    from flatsearch.data.loading import load_data
    from flatsearch.device import resolve_device
    from flatsearch.flatness import relative_flatness
    from flatsearch.reports.terminal import print_flatness

    device = resolve_device(options.device)
    loaded = load_with_images(
        options.model,
        lambda size: load_data(
            options.data,
            image_size=size,
            probe_size=options.samples,
            seed=options.seed,
            root=options.data_root,
            memory=options.data_memory,
        ),
        image_size=options.image_size,
        weights=options.weights,
        preprocessing=options.preprocessing,
        seed=options.seed,
    )
    options.note(loaded.images)
    note = loaded.note
    part: Split = getattr(loaded.images, options.split)
    try:
        result = relative_flatness(
            loaded.network.to(device),
            loaded.prepare(part.sample(options.samples, options.seed)),
            layers=layers_of(options.layers),
            normalize="input" if options.normalize else None,
            dtype=torch.float64 if options.float64 else None,
            batch_size=options.batch_size,
            classes=options.classes,
            skip_unsupported=options.skip_unsupported,
        )
    except UnsupportedModelError as error:
        message = str(error).replace("skip_unsupported=True", "--skip-unsupported")
        raise UnsupportedModelError(message) from error
    if options.json:
        fields = {**dataclasses.asdict(result), **_noise(result)}
        for name, layer in result.layers.items():
            fields["layers"][name] |= _noise(layer)
        also = {"model": options.model, "data": options.data, "split": options.split, "note": note}
        print_json({**fields, **also})
        return
    print_flatness(result, make_console())
    if options.split != "train":
        print(f"on {options.split} images, not on those that it was trained on")
    for name, reason in result.skipped.items():
        print(f"left out: layer {name!r}: {reason}")
    if note:
        print(note)


def _noise(measured: Flatness) -> dict[str, float]:
    return {"noise_loss": measured.noise_loss(), "noise_loss_error": measured.noise_loss_error()}


COMMAND = Command(
    "measure",
    "measure the flatness of a model",
    "Measure a model's relative flatness on the training probe of the data. A torchvision model has"
    " random weights unless --weights is given.",
    (_Options,),
    _measure,
)
