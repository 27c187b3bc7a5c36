"""Trials as points of a figure: objectives against each other, or the only one by trial."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from flatsearch.reports.colours import BLUE, GREY, ORANGE, RED
from flatsearch.reports.text import value
from flatsearch.signals.table import FLATNESS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from plotly.graph_objects import Figure

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.record.trial import TrialRecord

__all__ = ["MOST_POINTS", "axis_type", "front", "history", "rounded", "texts", "thin"]

_T = TypeVar("_T")
MOST_POINTS = 2000
_MOST_IN_WORDS = 300
_LONGEST_WORDS = 110
# Never on a logarithmic axis: their differences are what is read.
_LINEAR = ("accuracy", "balanced_accuracy")
# Always on a logarithmic axis, but where some are not positive.
_LOGARITHMIC = frozenset(FLATNESS)
# Others are where the largest is so many times the smallest.
_WIDE = 8.0


def thin(items: Sequence[_T], most: int) -> list[_T]:
    """Return the items, or so many of them, evenly spaced, with the first and the last.

    Example:
        >>> thin(range(9), 3), thin(range(2), 3)
        ([0, 4, 8], [0, 1])
    """
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def rounded(numbers: Iterable[float]) -> list[float | None]:
    """Return numbers with four digits; None, which is not drawn, for those that are not finite."""
    return [float(f"{x:.4g}") if math.isfinite(x) else None for x in numbers]


def axis_type(name: str, numbers: Iterable[float | None]) -> str:
    """Return plotly's type of axis that suits the values of a metric.

    Example:
        >>> axis_type("flatness", [0.1, 30.0]), axis_type("flatness", [-0.1, 30.0, None])
        ('log', 'linear')
    """
    known = [x for x in numbers if x is not None]
    if name in _LINEAR or not known or min(known) <= 0:
        return "linear"
    wide = name in _LOGARITHMIC or max(known) > _WIDE * min(known)
    return "log" if wide else "linear"


def _reached(trial: TrialRecord, names: Sequence[str]) -> list[float]:
    """Return a trial's values; those at its last step where it has none."""
    if trial.values is not None:
        return list(trial.values)
    last = trial.steps[max(trial.steps)] if trial.steps else {}
    return [last.get(name, trial.metrics.get(name, math.nan)) for name in names]


def texts(summary: StudySummary, trials: Sequence[TrialRecord]) -> list[str]:
    """Return what is shown of trials under the mouse: of very many only their numbers."""
    if len(trials) > _MOST_IN_WORDS:
        return [f"trial {trial.number}" for trial in trials]
    texts = []
    for trial in trials:
        reached = zip(summary.metric_names, _reached(trial, summary.metric_names), strict=True)
        lines = [f"trial {trial.number}: " + ", ".join(f"{n} {value(n, x)}" for n, x in reached)]
        words = summary.describe(trial)
        if len(words) > _LONGEST_WORDS:
            words = words[: _LONGEST_WORDS - 3] + "..."
        lines += [words] if words else []
        if not trial.complete:
            lines.append(f"stopped after epoch {max(trial.steps, default=-1) + 1}")
        texts.append("<br>".join(map(html.escape, lines)))
    return texts


def _groups(
    summary: StudySummary, own: Sequence[TrialRecord]
) -> list[tuple[str, list[TrialRecord], dict[str, Any]]]:
    """Return the trials that are drawn as points: the groups' names, trials and markers."""
    front = [summary.trial(number) for number in summary.front]
    numbers = set(summary.front)
    complete = [t for t in own if t.complete]
    diverged = [t for t in own if t.diverged and t.steps]
    pruned = [t for t in own if t.pruned and t.steps]
    groups = [
        ("diverged, before they did", diverged, {"color": GREY, "symbol": "x-open", "size": 6}),
        ("pruned, where they stopped", pruned, {"color": GREY, "symbol": "x", "size": 6}),
        (
            "left out by a constraint",
            [t for t in complete if not t.feasible],
            {"color": ORANGE, "symbol": "circle-open", "size": 7},
        ),
        (
            "complete",
            [t for t in complete if t.feasible and t.number not in numbers],
            {"color": BLUE, "size": 7},
        ),
        (
            "Pareto front" if len(summary.metric_names) > 1 else "best trial",
            front,
            {"color": RED, "symbol": "star", "size": 11},
        ),
    ]
    shown = []
    for name, trials, marker in groups:
        few = thin(trials, MOST_POINTS)
        part = f" ({len(few)} of {len(trials)})" if len(few) < len(trials) else ""
        if trials:
            shown.append((name + part, few, marker))
    return shown


