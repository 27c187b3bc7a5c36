"""What is written about a study and its best trials, in Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flatsearch.reports.text import describe, value
from flatsearch.reports.verdicts import searched, verdicts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.record.trial import TrialRecord

__all__ = ["MARK", "MOST_TRIALS", "study_note", "trial_note"]

# What our part of a note begins with; what somebody writes above it is theirs.
MARK = "### flatsearch:"
# Rows of a table, and trials with a note, at most.
MOST_TRIALS = 20


def _plain(text: str) -> str:
    r"""Return text that Markdown shows as it is.

    Example:
        >>> print(_plain("a_b|<i>"))
        a\_b\|\<i\>
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", " ".join(text.split()))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def study_note(summary: StudySummary) -> str:
    """Return what is said about a study: what was searched, the best, verdicts, settings.

    Args:
        summary: The study.

    Returns:
        Markdown that begins with `MARK`.
    """
    names = [_plain(name) for name in summary.metric_names]
    lines = [f"{MARK} {_plain(summary.name)}", "", _plain(searched(summary)), ""]
    if summary.front:
        lines += ["**Pareto front**" if len(names) > 1 else "**Best trial**", ""]
        rows = []
        for number in summary.front[:MOST_TRIALS]:
            trial = summary.trial(number)
            values = zip(summary.metric_names, trial.values or (), strict=True)
            cells = (str(number), *(value(n, v) for n, v in values), _plain(describe(trial)))
            rows.append(cells)
        lines += [*_table(["trial", *names, "architecture"], rows), ""]
        if len(summary.front) > MOST_TRIALS:
            lines += [f"... and {len(summary.front) - MOST_TRIALS} more", ""]
    if said := verdicts(summary):
        lines += ["**What the signals and pruning did**", ""]
        lines += [*(f"- {_plain(sentence)}" for sentence in said), ""]
    if summary.settings:
        pairs = [(_plain(k), _plain(_setting(v))) for k, v in summary.settings.items()]
        lines += ["**Settings of all trials**", "", *_table(["setting", "value"], pairs), ""]
    lines.append("*Written anew while the search runs; what stands above the heading is kept.*")
    return "\n".join(lines)


def _setting(setting: object) -> str:
    return ", ".join(map(str, setting)) if isinstance(setting, list) else str(setting)


def trial_note(summary: StudySummary, trial: TrialRecord) -> str:
    """Return what is said about a trial that is on the front, or was once.

    Args:
        summary: The study.
        trial: One of its complete trials.

    Returns:
        Markdown that begins with `MARK`.
    """
    names = summary.metric_names
    place = "on the Pareto front" if len(names) > 1 else "the best trial"
    if trial.number not in summary.front:
        place = f"no longer {place}"
    numbers = dict(zip(names, trial.values or (), strict=True))
    for name in ("loss", "parameters", "flops"):
        if name in trial.metrics:
            numbers.setdefault(name, trial.metrics[name])
    rows = [(_plain(name), value(name, number)) for name, number in numbers.items()]
    lines = [f"{MARK} {place}", "", _plain(describe(trial)), "", *_table(["", ""], rows), ""]
    if trial.architecture is not None:
        # In a code span only a backtick means something.
        name = summary.name.replace("`", "")
        lines.append(f"Train it to the end: `flatsearch train {name} --trial {trial.number}`")
    return "\n".join(lines)
