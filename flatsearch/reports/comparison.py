"""Tables of trained networks side by side."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from flatsearch.reports.tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flatsearch.analysis.comparison import Comparison, Difference
    from flatsearch.analysis.paired import Estimate

__all__ = ["EXPLANATION", "comparison_tables"]

EXPLANATION = (
    "±: standard errors over the images; [..]: 95% intervals; noise loss: by how many nats the loss"
    " is expected to rise under noise of 10% on every filter; gap: how much worse on test images;"
    " *: p below 0.05. What is significant holds for these networks on other images of the kind,"
    " not for other trainings of their architectures."
)
_LEVEL = 0.05
_WORDS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "relative_flatness": "relative flatness",
    "relative_flatness_normalized": "input-normalised",
    "noise_loss": "noise loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    "loss_gap": "loss gap",
    "accuracy_gap": "accuracy gap",
}


def comparison_tables(found: Comparison) -> list[Table]:
    """Return the tables of a comparison: the models, their layers, their differences."""
    names = _short_names([model.name for model in found.models])
    flatness = tuple(next(iter(found.models[0].layers.values())))
    title = f"Means of {found.n_images} training images"
    tables = [_models(found, names, title, ("loss", "accuracy", *flatness), sizes=True)]
    if found.n_test is not None:
        title = f"Means of {found.n_test} test images"
        quantities = ("test_loss", "test_accuracy", "loss_gap", "accuracy_gap")
        tables.append(_models(found, names, title, quantities))
    rows = tuple(
        (*(numbers[quantity].text for quantity in flatness), layer, names[model.name])
        for model in found.models
        for layer, numbers in model.layers.items()
    )
    tables.append(Table("By layer", (*(_WORDS[q] for q in flatness), "layer", "model"), rows))
    if found.differences:
        tables.append(_differences(found.differences, names))
    return tables


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the ends of paths, as short as tells them apart.

    Example:
        >>> _short_names(["models/a/seed-0.pt", "models/b/seed-0.pt"])
        {'models/a/seed-0.pt': 'a/seed-0.pt', 'models/b/seed-0.pt': 'b/seed-0.pt'}
    """
    parts = [PurePath(name).parts for name in names]
    lengths = range(1, max(map(len, parts)) + 1)
    length = next(n for n in lengths if len({end[-n:] for end in parts}) == len(names))
    return {name: str(PurePath(*end[-length:])) for name, end in zip(names, parts, strict=True)}


def _models(
    found: Comparison,
    names: Mapping[str, str],
    title: str,
    quantities: Sequence[str],
    *,
    sizes: bool = False,
) -> Table:
    rows = tuple(
        (
            *((f"{model.parameters:,}",) if sizes else ()),
            *(_cell(quantity, model.estimates[quantity]) for quantity in quantities),
            names[model.name],
        )
        for model in found.models
    )
    heads = (*(("parameters",) if sizes else ()), *(_WORDS[q] for q in quantities), "model")
    return Table(title, heads, rows)


def _cell(quantity: str, found: Estimate) -> str:
    if quantity in {"accuracy", "test_accuracy"}:
        return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
    return found.text


def _differences(differences: Sequence[Difference], names: Mapping[str, str]) -> Table:
    """Return the differences, one a row."""
    rows = tuple(
        (
            f"{found.difference.value:+.4g}",
            f"[{found.difference.low:+.4g}, {found.difference.high:+.4g}]",
            f"{found.p_value:.2g}",
            "*" if found.p_value < _LEVEL else "",
            _WORDS[found.quantity],
            f"{names[found.first]} - {names[found.second]}",
        )
        for found in differences
    )
    return Table(
        f"Differences over the same images (p corrected for {len(differences)} comparisons by"
        " Holm's method)",
        ("difference", "95% interval", "p", "", "of", "models"),
        rows,
    )
