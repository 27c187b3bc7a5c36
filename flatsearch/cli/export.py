"""`flatsearch export`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Printing, TrialOptions, as_told, print_json
from flatsearch.settings import setting
from flatsearch.settings.values import Switch, Text

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(TrialOptions, Printing):
    """What `flatsearch export` is told."""

    format: str | None = setting(
        None, Text(), "pt2, onnx or state_dict", unset="by --out's ending, or pt2", metavar="F"
    )
    out: str | None = setting(
        None, Text(), "where to", unset="STUDY-trial-N.ENDING", metavar="FILE"
    )
    model: str | None = setting(None, Text(), "a model file, instead of a study's", metavar="FILE")
    artifacts: str | None = as_told("artifacts", help="where the search saved its models")
    force: bool = setting(False, Switch(), "overwrite what is there")


def _export(options: _Options) -> None:
    import logging

    from flatsearch.export.checkpoint import load_model
    from flatsearch.export.formats import FORMATS, choose_format, export_model

    kind = choose_format(options.format, options.out)
    chosen = _chosen(options)
    out = Path(options.out or f"{chosen.name}{FORMATS[kind]}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model, card = load_model(chosen.file)
    chosen.check(card)
    difference = export_model(model, card, kind, out, force=options.force)
    size = out.stat().st_size
    if options.json:
        fields: dict[str, Any] = {"file": str(out), "format": kind, "model": str(chosen.file)}
        print_json({**fields, "what": chosen.what, "max_difference": difference, "size": size})
        return
    print(chosen.what)
    print(
        f"written: {out} ({size:,} bytes); its logits differ from the model's by at most"
        f" {difference:.1e}"
    )
    print(f"next:\n  flatsearch predict {shlex.quote(str(out))} IMAGE.png")


def _chosen(options: _Options) -> Any:
    """Return the model to export."""
    from flatsearch.analysis.selection import SavedModel, saved_model
    from flatsearch.search.storage import artifacts_of

    if options.model is not None:
        file = Path(options.model)
        return SavedModel(file, file.stem, "the given model")
    study = options.load()
    choice = _choice(study, options)
    return saved_model(study, choice, Path(options.artifacts or artifacts_of(study)))


def _choice(study: Any, options: _Options) -> Any:
    """Return the trial of the last final training, unless another is asked for."""
    import dataclasses

    from flatsearch.analysis.selection import choose
    from flatsearch.analysis.summary import summarise
    from flatsearch.record import StudyRecord

    summary = summarise(study, statistics=False)
    tests = StudyRecord(study).tests
    asked = options.trial != "best" or options.prefer is not None
    if asked or not tests or not Path(tests[-1].file).exists():
        return choose(summary, options.trial, options.prefer)
    return dataclasses.replace(choose(summary, str(tests[-1].trial)), reason="trained last")


COMMAND = Command(
    "export",
    "export a trained model",
    "Export a trained model: that of the last 'flatsearch train', or of a trial: of its final"
    " training if there is one, else of the search. The file is checked to compute the same. pt2"
    " and onnx hold normalisation and class names, and need neither flatsearch nor the search"
    " space.",
    (_Options,),
    _export,
)
