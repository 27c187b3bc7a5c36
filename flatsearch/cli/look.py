"""`flatsearch spaces`, `report`, `dashboard` and `measure`: what is there to be seen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.cli.options import (
    add_artifacts,
    add_data,
    add_device,
    add_json,
    add_storage,
    artifacts_of,
    load_for_reading,
    make_console,
    print_json,
)
from flatsearch.config import RunSettings
from flatsearch.errors import UsageError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_dashboard", "add_measure", "add_report", "add_spaces"]


def add_spaces(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch spaces`."""
    parser.description = "List the installed search spaces, or show one with its parameters."
    parser.add_argument("name", nargs="?", help="a name, pkg.mod:Class or ./file.py:Class")
    add_json(parser)
    parser.set_defaults(call=_spaces)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch report`."""
    parser.description = "Show a study: trials, Pareto front, what the early signals were worth."
    parser.add_argument("study", nargs="?", help="its name (default: the only study)")
    add_storage(parser)
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write one page with tables and figures, to be opened offline",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the page")
    add_json(parser)
    parser.set_defaults(call=_report)


def add_dashboard(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch dashboard`."""
    parser.description = (
        "Write notes and figures into a study, start optuna-dashboard with its storage and"
        " artifacts, and print the address."
    )
    parser.add_argument("study", nargs="?", help="its name (default: the only study)")
    add_storage(parser)
    add_artifacts(parser)
    parser.add_argument("--host", default="localhost", help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    parser.set_defaults(call=_dashboard, kept="the dashboard has stopped")


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


def _spaces(options: argparse.Namespace) -> None:
    import optuna

    from flatsearch.registry import load_space, space_names
    from flatsearch.spacecard import describe_space
    from flatsearch.terminal import in_words

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)

    if options.name is None:
        names = {name: _first_line(load_space(name)) for name in space_names()}
        if options.json:
            print_json({"spaces": names})
            return
        for name, text in names.items():
            print(f"{name:20s} {text}")
        return
    card = describe_space(load_space(options.name))
    if options.json:
        print_json({"space": options.name, **card})
        return
    print(f"{options.name}: {_first_line(load_space(options.name))}\n")
    for parameter, text in card["parameters"].items():
        print(f"  {parameter:16s} {text}")
    sample, low, high = (card[key] for key in ("samples", "smallest", "largest"))
    count = card["architectures"]
    estimate = card["settings_estimate"]
    number = f"{count:,}" if count is not None else "infinitely many settings"
    if estimate is not None:
        number = f"too many to count; about {estimate:.2g} settings"
    print(f"\narchitectures: {number}")
    print(f"example: {in_words(card['example'])}\n")
    for line in card["drawing"]:
        print(f"  {line}")
    print(f"\nof {sample} random architectures (32x32, 3 channels, 10 classes):")
    for what, entry in (("smallest", low), ("largest", high)):
        print(
            f"  {what:9s} {entry['parameters']:,} parameters, {entry['flops']:,} FLOPs,"
            f" {entry['memory']:,} bytes of activations"
        )


def _first_line(space: object) -> str:
    return (type(space).__doc__ or "").strip().split("\n")[0]


def _report(options: argparse.Namespace) -> None:
    from flatsearch.summary import summarise
    from flatsearch.terminal import print_summary

    summary = summarise(load_for_reading(options))
    if options.html is not None:
        from flatsearch.page import write_page

        write_page(summary, Path(options.html), force=options.force)
        print(f"written: {options.html}", file=sys.stderr)
    if options.json:
        print_json(summary.to_dict())
    else:
        print_summary(summary, make_console(), all_trials=True)


def _dashboard(options: argparse.Namespace) -> None:
    from flatsearch.dashboard import Publisher, require, serve

    require()
    if not 0 <= options.port < 2**16:
        raise UsageError(f"--port must be from 0 to {2**16 - 1} but got {options.port}")
    study = load_for_reading(options)
    folder = artifacts_of(options, study)
    found = Path(folder).is_dir()
    if options.artifacts is not None and not found:
        raise UsageError(f"--artifacts {folder!r} is not a folder")
    if not found and folder != "none":
        _note(f"the trials' files are not in {folder!r}; --artifacts DIR says where they are")
    # A storage that can only be read is shown as it is.
    Publisher(_note).now(study)
    serve(
        study.study_name, options.storage, folder if found else None, options.host, options.port,
        lambda text: print(f"{text}\nCtrl-C ends it", flush=True),
    )  # fmt: skip


def _note(text: str) -> None:
    print(f"flatsearch dashboard: {text}", file=sys.stderr)


def _measure(options: argparse.Namespace) -> None:
    if options.samples < 1:
        raise UsageError(f"--samples must be at least 1 but got {options.samples}")
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1 but got {options.batch_size}")
    import torch

    from flatsearch.flatness import relative_flatness
    from flatsearch.measuring import load_for_measuring
    from flatsearch.objective import resolve_device
    from flatsearch.terminal import print_flatness

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

        fields = {**dataclasses.asdict(result), "model": options.model, "data": options.data}
        fields["note"] = note
        print_json(fields)
        return
    print_flatness(result, make_console())
    if note:
        print(note)
