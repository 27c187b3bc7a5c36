"""Tables of a study and of a final training; terminal, page and notes only render them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from flatsearch.record import HASHED
from flatsearch.reports.text import duration, setting, value
from flatsearch.settings import RunSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.record import TrialRecord
    from flatsearch.retrain.result import FinalTraining, SeedResult

__all__ = [
    "Table",
    "all_trials",
    "best_trials",
    "calibration",
    "confusions",
    "correlations",
    "front",
    "reason",
    "seeds",
    "settings",
    "trial_numbers",
]

# What is shown of a trial beside its objectives, where it is recorded.
_SIZES = ("loss", "parameters", "flops")
# A confusion matrix of more classes does not fit.
_MOST_CLASSES = 12
_MOST_CONFUSIONS = 10
_LONGEST_NAME = 8


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: What stands above it.
        heads: The names of the columns; all but the last are aligned to the right.
        rows: The cells by row.
        left_out: The number of further rows that are not shown.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int = 0


def best_trials(summary: StudySummary, most: int, *, infeasible: bool = True) -> Table:
    """Return the trials that have values of their own, best first in the first objective."""
    ranked = [t for t in summary.ranked() if not t.duplicate and (t.feasible or infeasible)]
    return _trials(f"Best trials by {summary.metric_names[0]}", summary, ranked, most)


def all_trials(summary: StudySummary) -> Table:
    """Return every trial: those with values, best first, then the others."""
    ranked = {trial.number for trial in summary.ranked()}
    others = [trial for trial in summary.trials if trial.number not in ranked]
    return _trials("trials", summary, [*summary.ranked(), *others], len(summary.trials))


def _trials(title: str, summary: StudySummary, trials: Sequence[TrialRecord], most: int) -> Table:
    names, shown = summary.metric_names, trials[:most]
    sizes = [s for s in _SIZES if s not in names and any(s in t.metrics for t in shown)]
    continued = any(trial.promotion is not None for trial in shown)
    rows = tuple(
        (
            str(trial.number),
            *([str(trial.begun_by) if trial.promotion is not None else ""] if continued else []),
            *_values(summary, trial),
            *(value(s, trial.metrics[s]) if s in trial.metrics else "-" for s in sizes),
            "-" if trial.seconds is None else duration(trial.seconds),
            "*" if trial.number in summary.front else "",
            _remark(summary, trial),
        )
        for trial in shown
    )
    begun = ("begun as",) if continued else ()
    heads = ("trial", *begun, *names, *sizes, "time", "front", "architecture")
    return Table(title, heads, rows, len(trials) - len(shown))


def _values(summary: StudySummary, trial: TrialRecord) -> tuple[str, ...]:
    if trial.values is None:
        return ("-",) * len(summary.metric_names)
    return tuple(value(n, v) for n, v in zip(summary.metric_names, trial.values, strict=True))


def reason(summary: StudySummary, trial: TrialRecord) -> str:
    """Return why a trial has no place among the best, or was stopped; empty for others."""
    if trial.duplicate:
        return f"The same network as trial {trial.duplicate_of}, whose result it took over."
    if trial.superseded_by is not None:
        return f"{trial.stopped}; its network went on as trial {trial.superseded_by}.".capitalize()
    said = _all_decisions(trial) or trial.failure or trial.stopped or ""
    if not said and trial.pruned:
        said = "by the pruner"
    if not said and trial.complete and not trial.feasible:
        said = _shortfall(summary, trial)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _remark(summary: StudySummary, trial: TrialRecord) -> str:
    """Return what there is to say about a trial: its architecture, or why there is no result."""
    if trial.state in {"RUNNING", "WAITING"}:
        return trial.state.lower()
    text = summary.describe(trial)
    if trial.superseded_by is not None:
        return _with(text, f"{trial.stopped}; goes on as trial {trial.superseded_by}")
    if trial.values is None:
        if trial.parked is not None and trial.stopped:
            return _with(text, trial.stopped)
        unknown = "by the pruner" if trial.pruned else "no reason is on record"
        reason = trial.failure or _decision(trial) or trial.stopped or unknown
        return f"{trial.state.lower()}: {reason}"
    if trial.duplicate:
        return f"as trial {trial.duplicate_of}, not trained again"
    if not trial.feasible:
        text += f" ({trial.stopped or ('knows too little' if trial.behind else 'infeasible')})"
    if trial.retrain_of is not None:
        text += f" (trial {trial.retrain_of} again)"
    return f"{text} ({decided})" if (decided := _decision(trial)) else text


def _with(text: str, remark: str) -> str:
    """Return a text and a remark to it; the remark alone where there is no text."""
    return f"{text} ({remark})" if text else remark


def _shortfall(summary: StudySummary, trial: TrialRecord) -> str:
    """Say why a trial that was not stopped is not on the front."""
    if not trial.behind:
        return "keeps not all constraints: see min_accuracy"
    return f"knows too little for the front: {summary.accuracy} below {summary.least_accuracy:.3f}"


def _decision(trial: TrialRecord) -> str:
    """Return the decision that ended a trial, or would have, with its reason."""
    for d in trial.decisions:
        if d.outcome == "pruned" or d.runs_on:
            ran_on = f", but {d.outcome}" if d.runs_on else ""
            return (
                f"after epoch {d.step + 1}, at {d.probability:.1%} to end among the best (limit"
                f" {d.limit:.1%}){ran_on}"
            )
    return ""


def _all_decisions(trial: TrialRecord) -> str:
    """Return what the pruner decided after every step, and why."""
    said = []
    for d in trial.decisions:
        text = f"after epoch {d.step + 1} {d.outcome}"
        if math.isfinite(d.probability):
            text += (
                f", at a chance of {d.probability:.1%} to end among the best (limit {d.limit:.1%},"
                f" learnt from {d.n_trials} trials)"
            )
        said.append(text)
    return "; ".join(said)


def front(summary: StudySummary, most: int | None = None) -> Table:
    """Return the trials of the Pareto front, or the best one of a single objective."""
    shown = [summary.trial(number) for number in summary.front[:most]]
    return Table(
        "Pareto front" if len(summary.metric_names) > 1 else "Best trial",
        ("trial", *summary.metric_names, "architecture"),
        tuple((str(t.number), *_values(summary, t), summary.describe(t)) for t in shown),
        len(summary.front) - len(shown),
    )


def correlations(summary: StudySummary) -> Table:
    """Return how the early signals rank the complete trials; no rows where there are too few.

    Of the epochs after which they were read the first and the last but one are shown.
    """
    n = summary.correlations[0].n_trials if summary.correlations else 0
    epochs = sorted({found.epoch for found in summary.correlations} - {0})
    shown = {0, *epochs[:1], *epochs[-2:-1]}
    return Table(
        f"What early signals say about the final validation accuracy ({n} complete trials)",
        ("signal", "after epoch", "Kendall tau", "95% interval"),
        tuple(
            (
                found.signal,
                str(found.epoch or "untrained"),
                f"{found.tau:+.2f}",
                f"[{found.low:+.2f}, {found.high:+.2f}]",
            )
            for found in summary.correlations
            if found.epoch in shown
        ),
    )


def settings(summary: StudySummary) -> tuple[Table, Table]:
    """Return the settings that are not the defaults, and the others.

    No rows for a study that is not ours.
    """
    defaults = RunSettings().to_dict()
    known = summary.settings or {}
    own = {k: v for k, v in known.items() if v != defaults.get(k) and k not in HASHED}
    rest = {k: v for k, v in known.items() if k not in own}
    heads = ("setting", "value")
    return (
        Table("Settings", heads, tuple((k, setting(v)) for k, v in own.items())),
        Table("All other settings", heads, tuple((k, setting(v)) for k, v in rest.items())),
    )


def trial_numbers(summary: StudySummary, trial: TrialRecord) -> Table:
    """Return a trial's objectives and sizes, one a row."""
    # What was not trained to the end has no values.
    numbers = dict(zip(summary.metric_names, trial.values or (), strict=False))
    numbers = {**{s: trial.metrics[s] for s in _SIZES if s in trial.metrics}, **numbers}
    order = dict.fromkeys((*summary.metric_names, *_SIZES))
    rows = tuple((name, value(name, numbers[name])) for name in order if name in numbers)
    layer = () if trial.measured is None else (("flatness of layer", trial.measured),)
    return Table("", ("", ""), rows + layer)


