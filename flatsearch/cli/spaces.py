"""`flatsearch spaces`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flatsearch.cli.command import Command
from flatsearch.cli.shared import Printing, print_json
from flatsearch.settings import setting
from flatsearch.settings.values import Text

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(Printing):
    """What `flatsearch spaces` is told."""

    name: str | None = setting(
        None, Text(), "a name, pkg.mod:Class or ./file.py:Class", positional=True
    )


def _spaces(options: _Options) -> None:
    import optuna

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
    space = load_space(options.name)
    card = describe_space(space)
    if options.json:
        print_json({"space": options.name, **card})
    else:
        _print_card(f"{options.name}: {_first_line(space)}", card)


def _print_card(title: str, card: dict[str, Any]) -> None:
    from flatsearch.spaces.words import short_form

    print(f"{title}\n")
    for parameter, text in card["parameters"].items():
        print(f"  {parameter:16s} {text}")
    count, estimate = card["architectures"], card["settings_estimate"]
    number = f"{count:,}" if count is not None else "infinitely many settings"
    if estimate is not None:
        number = f"too many to count; about {estimate:.2g} settings"
    print(f"\narchitectures: {number}")
    print(f"example: {short_form(card['example'])}\n")
    for line in card["drawing"]:
        print(f"  {line}")
    print(f"\nof {card['samples']} random architectures (32x32, 3 channels, 10 classes):")
    for what in ("smallest", "largest"):
        entry = card[what]
        print(
            f"  {what:9s} {entry['parameters']:,} parameters, {entry['flops']:,} FLOPs,"
            f" {entry['memory']:,} bytes of activations"
        )


def _first_line(space: object) -> str:
    return (type(space).__doc__ or "").strip().split("\n")[0]


COMMAND = Command(
    "spaces",
    "list the search spaces, or show one",
    "List the installed search spaces, or show one with its parameters.",
    (_Options,),
    _spaces,
)
