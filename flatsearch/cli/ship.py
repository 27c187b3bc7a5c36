"""`flatsearch train`, `export` and `predict`: from a study to a model in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.cli.options import (
    add_artifacts,
    add_device,
    add_json,
    add_storage,
    artifacts_of,
    load_for_reading,
    make_console,
    print_json,
    storage_option,
)
from flatsearch.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import argparse

    import optuna

    from flatsearch.choose import Choice
    from flatsearch.retrain import FinalTraining

__all__ = ["add_export", "add_predict", "add_train"]

MODELS = "flatsearch-models"


def _add_choice(parser: argparse.ArgumentParser) -> None:
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
    _add_choice(parser)
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


def add_export(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch export`."""
    parser.description = (
        "Export a trained model: the one of 'flatsearch train' if there is one, else the one of the"
        " search. The file is checked to compute the same. pt2 and onnx hold normalisation and"
        " class names, and need neither flatsearch nor the search space."
    )
    _add_choice(parser)
    parser.add_argument(
        "--format", metavar="F", help="pt2, onnx or state_dict (default: by --out's ending, or pt2)"
    )
    parser.add_argument("--out", metavar="FILE", help="where to (default: STUDY-trial-N.ENDING)")
    parser.add_argument("--model", metavar="FILE", help="a model file, instead of a study's")
    add_artifacts(parser)
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    add_json(parser)
    parser.set_defaults(call=_export)


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


def _choose(options: argparse.Namespace) -> tuple[optuna.Study, Choice]:
    from flatsearch.choose import choose
    from flatsearch.summary import summarise

    study = load_for_reading(options)
    return study, choose(summarise(study, worth=False), options.trial, options.prefer)


def _train(options: argparse.Namespace) -> None:
    import dataclasses
    import sys

    from rich.console import Console

    from flatsearch import record
    from flatsearch.data import load_data
    from flatsearch.objective import resolve_device
    from flatsearch.progress import epochs_bar
    from flatsearch.retrain import default_epochs, retrain, settings_of
    from flatsearch.terminal import print_final

    device = resolve_device(options.device)
    study, choice = _choose(options)
    settings, stored = settings_of(study)
    run = record.read_run(study) or {}
    data = load_data(
        options.data or run.get("data") or stored["data"],
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


def _trained_model(options: argparse.Namespace) -> tuple[Path, str, str, str | None]:
    """Return the model file to export, a name for it, what it is, and its architecture."""
    from flatsearch import record

    if options.model is not None:
        return Path(options.model), Path(options.model).stem, "the given model", None
    study, choice = _choose(options)
    number = choice.trial.number
    name = f"{study.study_name}-trial-{number}"
    what = f"trial {number} ({choice.reason})"
    found = choice.trial.architecture
    architecture = None if found is None else found.to_json()
    trained = record.read_trained(study, number)
    if trained is not None and Path(trained).exists():
        return Path(trained), name, f"{what}, after its final training", architecture
    if choice.trial.artifact is None:
        gone = "" if trained is None else f" (that of its final training, {trained!r}, is missing)"
        raise UsageError(
            f"trial {number} has no saved model{gone}: train it with 'flatsearch train"
            f" {study.study_name} --trial {number}'"
        )
    file = Path(artifacts_of(options, study)) / choice.trial.artifact
    if not file.exists():
        raise UsageError(
            f"the saved model of trial {number}, {str(file)!r}, is missing; give --artifacts, or"
            f" train it with 'flatsearch train {study.study_name} --trial {number}'"
        )
    note = "as the search left it; 'flatsearch train' makes a better one"
    if trained is not None:
        note = f"as the search left it: the final training's {trained!r} is missing"
    return file, name, f"{what}, {note}", architecture


def _export(options: argparse.Namespace) -> None:
    import logging

    from flatsearch.export import load_model
    from flatsearch.formats import FORMATS, export_model

    kind = options.format
    if kind is None:
        by_ending = {ending: name for name, ending in FORMATS.items()}
        ending = Path(options.out).suffix if options.out else ".pt2"
        if ending not in by_ending:
            raise UsageError(
                f"--out {options.out!r} has no known ending ({', '.join(by_ending)}); give --format"
            )
        kind = by_ending[ending]
    if kind not in FORMATS:
        raise UsageError(unknown_name("format", kind, FORMATS))
    file, name, what, wanted = _trained_model(options)
    out = Path(options.out or f"{name}{FORMATS[kind]}")
    if out.suffix != FORMATS[kind]:
        raise UsageError(f"a {kind} file ends in {FORMATS[kind]}, but --out is {str(out)!r}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model, card = load_model(file)
    if wanted is not None and card.architecture != wanted:
        raise UsageError(
            f"{str(file)!r} has another architecture than the trial: its folder was trained into"
            " again; train the trial with another --out, or name the file with --model"
        )
    difference = export_model(model, card, kind, out, force=options.force)
    fields: dict[str, Any] = {
        "file": str(out), "format": kind, "model": str(file), "what": what,
        "max_difference": difference,
        "size": out.stat().st_size,
    }  # fmt: skip
    if options.json:
        print_json(fields)
        return
    print(f"{what}")
    print(
        f"written: {out} ({out.stat().st_size:,} bytes); its logits differ from the model's by"
        f" at most {difference:.1e}"
    )
    print(f"next:\n  flatsearch predict {out} IMAGE.png")


def _predict(options: argparse.Namespace) -> None:
    from flatsearch.classifier import load

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
