"""`flatsearch train`."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Printing, TrialOptions, make_console, print_json, storage_option
from flatsearch.errors import COUNT
from flatsearch.settings import RunOptions, same, setting
from flatsearch.settings.values import Switch, Text

__all__ = ["COMMAND"]

_MODELS = "flatsearch-models"


@dataclass(frozen=True, kw_only=True)
class _Options(TrialOptions, Printing):
    """What `flatsearch train` is told."""

    epochs: int | None = setting(
        None, COUNT, "epochs per network", unset="five times the search's", metavar="E"
    )
    seeds: int = setting(1, COUNT, "networks to train", metavar="K")
    out: str | None = setting(
        None, Text(), "where to", unset=f"{_MODELS}/STUDY-trial-N", metavar="DIR"
    )
    force: bool = setting(False, Switch(), "overwrite what is there")
    data: str | None = same(
        RunOptions,
        "data",
        default=None,
        help="where the study's images are",
        unset="as the search was told",
    )
    data_root: str | None = same(
        RunOptions, "data_root", default=None, unset="as the search was told"
    )
    space: str | None = same(
        RunOptions, "space", default=None, help="the study's search space, if it has moved"
    )
    device: str = same(RunOptions, "device")


def _train(options: _Options) -> None:
    from rich.console import Console

    from flatsearch.device import resolve_device
    from flatsearch.reports.progress import epochs_bar
    from flatsearch.reports.terminal import print_final
    from flatsearch.retrain.training import default_epochs, load_images, retrain

    device = resolve_device(options.device)
    study, choice = options.choose()
    data = load_images(study, data=options.data, root=options.data_root).to(device)
    name = f"{study.study_name}-trial-{choice.trial.number}"
    print(f"trial {choice.trial.number}: {choice.reason}", file=sys.stderr)
    epochs = options.epochs or default_epochs(study)
    with epochs_bar(Console(stderr=True), epochs) as show:
        final = retrain(
            study,
            choice,
            data,
            Path(options.out or f"{_MODELS}/{name}"),
            space=options.space,
            epochs=epochs,
            seeds=options.seeds,
            force=options.force,
            on_epoch=show,
        )
    if options.json:
        print_json({"study": study.study_name, "model": final.model, **dataclasses.asdict(final)})
        return
    console = make_console()
    print_final(final, console)
    trial = f"{study.study_name} --trial {final.trial}{storage_option(options.storage)}"
    steps = f"flatsearch export {trial}\n  flatsearch predict {final.model} IMAGE.png"
    console.print(f"next:\n  {steps}", highlight=False, markup=False)


COMMAND = Command(
    "train",
    "train a trial's architecture to the end",
    "Train the architecture of a trial to the end, on training and validation images, with label"
    " smoothing and averaged weights; then read the test split once. It can be stopped at any time,"
    " and goes on after its last epoch.",
    (_Options,),
    _train,
    kept="the last epoch's checkpoint is kept",
)
