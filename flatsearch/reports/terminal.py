"""What the command line prints: tables, the Pareto front, progress."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.bar import Bar
from rich.table import Table

from flatsearch.reports.text import describe, value
from flatsearch.reports.verdicts import verdicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.flatness import FlatnessResult
    from flatsearch.record.trial import TrialRecord
    from flatsearch.retrain.training import FinalTraining

__all__ = ["print_final", "print_flatness", "print_summary"]

_MOST_ROWS = 10
_BAR_WIDTH = 24
# A confusion matrix of more does not fit.
_MOST_CLASSES = 12


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for index, column in enumerate(columns):
        last = index == len(columns) - 1
        table.add_column(column, justify="left" if last else "right", no_wrap=not last)
    return table


def print_summary(summary: StudySummary, console: Console, *, all_trials: bool = False) -> None:
    """Print the trial table, the Pareto front and what the signals and pruning did.

    Args:
        summary: The study.
        console: Where to.
        all_trials: Every trial, not just the best ones.
    """
    counts = ", ".join(f"{n} {state.lower()}" for state, n in sorted(summary.counts.items()))
    console.print(f"\nstudy [bold]{summary.name}[/]: {counts or 'no trials'}", highlight=False)
    names = summary.metric_names
    sign = -1.0 if summary.directions[0] == "maximize" else 1.0
    complete = [trial for trial in summary.trials if trial.values is not None]
    if not all_trials:
        complete = [trial for trial in complete if not trial.duplicate]
    complete.sort(key=lambda trial: sign * (trial.values or (math.inf,))[0])
    others = [trial for trial in summary.trials if trial.values is None]
    listed = complete + others if all_trials else complete[:_MOST_ROWS]
    sizes = [
        name
        for name in ("loss", "parameters", "flops")
        if name not in names and any(name in trial.metrics for trial in listed)
    ]
    if listed:
        title = "trials" if all_trials else f"best trials by {names[0]}"
        console.print(_trial_table(title, summary, listed, sizes))
    if complete and not summary.front:
        console.print(
            "no trial keeps all constraints: none has learnt clearly more than to guess"
            " (see --min-accuracy)",
            highlight=False,
        )
    if len(names) > 1 and summary.front:
        table = _table("Pareto front", ["trial", *names, "architecture"])
        for best in summary.front:
            trial = summary.trial(best)
            cells = [value(n, v) for n, v in zip(names, trial.values or (), strict=True)]
            table.add_row(str(best), *cells, describe(trial))
        console.print(table)
    _print_statistics(summary, console)


def _trial_table(
    title: str, summary: StudySummary, listed: Sequence[TrialRecord], sizes: Sequence[str]
) -> Table:
    """Return a row per trial."""
    names = summary.metric_names
    table = _table(title, ["trial", *names, *sizes, "seconds", "front", "architecture"])
    for trial in listed:
        cells = ["-"] * len(names)
        if trial.values is not None:
            cells = [value(n, v) for n, v in zip(names, trial.values, strict=True)]
        size = [value(n, trial.metrics[n]) if n in trial.metrics else "-" for n in sizes]
        seconds = "-" if trial.seconds is None else f"{trial.seconds:.1f}"
        front = "*" if trial.number in summary.front else ""
        table.add_row(str(trial.number), *cells, *size, seconds, front, _remark(trial))
    return table


def _remark(trial: TrialRecord) -> str:
    """Return what there is to say about a trial: its architecture, or why there is no result."""
    if trial.state in {"RUNNING", "WAITING"}:
        return trial.state.lower()
    decided = _decision(trial)
    if trial.values is None:
        reason = trial.failure or decided or trial.stopped or "by the pruner"
        return f"{trial.state.lower()}: {reason}"
    if trial.duplicate:
        return f"as trial {trial.duplicate_of}, not trained again"
    text = describe(trial)
    if not trial.feasible:
        text += f" ({trial.stopped or 'not better than guessing'})"
    if trial.retrain_of is not None:
        text += f" (trial {trial.retrain_of} again)"
    return f"{text} ({decided})" if decided else text


def _decision(trial: TrialRecord) -> str:
    """Return the decision that ended a trial, or would have, with its reason."""
    for d in trial.decisions:
        if d.outcome == "pruned" or d.runs_on:
            what = "it" if d.outcome == "pruned" else f"it was {d.outcome}: it"
            return (
                f"after epoch {d.step + 1} {what} had a probability of {d.probability:.2g} to end"
                f" among the best, the limit was {d.limit:.2g}, learnt from {d.n_trials} trials"
            )
    return ""


def _print_statistics(summary: StudySummary, console: Console) -> None:
    if summary.correlations:
        _print_correlations(summary, console)
    for sentence in verdicts(summary):
        console.print(sentence, highlight=False, markup=False)


def _print_correlations(summary: StudySummary, console: Console) -> None:
    n = summary.correlations[0].n_trials
    console.print(
        "[bold]what early signals say about the final validation accuracy[/]"
        f" ({n} complete trials)",
        highlight=False,
    )
    table = _table("", ["signal", "after epoch", "Kendall tau", "95% interval"])
    for found in summary.correlations:
        epoch = str(found.epoch) if found.epoch else "untrained"
        table.add_row(
            found.signal, epoch, f"{found.tau:+.2f}", f"[{found.low:+.2f}, {found.high:+.2f}]"
        )
    console.print(table, markup=False)


def print_final(final: FinalTraining, console: Console) -> None:
    """Print a final training: test accuracy with interval, confusions, calibration, flatness.

    Args:
        final: The training.
        console: Where to.
    """
    first = final.seeds[0]
    n = first.test.n_samples
    spread = "" if final.spread is None else f", standard deviation {final.spread:.4f}"
    of = "" if len(final.seeds) == 1 else f" (mean of {len(final.seeds)} networks{spread})"
    console.print(
        f"\ntest accuracy [bold]{final.accuracy:.4f}[/] [{final.low:.4f}, {final.high:.4f}]{of},"
        f" {n} images, {final.epochs} epochs".replace("[0", "\\[0"),
        highlight=False,
    )
    columns = ["seed", "accuracy", "loss", "calibration error", "flatness", "model"]
    table = _table("", columns)
    for seed in final.seeds:
        flatness = "-" if seed.flatness is None else f"{seed.flatness:.3g}"
        table.add_row(
            str(seed.seed), f"{seed.test.accuracy:.4f}", f"{seed.test.loss:.4f}",
            f"{seed.test.calibration_error:.4f}", flatness, seed.file,
        )  # fmt: skip
    console.print(table, markup=False)
    _print_confusion(final, console)
    if final.earlier:
        looks = ", ".join(f"trial {n} {a:.4f}" for n, a in final.earlier)
        console.print(
            f"The test split has been read before on this study ({looks}): a choice among test"
            " results is tuned on the test split.",
            highlight=False,
        )


def _print_confusion(final: FinalTraining, console: Console) -> None:
    """Print the first network's confusion matrix; of many classes the most frequent confusions."""
    names, counts = final.class_names, final.seeds[0].test.confusion
    if len(names) <= _MOST_CLASSES:
        short = [name[:8] for name in names]
        table = _table("true class by predicted class", ["", *short, ""])
        for name, row in zip(short, counts, strict=True):
            cells = [str(count) if count else "." for count in row]
            table.add_row(name, *cells, "")
        console.print(table, markup=False)
        return
    pairs = [
        (count, names[i], names[j])
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    table = _table("most frequent confusions", ["images", "true class", "predicted class"])
    for count, true, predicted in sorted(pairs, reverse=True)[:_MOST_ROWS]:
        table.add_row(str(count), true, predicted)
    console.print(table, markup=False)


def print_flatness(result: FlatnessResult, console: Console) -> None:
    """Print a measurement, one row per layer, with bars where there are several.

    Args:
        result: The measurement.
        console: Where to.
    """
    several = len(result.layers) > 1
    variant = ", normalised inputs" if result.normalize else ""
    table = _table(
        f"relative flatness ({result.kind}{variant}, {result.n_samples} samples,"
        f" loss {result.loss:.4g}, accuracy {result.accuracy:.4f})",
        ["relative flatness", "standard error", "Hessian trace"]
        + (["", "layer"] if several else ["layer"]),
    )
    largest = max(abs(layer.relative_flatness) for layer in result.layers.values())
    for name, layer in result.layers.items():
        row = [
            f"{x:.6g}" for x in (layer.relative_flatness, layer.standard_error, layer.hessian_trace)
        ]
        bar = Bar(largest or 1.0, 0, abs(layer.relative_flatness), width=_BAR_WIDTH)
        table.add_row(*row, *([bar] if several else []), name)
    if several:
        total = (result.relative_flatness, result.standard_error, result.hessian_trace)
        table.add_section()
        table.add_row(*(f"{x:.6g}" for x in total), "", "all of them")
    console.print(table)
