"""A study in figures: plotly's, for the dashboard and for the page alike.

They are kept small, tens of kilobytes each, since the dashboard sends all of them with the study:
numbers have four digits, what there is much of is one trace, and of very much a part is drawn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from flatsearch.analysis.intervals import tau_with_interval, trial_weights
from flatsearch.errors import UsageError
from flatsearch.reports.colours import BLUE, GREY, LINES, PALETTE, WORDS
from flatsearch.reports.figure_front import (
    MOST_POINTS,
    axis_type,
    front,
    history,
    rounded,
    texts,
    thin,
)
from flatsearch.settings import RunSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from plotly.graph_objects import Figure

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.record.trial import TrialRecord

__all__ = ["figures", "not_drawn"]

_MOST_CURVES = 150
_MOST_CURVE_POINTS = 3000
_MOST_ON_A_LINE = 400
# More bars than this have no room for names beside them.
_MOST_NAMED_LAYERS = 22
# What a figure is of, and what it needs that a study may not have.
_REASONS = {
    "front": "the front: no trial has ended yet",
    "epochs": "the learning curves: no epoch has been recorded",
    "gap": "flatness against training less validation accuracy: fewer than two trials are complete",
    "layers": "flatness by layer: ",
    "budget": "what pruning saved: no trial has been stopped",
}
_LAYOUT: dict[str, Any] = {
    "template": {},
    "paper_bgcolor": "rgba(0, 0, 0, 0)",
    "plot_bgcolor": "rgba(0, 0, 0, 0)",
    "font": {"color": WORDS, "size": 12},
    "title": {"font": {"size": 15}, "x": 0.02, "xanchor": "left"},
    "margin": {"l": 65, "r": 20, "t": 55, "b": 90},
    "legend": {"orientation": "h", "y": -0.22, "yanchor": "top"},
    "hoverlabel": {"align": "left"},
    "uirevision": "keep",  # a figure that is drawn anew keeps the part that was zoomed into
}


def figures(summary: StudySummary) -> dict[str, Figure]:
    """Draw a study.

    Args:
        summary: The study.

    Returns:
        By identifier: "front" (objectives against each other, or the one by trial), "epochs"
        (accuracy and flatness by epoch), "gap" (flatness against training less validation
        accuracy), "layers" (flatness of every convolution of the best trial) and "budget" (epochs
        spent, and what they would have been without pruning); without those for which the study has
        no data.

    Raises:
        UsageError: If plotly is not installed.
    """
    try:
        import plotly.graph_objects  # noqa: F401 - the functions below import what they use
    except ImportError:
        raise UsageError("figures need plotly: pip install 'flatsearch[dashboard]'") from None
    own = [t for t in summary.trials if t.own]
    drawn = {
        "front": front(summary, own) if len(summary.metric_names) > 1 else history(summary, own),
        "epochs": _epochs(summary, own),
        "gap": _gap(summary, own),
        "layers": _layers(summary),
        "budget": _budget(summary, own),
    }
    found = {name: figure for name, figure in drawn.items() if figure is not None}
    for figure in found.values():
        figure.update_layout(**_LAYOUT)
        for axes in (figure.update_xaxes, figure.update_yaxes):
            axes(gridcolor=LINES, linecolor=LINES, zeroline=False, automargin=True)
    return found


def not_drawn(summary: StudySummary, drawn: Collection[str]) -> list[str]:
    """Return why figures are missing, a sentence each; none for a study that is not ours.

    Args:
        summary: The study.
        drawn: The identifiers of the figures that there are.

    Returns:
        The sentences.
    """
    if summary.settings is None:
        return []
    reasons = {**_REASONS, "layers": _REASONS["layers"] + _why_not_all(summary)}
    return [f"No figure of {what}." for name, what in reasons.items() if name not in drawn]


def _why_not_all(summary: StudySummary) -> str:
    """Return why the best trial has no flatness of every layer."""
    settings = {**RunSettings().to_dict(), **(summary.settings or {})}
    if not summary.front:
        return "there is no best trial yet"
    if settings["layers"] != "all":
        return f"only one convolution is measured with the setting layers={settings['layers']}"
    share = settings["flatness_share"]
    return (
        f"measuring all would take more than {share:.0%} of a training (the setting flatness_share)"
    )


def _epochs(summary: StudySummary, own: Sequence[TrialRecord]) -> Figure | None:
    """Draw accuracy and flatness by epoch, the front in colour."""
    from plotly.subplots import make_subplots

    recorded = {name for trial in own for step in trial.steps.values() for name in step}
    metrics = [name for name in ("accuracy", "balanced_accuracy", "flatness") if name in recorded]
    if not metrics:
        return None
    trials = [t for t in own if t.steps]
    best = [summary.trial(number) for number in summary.front[: len(PALETTE)]]
    best = [t for t in best if t.steps]
    numbers = {trial.number for trial in best}
    length = max(len(t.steps) for t in trials)
    most = max(1, min(_MOST_CURVES, _MOST_CURVE_POINTS // length))
    others = thin([t for t in trials if t.number not in numbers], most)
    titles = [f"{metric} by epoch" for metric in metrics]
    figure = make_subplots(rows=len(metrics), cols=1, subplot_titles=titles, vertical_spacing=0.2)
    for row, metric in enumerate(metrics, start=1):
        place = {"row": row, "col": 1}
        curves = {trial.number: _curve(trial, metric) for trial in [*others, *best]}
        grey = [curves[t.number] for t in others]
        if grey:
            figure.add_scatter(
                x=[x for xs, _ in grey for x in [*xs, None]],  # one trace, with gaps
                y=[y for _, ys in grey for y in [*ys, None]],
                mode="lines+markers",
                name="other trials",
                showlegend=row == 1,
                opacity=0.45,
                line={"color": GREY, "width": 1},
                marker={"size": 3},
                hoverinfo="skip",
                **place,
            )
        for trial, colour in zip(best, PALETTE, strict=False):
            figure.add_scatter(
                x=curves[trial.number][0],
                y=curves[trial.number][1],
                mode="lines+markers",
                name=f"trial {trial.number}",
                legendgroup=str(trial.number),
                marker={"size": 5},
                showlegend=row == 1,
                line={"color": colour, "width": 2},
                **place,
            )
        kind = axis_type(metric, [y for _, ys in curves.values() for y in ys])
        figure.update_xaxes(tick0=1, dtick=math.ceil(length / 12), **place)
        figure.update_yaxes(type=kind, **place)
    figure.update_xaxes(title_text="epoch", row=len(metrics), col=1)
    return figure


def _curve(trial: TrialRecord, metric: str) -> tuple[list[int], list[float | None]]:
    steps = thin(list(trial.steps.items()), _MOST_ON_A_LINE)
    return [s + 1 for s, _ in steps], rounded(m.get(metric, math.nan) for _, m in steps)


def _gap(summary: StudySummary, own: Sequence[TrialRecord]) -> Figure | None:
    """Draw the final flatness against training accuracy, as the epoch went, less validation."""
    import plotly.graph_objects as go

    needed = ("flatness", "train_accuracy", "accuracy")
    trials = [
        t
        for t in own
        if t.complete and all(math.isfinite(t.metrics.get(name, math.nan)) for name in needed)
    ]
    if len(trials) < 2:
        return None
    trials = thin(trials, MOST_POINTS)
    x = np.array([t.metrics["flatness"] for t in trials])
    y = np.array([t.metrics["train_accuracy"] - t.metrics["accuracy"] for t in trials])
    found = tau_with_interval(x, y, trial_weights(trials))
    said = f"too few trials ({len(x)}) for a correlation"
    if found is not None:
        said = f"Kendall tau {found[0]:+.2f} [{found[1]:+.2f}, {found[2]:+.2f}], {len(x)} trials"
    figure = go.Figure()
    figure.add_scatter(
        x=rounded(x),
        y=rounded(y),
        mode="markers",
        marker={"color": BLUE, "size": 7},
        text=texts(summary, trials),
        hoverinfo="text",
    )
    figure.update_layout(title_text=f"flatness against training less validation accuracy: {said}")
    kind = axis_type("flatness", x.tolist())
    figure.update_xaxes(title_text="relative flatness at the end (small is flat)", type=kind)
    figure.update_yaxes(title_text="training accuracy (during the last epoch) less validation")
    return figure


def _layers(summary: StudySummary) -> Figure | None:
    """Draw the flatness of every convolution of the first trial on the front."""
    import plotly.graph_objects as go

    best = [summary.trial(number) for number in summary.front[:1]]
    # One that went on with another's network may have been measured before.
    begun = [t for t in summary.trials for b in best if t.number == b.begun_by]
    measured = next((t for t in [*best, *begun] if t.layers), None)
    if measured is None:
        return None
    names, numbers = list(measured.layers), rounded(measured.layers.values())
    figure = go.Figure()
    label, marker = "relative flatness (small is flat)", {"color": BLUE, "size": 9}
    kind = axis_type("flatness", numbers)
    if len(names) <= _MOST_NAMED_LAYERS:
        figure.add_scatter(x=numbers, y=names, mode="markers", marker=marker)
        figure.update_xaxes(title_text=label, type=kind)
        # In the order of execution from the top.
        figure.update_yaxes(autorange="reversed", type="category", dtick=1)
    else:
        order = list(range(1, len(names) + 1))
        figure.add_scatter(x=order, y=numbers, hovertext=names, mode="markers", marker=marker)
        figure.update_xaxes(title_text="convolution, in the order of execution")
        figure.update_yaxes(title_text=label, type=kind)
    title = f"flatness of the convolutions of trial {best[0].number}"
    if measured.number != best[0].number:
        title += f", as trial {measured.number} began it"
    figure.update_layout(title_text=title)
    return figure


def _budget(summary: StudySummary, own: Sequence[TrialRecord]) -> Figure | None:
    """Draw the epochs spent, and what they would be if every trial had been run to the end."""
    import plotly.graph_objects as go

    ended = [t for t in own if t.finished and t.steps]
    pruned = {t.number for t in ended if t.pruned}
    if not pruned:
        return None
    whole = (summary.settings or {}).get("epochs") or max(len(t.steps) for t in ended)
    spent = np.cumsum([len(t.steps) for t in ended])
    full = np.cumsum([whole if t.number in pruned else len(t.steps) for t in ended])
    kept = thin(range(len(ended)), _MOST_ON_A_LINE)
    figure = go.Figure()
    for name, line, colour in (("without pruning", full, GREY), ("spent", spent, BLUE)):
        figure.add_scatter(
            x=[ended[i].number for i in kept],
            y=line[kept].tolist(),
            mode="lines",
            name=name,
            line={"color": colour},
        )
    saved = 1 - float(spent[-1]) / float(full[-1])
    title = f"epochs of training: {spent[-1]} of {full[-1]}, {saved:.0%} saved by pruning"
    figure.update_layout(title_text=title)
    # There are no trials between trials.
    figure.update_xaxes(title_text="trial", dtick=max(1, len(ended) // 10))
    figure.update_yaxes(title_text="epochs", rangemode="tozero")
    return figure
