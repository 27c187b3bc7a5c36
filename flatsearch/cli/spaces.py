"""`flatsearch spaces`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsearch.cli.options import (
    add_json,
    print_json,
)

if TYPE_CHECKING:
    import argparse

__all__ = ["add_spaces"]


def add_spaces(parser: argparse.ArgumentParser) -> None:
    """Define `flatsearch spaces`."""
    parser.description = "List the installed search spaces, or show one with its parameters."
    parser.add_argument("name", nargs="?", help="a name, pkg.mod:Class or ./file.py:Class")
    add_json(parser)
    parser.set_defaults(call=_spaces)


def _spaces(options: argparse.Namespace) -> None:
    import optuna

    from flatsearch.reports.text import in_words
    from flatsearch.spaces.describe import describe_space
    from flatsearch.spaces.registry import load_space, space_names

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
