"""What is written about a study and its best trials, in Markdown."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from flatsearch.reports import tables
from flatsearch.reports.text import describe
from flatsearch.reports.verdicts import chosen, searched, verdicts

if TYPE_CHECKING:
    from flatsearch.analysis.summary import StudySummary
    from flatsearch.record import TrialRecord
    from flatsearch.reports.tables import Table

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


def _section(table: Table) -> list[str]:
    """Return a table under its title; nothing where it has no rows."""
    if not table.rows:
        return []
    head, *rows = ([_plain(cell) for cell in line] for line in (table.heads, *table.rows))
    cells = [head, ["-" * 3] * len(head), *rows]
    return [
        *([f"**{_plain(table.title)}**", ""] if table.title else []),
        *("| " + " | ".join(line) + " |" for line in cells),
        "",
        *([f"... and {table.left_out} more", ""] if table.left_out else []),
    ]


def study_note(summary: StudySummary) -> str:
    """Return what is said about a study, in Markdown that begins with `MARK`."""
    lines = [f"{MARK} {_plain(summary.name)}", "", _plain(searched(summary)), ""]
    lines += _section(tables.front(summary, MOST_TRIALS))
    lines += [_plain(best), ""] if (best := chosen(summary)) else []
    if said := verdicts(summary):
        lines += ["**What the signals and pruning did**", ""]
        lines += [*(f"- {_plain(sentence)}" for sentence in said), ""]
    lines += _section(tables.settings(summary))
    lines.append("*Written anew while the search runs; what stands above the heading is kept.*")
    return "\n".join(lines)


def trial_note(summary: StudySummary, trial: TrialRecord) -> str:
    """Return what is said about a trial that is on the front, or was once, likewise."""
    place = "on the Pareto front" if len(summary.metric_names) > 1 else "the best trial"
    if trial.number not in summary.front:
        place = f"no longer {place}"
    lines = [f"{MARK} {place}", "", _plain(describe(trial)), ""]
    lines += _section(tables.trial_numbers(summary, trial))
    if trial.architecture is not None:
        # In a code span only a backtick means something.
        name = shlex.quote(summary.name.replace("`", ""))
        lines.append(f"Train it to the end: `flatsearch train {name} --trial {trial.number}`")
    return "\n".join(lines)