def front(summary: StudySummary, own: Sequence[TrialRecord]) -> Figure | None:
    """Draw the first objective of trained trials against the second; nothing without trials."""
    import plotly.graph_objects as go

    names = summary.metric_names
    groups = _groups(summary, own)
    if not groups:
        return None
    figure = go.Figure()
    for name, trials, marker in groups:
        line = len(names) == 2 and name.startswith("Pareto front")
        ordered = sorted(trials, key=lambda t: _reached(t, names)[1]) if line else trials
        points = [_reached(trial, names) for trial in ordered]
        figure.add_scatter(
            x=rounded(p[1] for p in points),
            y=rounded(p[0] for p in points),
            name=name,
            mode="lines+markers" if line else "markers",
            marker=marker,
            text=texts(summary, ordered),
            hoverinfo="text",
        )
        if line:
            # What a point reaches holds on its worse side, up to the next point.
            shape = "hv" if summary.directions[1] == "minimize" else "vh"
            figure.data[-1].line = {"shape": shape, "width": 1}
    better = {"minimize": "smaller is better", "maximize": "larger is better"}
    x, y = ([v for trace in figure.data for v in trace[axis]] for axis in "xy")
    labels = [f"{n} ({better[d]})" for n, d in zip(names, summary.directions, strict=True)]
    title = f"{names[0]} against {names[1]}"
    if len(names) > 2:
        title += f" (the front is of all {len(names)} objectives)"
    figure.update_layout(title_text=html.escape(title))
    figure.update_xaxes(title_text=html.escape(labels[1]), type=axis_type(names[1], x))
    figure.update_yaxes(title_text=html.escape(labels[0]), type=axis_type(names[0], y))
    return figure


def history(summary: StudySummary, own: Sequence[TrialRecord]) -> Figure | None:
    """Draw the only objective by trained trial, with the best so far; nothing without trials."""
    import plotly.graph_objects as go

    name, groups = summary.metric_names[0], _groups(summary, own)
    if not groups:
        return None
    figure = go.Figure()
    for group, trials, marker in groups:
        figure.add_scatter(
            x=[t.number for t in trials],
            y=rounded(_reached(t, [name])[0] for t in trials),
            mode="markers",
            name=group,
            marker=marker,
            text=texts(summary, trials),
            hoverinfo="text",
        )
    y = [v for trace in figure.data for v in trace.y]
    good = [t for t in own if t.complete and t.feasible]
    better = np.fmax if summary.directions[0] == "maximize" else np.fmin
    best = better.accumulate([_reached(t, [name])[0] for t in good]).tolist() if good else []
    # A line needs its corners only.
    corners = [i for i in range(len(good)) if i in {0, len(good) - 1} or best[i] != best[i - 1]]
    if good:
        figure.add_scatter(
            x=[good[i].number for i in corners],
            y=rounded(best[i] for i in corners),
            mode="lines",
            name="best so far",
            line={"color": RED, "shape": "hv", "width": 1},
            hoverinfo="skip",
        )
    figure.update_layout(title_text=html.escape(f"{name} by trial"))
    figure.update_xaxes(title_text="trial")
    figure.update_yaxes(title_text=html.escape(name), type=axis_type(name, y))
    return figure