def seeds(final: FinalTraining) -> Table:
    """Return the results of a final training, a network a row, the model to ship first.

    Where the validation images were held out their loss comes first, with how far each network is
    behind the best, and the trial where there are several.
    """
    several = len({seed.trial for seed in final.seeds}) > 1
    rows = [_seed(seed, several=several) for seed in final.seeds]
    ranked = final.seeds[0].validation is not None
    title = f"Networks in {PurePath(final.model).parent}, best first" if ranked else ""
    return Table(title, tuple(rows[0]), tuple(tuple(row.values()) for row in rows))


def _seed(seed: SeedResult, *, several: bool) -> dict[str, str]:
    """Return a network's cells by the heads of their columns, in order."""
    found, test = seed.validation, "" if seed.validation is None else "test "
    first = {"trial": str(seed.trial)} if several else {}
    first["seed"] = str(seed.seed)
    scores = {
        f"{test}accuracy": f"{seed.test.accuracy:.4f}",
        f"{test}loss": f"{seed.test.loss:.4f}",
        "calibration error": f"{seed.test.calibration_error:.4f}",
    }
    measured = {
        "flatness": _measured(seed.flatness, seed.flatness_error),
        "noise loss": _measured(seed.noise_loss, seed.noise_loss_error),
    }
    if found is None:
        return {**first, **scores, **measured, "model": seed.file}
    behind = "" if found.behind is None else found.behind.text
    ranked = {"validation loss": found.loss.text, "behind": behind}
    return {**first, **ranked, **measured, **scores, "model": PurePath(seed.file).name}


