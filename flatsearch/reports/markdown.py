"""What is written about a study and its best trials, in Markdown."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from flatsearch.analysis.summary import outcome
from flatsearch.reports import tables
from flatsearch.reports.figures import not_drawn
from flatsearch.reports.verdicts import (
    front_meaning,
    headlines,
    same_in_all,
    searched,
    verdicts,
)
from flatsearch.spaces.words import short_form

if TYPE_CHECKING:
    from collections.abc import Collection

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.record import TrialRecord
    from flatsearch.reports.tables import Table

__all__ = ["MARK", "MOST_TRIALS", "code", "plain", "section", "study_note", "trial_note"]

# What our part of a note begins with; what somebody writes above it is theirs.
MARK = "### flatsearch:"
# Rows of a table, and trials with a note, at most.
MOST_TRIALS = 20


def plain(text: str) -> str:
    r"""Return text that Markdown shows as it is.

    Example:
        >>> print(plain("a_b|<i>"))
        a\_b\|\<i\>
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return text as a code span, in which only as many backticks as around it mean something.

    Example:
        >>> print(code("a b"), code("a`b"))
        `a b` ``a`b``
    """
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{text}{ticks}"


def section(table: Table) -> list[str]:
    """Return a table under its title; nothing where it has no rows."""
    if not table.rows:
        return []
    head, *rows = ([plain(cell) for cell in line] for line in (table.heads, *table.rows))
    cells = [head, ["-" * 3] * len(head), *rows]
    return [
        *([f"**{plain(table.title)}**", ""] if table.title else []),
        *("| " + " | ".join(line) + " |" for line in cells),
        "",
        *([f"... and {table.left_out} more", ""] if table.left_out else []),
    ]


def study_note(summary: StudySummary, drawn: Collection[str] = ()) -> str:
    """Return what is said about a study beside figures, in Markdown that begins with `MARK`."""
    lines = [f"{MARK} {plain(summary.name)}", "", plain(searched(summary)), ""]
    lines += [f"**{plain(line)}**\n" for line in headlines(summary)]
    lines += section(tables.front(summary, MOST_TRIALS))
    said = (front_meaning(summary), same_in_all(summary), summary.chosen())
    lines += [f"{plain(sentence)}\n" for sentence in said if sentence]
    if numbers := [*verdicts(summary), *not_drawn(summary, drawn)]:
        lines += ["**In numbers**", ""]
        lines += [*(f"- {plain(sentence)}" for sentence in numbers), ""]
    own, others = tables.settings(summary)
    lines += section(own)
    if others.rows:
        lines += [f"The other {len(others.rows)} settings have their defaults.", ""]
    lines.append("*Written anew while the search runs; what stands above the heading is kept.*")
    return "\n".join(lines)


def trial_note(summary: StudySummary, trial: TrialRecord, *, left: bool = False) -> str:
    """Return what is said about a trial that has ended, and perhaps left the front, likewise."""
    lines = [f"{MARK} {_place(summary, trial, left=left)}", ""]
    if reason := tables.reason(summary, trial):
        lines += [plain(reason), ""]
    if trial.architecture is not None:
        lines += [plain(short_form({**trial.architecture.values, **trial.recipe})), ""]
    lines += section(tables.trial_numbers(summary, trial))
    if trial.architecture is not None and trial.complete and trial.own:
        command = f"flatsearch train {shlex.quote(summary.name)} --trial {trial.number}"
        lines.append(f"Train it to the end: {code(command)}")
    return "\n".join(lines)


def _place(summary: StudySummary, trial: TrialRecord, *, left: bool) -> str:
    """Return in a few words what became of a trial."""
    front = "on the Pareto front" if len(summary.metric_names) > 1 else "the best trial"
    if trial.number in summary.front:
        return front
    became = outcome(trial)
    if left:
        return f"no longer {front}"
    return f"not {front}" if became == "COMPLETE" else became.lower()
