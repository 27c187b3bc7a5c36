"""What the command line prints: tables, the Pareto front, progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.bar import Bar
from rich.markup import escape
from rich.table import Table

from flatsearch.reports import tables
from flatsearch.reports.comparison import EXPLANATION, comparison_tables
from flatsearch.reports.verdicts import (
    NO_FRONT,
    front_meaning,
    headlines,
    same_in_all,
    shipped,
    tested,
    tested_before,
    verdicts,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from flatsearch.analysis.comparison import Comparison
    from flatsearch.analysis.summary import StudySummary
    from flatsearch.flatness.result import Flatness, FlatnessResult
    from flatsearch.retrain.result import FinalTraining

__all__ = ["print_comparison", "print_final", "print_flatness", "print_summary"]

_MOST_ROWS = 10
_BAR_WIDTH = 24
# Characters on a line with which there is room for bars.
_WIDE = 110
# Columns that a narrow terminal does without, until the words in the last one have room enough;
# where they have less than the least, rows become blocks.
_OPTIONAL = ("flops", "time", "loss", "parameters")
_ENOUGH_WORDS = 44
_LEAST_WORDS = 28
# A measured layer that may be wrong by more gets a line of its own.
_MOST_ROUNDING = 1e-3


def _empty(title: str, heads: Sequence[str]) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        # A short title is not broken over a narrow table.
        min_width=len(title) if len(title) < _ENOUGH_WORDS else None,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, head in enumerate(heads):
        last = index == len(heads) - 1
        table.add_column(
            head, justify="left" if last else "right", no_wrap=not last, overflow="fold"
        )
    return table


def _widths(table: tables.Table) -> list[int]:
    return [max(map(len, column)) + 2 for column in zip(table.heads, *table.rows, strict=True)]


def _rendered(table: tables.Table, width: int) -> Table:
    """Return a table of rich without what a narrow terminal has no room for.

    Where its columns still do not fit they become lines, a block for every row.
    """
    kept, widths = list(range(len(table.heads))), _widths(table)
    for name in _OPTIONAL:
        room = width - sum(widths[i] for i in kept[:-1])
        if room < min(_ENOUGH_WORDS, widths[-1]) and name in table.heads:
            kept.remove(table.heads.index(name))
    if sum(widths[i] for i in kept[:-1]) + min(_LEAST_WORDS, widths[-1]) > width:
        return _blocks(table)
    rendered = _empty(escape(table.title), [escape(table.heads[i]) for i in kept])
    for row in table.rows:
        rendered.add_row(*(escape(row[i]) for i in kept))
    return rendered


def _blocks(table: tables.Table) -> Table:
    blocks = _empty(escape(table.title), ["", ""])
    blocks.show_header = False
    for row in table.rows:
        for head, cell in zip(table.heads, row, strict=True):
            if cell not in {"", "-"}:
                blocks.add_row(escape(head), escape(cell))
        blocks.add_section()
    return blocks


def print_summary(summary: StudySummary, console: Console, *, all_trials: bool = False) -> None:
    """Print the best trials, or all, the front and what the signals and pruning did."""
    counts = summary.counted() or "no trials"
    console.print(f"\nstudy [bold]{summary.name}[/]: {counts}", highlight=False)
    for line in headlines(summary):
        console.print(line, style="bold", highlight=False, markup=False)
    trials = tables.all_trials(summary) if all_trials else tables.best_trials(summary, _MOST_ROWS)
    if trials.rows:
        console.print(_rendered(trials, console.width))
    if summary.ranked() and not summary.front:
        console.print(NO_FRONT, highlight=False)
    if len(summary.metric_names) > 1 and summary.front:
        console.print(_rendered(tables.front(summary), console.width))
        console.print(front_meaning(summary), style="dim", highlight=False, markup=False)
    for sentence in filter(None, (same_in_all(summary), summary.chosen())):
        console.print(sentence, highlight=False, markup=False)
    for sentence in verdicts(summary):
        console.print(sentence, style="dim", highlight=False, markup=False)
    if all_trials and summary.correlations:
        console.print(_rendered(tables.correlations(summary), console.width))


def print_final(final: FinalTraining, console: Console) -> None:
    """Print a final training: test accuracy with interval, confusions, calibration, flatness."""
    console.print(f"\n{tested(final)}", highlight=False, markup=False)
    if which := shipped(final):
        console.print(which, highlight=False, markup=False)
    console.print(_rendered(tables.seeds(final), console.width))
    console.print("flatness and noise loss of one convolution; ±: standard errors", style="dim")
    matrix = tables.confusions(final)
    if sum(_widths(matrix)) > console.width:
        matrix = tables.confusions(final, most_classes=0)
    console.print(_rendered(matrix, console.width))
    for network in final.diverged:
        console.print(f"left out: {network}", highlight=False, markup=False)
    if final.earlier:
        console.print(tested_before(final), highlight=False, markup=False)


def print_comparison(found: Comparison, console: Console) -> None:
    """Print networks side by side: the models, their layers, their differences."""
    for table in comparison_tables(found):
        console.print(_rendered(table, console.width))
    for note in found.notes:
        console.print(note, highlight=False, markup=False)
    console.print(EXPLANATION, style="dim", highlight=False, markup=False)


def print_flatness(result: FlatnessResult, console: Console) -> None:
    """Print a measurement, one row per layer, with bars where there are several."""
    several = len(result.layers) > 1
    # Three columns of numbers and names take the rest.
    bars = several and console.width >= _WIDE
    variant = ", normalised inputs" if result.normalize else ""
    if result.classes is not None:
        variant += f", estimated from {result.classes} classes a sample"
    table = _empty(
        f"relative flatness ({result.kind}{variant}, {result.n_samples} samples,"
        f" loss {result.loss:.4g}, accuracy {result.accuracy:.4f})",
        ["relative flatness", "Hessian trace", "noise loss"]
        + (["", "layer"] if bars else ["layer"]),
    )
    largest = max(abs(layer.relative_flatness) for layer in result.layers.values())
    for name, layer in result.layers.items():
        bar = Bar(largest or 1.0, 0, abs(layer.relative_flatness), width=_BAR_WIDTH)
        table.add_row(*_numbers(layer), *([bar] if bars else []), name)
    if several:
        table.add_section()
        table.add_row(*_numbers(result), *([""] if bars else []), "all of them")
    console.print(table)
    for name, layer in result.layers.items():
        if layer.rounding > _MOST_ROUNDING:
            console.print(
                f"{name}: its numbers may be wrong by {layer.rounding:.0%}, lost to rounding"
            )
    console.print(
        "noise loss: by how many nats the loss is expected to rise under noise of 10% on every"
        " filter; ±: standard errors",
        style="dim",
    )


def _numbers(measured: Flatness) -> tuple[str, str, str]:
    return (
        f"{measured.relative_flatness:.6g} ± {measured.standard_error:.2g}",
        f"{measured.hessian_trace:.6g}",
        f"{measured.noise_loss():.4g} ± {measured.noise_loss_error():.2g}",
    )