def _measured(number: float | None, error: float | None) -> str:
    return "-" if number is None or error is None else f"{number:.3g} ± {error:.2g}"


def calibration(final: FinalTraining) -> Table:
    """Return how often the model to ship is right that is so sure, by how sure it is."""
    return Table(
        "How sure the model is, and how often it is right",
        ("mean probability of the answer", "of them right", "test images", ""),
        tuple(
            (f"{sure:.3f}", f"{right:.3f}", str(n), "")
            for sure, right, n in final.seeds[0].test.calibration
        ),
    )


def confusions(
    final: FinalTraining, most_classes: int = _MOST_CLASSES, longest: int = _LONGEST_NAME
) -> Table:
    """Return the first network's confusion matrix; of many classes the most frequent confusions.

    Args:
        final: The final training.
        most_classes: Of how many classes there is a matrix.
        longest: Letters of a class's name that stand above a column. Where names are the same in
            so many, the columns have the numbers of the rows.

    Returns:
        The table.
    """
    names, counts = final.class_names, final.seeds[0].test.confusion
    if len(names) <= most_classes:
        above = beside = [name[:longest] for name in names]
        if len(set(above)) < len(above):
            above = [str(i + 1) for i in range(len(names))]
            beside = [f"{i + 1} {name}" for i, name in enumerate(names)]
        rows = tuple(
            (name, *(str(count) if count else "." for count in row), "")
            for name, row in zip(beside, counts, strict=True)
        )
        return Table("true class by predicted class", ("", *above, ""), rows)
    pairs = [
        (count, names[i], names[j])
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    frequent = sorted(pairs, reverse=True)[:_MOST_CONFUSIONS]
    return Table(
        "most frequent confusions",
        ("images", "true class", "predicted class"),
        tuple((str(count), true, predicted) for count, true, predicted in frequent),
    )
