"""`flatsearch train`, `export` and `predict`: from a study to a model in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.cli.options import (
    add_device,
    add_json,
    add_storage,
    load_for_reading,
    make_console,
    print_json,
    storage_option,
)

if TYPE_CHECKING:
    import argparse

    import optuna

    from flatsearch.analysis.selection import Choice
    from flatsearch.retrain.training import FinalTraining

__all__ = ["add_train"]

MODELS = "flatsearch-models"


def add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", help="its name (default: the only study)")
    parser.add_argument(
        "--trial", default="best", metavar="N",
        help="a trial's number, or best: of several objectives the knee of the front (default:"
        " %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--prefer", metavar="OBJECTIVE", help="as best, the one that is best in this objective"
    )
    add_storage(parser)


def add_train(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch train`."""
    parser.description = (
        "Train the architecture of a trial to the end, on training and validation images, with"
        " label smoothing and averaged weights; then read the test split once. It can be stopped"
        " at any time, and goes on after its last epoch."
    )
    add_choice(parser)
    parser.add_argument(
        "--epochs", type=int, metavar="E", help="per network (default: five times the search's)"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="K", help="networks to train (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", help=f"where to (default: {MODELS}/STUDY-trial-N)")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument("--data", metavar="DATA", help="where the study's images are (default: as"
                        " the search was told)")  # fmt: skip
    parser.add_argument("--data-root", metavar="DIR", help="of torchvision data sets")
    parser.add_argument("--space", help="the study's search space, if it is somewhere else now")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(call=_train, kept="the last epoch's checkpoint is kept")


def choose_trial(options: argparse.Namespace) -> tuple[optuna.Study, Choice]:
    from flatsearch.analysis.selection import choose
    from flatsearch.analysis.summary import summarise

    study = load_for_reading(options)
    return study, choose(summarise(study, statistics=False), options.trial, options.prefer)


def _train(options: argparse.Namespace) -> None:
    import dataclasses
    import sys

    from rich.console import Console

    from flatsearch.data.loading import load_data
    from flatsearch.device import resolve_device
    from flatsearch.record import StudyRecord
    from flatsearch.reports.progress import epochs_bar
    from flatsearch.reports.terminal import print_final
    from flatsearch.retrain.training import default_epochs, retrain

    device = resolve_device(options.device)
    study, choice = choose_trial(options)
    known = StudyRecord(study)
    settings, run = known.run_settings(), known.run or {}
    data = load_data(
        options.data or run.get("data") or (known.settings or {})["data"],
        image_size=settings.image_size,
        validation_fraction=settings.validation_fraction,
        probe_size=settings.probe_size,
        seed=settings.seed,
        root=options.data_root or run.get("data_root") or "data",
    ).to(device)
    number = choice.trial.number
    folder = Path(options.out or f"{MODELS}/{study.study_name}-trial-{number}")
    print(f"trial {number}: {choice.reason}", file=sys.stderr)
    epochs = options.epochs or default_epochs(settings)
    with epochs_bar(Console(stderr=True), epochs) as show:
        final = retrain(
            study, choice, data, folder,
            space=options.space, epochs=options.epochs, seeds=options.seeds, force=options.force,
            on_epoch=show,
        )  # fmt: skip
    if options.json:
        print_json({"study": study.study_name, "model": final.model, **dataclasses.asdict(final)})
        return
    console = make_console()
    print_final(final, console)
    console.print(_after_training(study, final, options), highlight=False, markup=False)


def _after_training(study: optuna.Study, final: FinalTraining, options: argparse.Namespace) -> str:
    storage = storage_option(options)
    return (
        f"next:\n  flatsearch export {study.study_name} --trial {final.trial}{storage}\n"
        f"  flatsearch predict {final.model} IMAGE.png"
    )
