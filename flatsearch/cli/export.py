"""`flatsearch export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.cli.options import (
    add_artifacts,
    add_json,
    artifacts_of,
    print_json,
)
from flatsearch.cli.train import add_choice, choose_trial
from flatsearch.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import argparse


__all__ = ["add_export"]


def add_export(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch export`."""
    parser.description = (
        "Export a trained model: the one of 'flatsearch train' if there is one, else the one of the"
        " search. The file is checked to compute the same. pt2 and onnx hold normalisation and"
        " class names, and need neither flatsearch nor the search space."
    )
    add_choice(parser)
    parser.add_argument(
        "--format", metavar="F", help="pt2, onnx or state_dict (default: by --out's ending, or pt2)"
    )
    parser.add_argument("--out", metavar="FILE", help="where to (default: STUDY-trial-N.ENDING)")
    parser.add_argument("--model", metavar="FILE", help="a model file, instead of a study's")
    add_artifacts(parser)
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    add_json(parser)
    parser.set_defaults(call=_export)


def _trained_model(options: argparse.Namespace) -> tuple[Path, str, str, str | None]:
    """Return the model file to export, a name for it, what it is, and its architecture."""
    from flatsearch.record import StudyRecord

    if options.model is not None:
        return Path(options.model), Path(options.model).stem, "the given model", None
    study, choice = choose_trial(options)
    number = choice.trial.number
    name = f"{study.study_name}-trial-{number}"
    what = f"trial {number} ({choice.reason})"
    found = choice.trial.architecture
    architecture = None if found is None else found.to_json()
    trained = StudyRecord(study).trained(number)
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

    from flatsearch.export.checkpoint import load_model
    from flatsearch.export.formats import FORMATS, export_model

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
