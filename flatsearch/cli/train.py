"""`flatsearch train`."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.cli.command import Command
from flatsearch.cli.shared import (
    Printing,
    Quiet,
    TrialOptions,
    as_told,
    make_console,
    print_json,
    storage_option,
)
from flatsearch.errors import COUNT
from flatsearch.settings import RunOptions, RunSettings, file_name, same, setting
from flatsearch.settings.values import Switch, Text

if TYPE_CHECKING:
    import optuna

    from flatsearch.analysis.selection import Choice

__all__ = ["COMMAND"]

_MODELS = "flatsearch-models"


@dataclass(frozen=True, kw_only=True)
class _Options(TrialOptions, Printing, Quiet):
    """What `flatsearch train` is told."""

    epochs: int | None = setting(
        None, COUNT, "epochs per network", unset="five times the search's", metavar="E"
    )
    trials: str | None = setting(
        None,
        Text(),
        "numbers of several trials, comma-separated, in the place of --trial: all are trained, and"
        " the best network is the model",
        metavar="A,B,C",
    )
    seeds: int = setting(1, COUNT, "networks to train of every trial", metavar="K")
    hold_out: bool | None = setting(
        None,
        Switch(),
        "keep the validation images out of the training; the networks are ranked by their loss on"
        " them",
        unset="where there are several networks; --no-hold-out trains on them, and ranks nothing",
    )
    out: str | None = setting(
        None, Text(), "where to", unset=f"{_MODELS}/STUDY-trial-N, -trials-A-B-C", metavar="DIR"
    )
    force: bool = setting(False, Switch(), "overwrite what is there")
    data: str | None = as_told("data", help="where the study's images are")
    data_root: str | None = as_told("data_root")
    data_memory: int | None = same(RunOptions, "data_memory")
    space: str | None = same(
        RunOptions, "space", default=None, help="the study's search space, if it has moved"
    )
    device: str = same(RunOptions, "device")


def _train(options: _Options) -> None:
    from flatsearch.device import resolve_device
    from flatsearch.reports.progress import epochs_bar
    from flatsearch.reports.terminal import print_final
    from flatsearch.retrain.training import default_epochs, load_images, retrain

    device = resolve_device(options.device)
    study, choices = _choices(options)
    data = load_images(
        study, data=options.data, root=options.data_root, memory=options.data_memory
    ).to(device)
    options.note(data)
    numbers = [str(choice.trial.number) for choice in choices]
    kind = "trial" if len(numbers) == 1 else "trials"
    name = "-".join([file_name(study.study_name), kind, *numbers])
    for choice in choices:
        options.note(f"trial {choice.trial.number}: {choice.reason}")
    epochs = options.epochs or default_epochs(study)
    with epochs_bar(options.console(), epochs) as show:
        final = retrain(
            study,
            choices,
            data,
            Path(options.out or f"{_MODELS}/{name}"),
            space=options.space,
            epochs=epochs,
            seeds=options.seeds,
            hold_out=options.hold_out,
            force=options.force,
            on_epoch=show,
        )
    if options.json:
        print_json({"study": study.study_name, "model": final.model, **dataclasses.asdict(final)})
        return
    console = make_console()
    print_final(final, console)
    study_name, model = shlex.quote(study.study_name), shlex.quote(final.model)
    trial = f"{study_name} --trial {final.trial}{storage_option(options.storage)}"
    steps = f"flatsearch export {trial}\n  flatsearch predict {model} IMAGE.png"
    if len(final.seeds) > 1:
        files = shlex.join(seed.file for seed in final.seeds[:2])
        steps += f"\n  flatsearch compare {files} --data {shlex.quote(options.data or data.name)}"
        steps += _split_options(study)
    console.print(f"next:\n  {steps}", highlight=False, markup=False)


def _split_options(study: optuna.Study) -> str:
    """Return what a suggested command needs to split the images as the study did."""
    from flatsearch.record import StudyRecord

    settings = StudyRecord(study).run_settings()
    known = RunSettings.settings()
    return "".join(
        f" {known[name].option(name)} {getattr(settings, name)}"
        for name in ("seed", "validation_fraction")
        if getattr(settings, name) != known[name].default
    )


def _choices(options: _Options) -> tuple[optuna.Study, list[Choice]]:
    """Return the study, and the trials to train."""
    from flatsearch.analysis.selection import choose
    from flatsearch.analysis.summary import summarise
    from flatsearch.errors import UsageError

    if options.trials is None:
        study, choice = options.choose()
        return study, [choice]
    if options.trial != "best" or options.prefer is not None:
        raise UsageError("`trials` names all trials to train: leave `trial` and `prefer` out")
    study = options.load()
    summary = summarise(study, statistics=False)
    return study, [choose(summary, number.strip()) for number in options.trials.split(",")]


COMMAND = Command(
    "train",
    "train a trial's architecture to the end",
    "Train the architecture of a trial to the end, on training and validation images, with label"
    " smoothing and averaged weights; then read the test split once. Of several networks (--seeds,"
    " --trials) the one with the lowest loss on the validation images, which are held out then, is"
    " the model. It can be stopped at any time, and goes on after its last epoch.",
    (_Options,),
    _train,
    kept="the last epoch's checkpoint is kept",
)
