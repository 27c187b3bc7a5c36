"""`flatsearch compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Preparing, Printing, Quiet, layers_of, make_console, print_json
from flatsearch.errors import COUNT
from flatsearch.settings import REQUIRED, RunOptions, RunSettings, same, setting
from flatsearch.settings.values import Switch, Text

if TYPE_CHECKING:
    import torch

    from flatsearch.analysis.comparison import Contender
    from flatsearch.data.splits import ImageData

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(Preparing, Printing, Quiet):
    """What `flatsearch compare` is told."""

    models: tuple[str, ...] = setting(
        REQUIRED,
        Text(),
        "model files saved by 'flatsearch train' or 'flatsearch run', or .pt2 files saved by"
        " torch.export.save",
        positional=True,
        many=True,
        metavar="MODEL",
    )
    data: str = same(RunOptions, "data", default=REQUIRED, group="options")
    test: bool = setting(
        False, Switch(), "read the test images too: their loss and accuracy, and the gap"
    )
    layers: str = setting(
        "all", Text(), "last, main, all, head (the linear classifier), or comma-separated names"
    )
    samples: int = setting(512, COUNT, "training images to use", metavar="N")
    image_size: int | None = same(
        RunSettings, "image_size", group="options", unset="what the models take"
    )
    seed: int = same(RunSettings, "seed", help="seed of the data split", group="options")
    validation_fraction: float = same(RunSettings, "validation_fraction", group="options")
    data_root: str = same(RunOptions, "data_root")
    data_memory: int | None = same(RunOptions, "data_memory", group="options")
    device: str = same(RunOptions, "device")


def _compare(options: _Options) -> None:
    from flatsearch.analysis.comparison import compare_networks
    from flatsearch.device import resolve_device
    from flatsearch.reports.terminal import print_comparison

    contenders = _contenders(options, resolve_device(options.device))
    found = compare_networks(contenders, layers=layers_of(options.layers))
    if options.json:
        print_json({"data": options.data, **found.to_dict()})
        return
    print_comparison(found, make_console())


def _contenders(options: _Options, device: torch.device) -> dict[str, Contender]:
    """Return the models with the images; all must take the same ones."""
    from flatsearch.analysis.comparison import Contender, require_different, trained_elsewhere
    from flatsearch.cli.measure_input import load_with_images
    from flatsearch.data.loading import load_data
    from flatsearch.errors import UsageError
    from flatsearch.training.evaluation import EVALUATION_BATCH

    require_different(options.models)
    known: dict[int | None, ImageData] = {}

    def images(size: int | None) -> ImageData:
        if size not in known:
            known[size] = load_data(
                options.data,
                image_size=size,
                probe_size=options.samples,
                seed=options.seed,
                validation_fraction=options.validation_fraction,
                root=options.data_root,
                memory=options.data_memory,
            ).to(device)
            options.note(known[size])
        return known[size]

    contenders: dict[str, Contender] = {}
    sizes: dict[str, int] = {}
    for model in options.models:
        loaded = load_with_images(
            model,
            images,
            image_size=options.image_size,
            preprocessing=options.preprocessing,
            seed=options.seed,
        )
        if loaded.note:
            options.note(f"{model}: {loaded.note}")
        data, prepare = loaded.images, loaded.prepare
        if loaded.card is not None:
            loaded.card.require_fit(model, data)
        sizes[model] = data.image_size
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
            raise UsageError(f"the models take images of different sizes: {listed} pixels a side")
        test = map(prepare, data.test.parts(EVALUATION_BATCH)) if options.test else None
        note = trained_elsewhere(model, loaded.card, data)
        contenders[model] = Contender(loaded.network.to(device), prepare(data.probe), test, note)
    return contenders


COMMAND = Command(
    "compare",
    "put trained models side by side",
    "Compare trained models on the same training images of the data: loss, accuracy and relative"
    " flatness by layer, with standard errors, and which differences are more than chance. With"
    " --test also on the test images.",
    (_Options,),
    _compare,
)
