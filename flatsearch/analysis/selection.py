"""Which trial of a study to go on with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatsearch.errors import UsageError, unknown_name
from flatsearch.pareto import signs

if TYPE_CHECKING:
    from flatsearch.analysis.summary import StudySummary
    from flatsearch.record.trial import TrialRecord

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """A trial and why it is the one.

    Attributes:
        trial: Its record.
        reason: A phrase.
    """

    trial: TrialRecord
    reason: str


def choose(summary: StudySummary, which: str = "best", prefer: str | None = None) -> Choice:
    """Return a trial to go on with: the best, or any that has an architecture.

    The best of a front is its knee: with every objective scaled to its range on the front, 1 the
    best, the point nearest to being the best in all, in Euclidean distance.

    Args:
        summary: The study.
        which: A trial number, or "best".
        prefer: With "best", the objective whose best trial is wanted instead of the knee.

    Returns:
        The choice. Of a trial that took over an earlier one's result, the earlier one.

    Raises:
        UsageError: If there is no such trial or objective, the trial is still running, or it has no
            architecture.
    """
    if prefer is not None and prefer not in summary.metric_names:
        raise UsageError(unknown_name("objective to prefer", prefer, summary.metric_names))
    if which == "best":
        return _best(summary, prefer)
    if prefer is not None:
        raise UsageError(f"--prefer is for the best trial, not for trial {which}")
    known = {str(trial.number): trial for trial in summary.trials}
    if which not in known:
        what = f"0 to {len(known) - 1}" if known else "none"
        raise UsageError(f"there is no trial {which!r} in study {summary.name!r}; it has {what}")
    trial = known[which]
    if trial.duplicate_of is not None:
        trial = summary.trial(trial.duplicate_of)
    if trial.state in {"RUNNING", "WAITING"}:
        raise UsageError(f"trial {which} is still {trial.state.lower()}")
    if trial.architecture is None:
        raise UsageError(f"trial {which} has no architecture on record: it ended before")
    ended = "" if trial.state == "COMPLETE" else f", though it ended as {trial.state.lower()}"
    return Choice(trial, f"as asked for{ended}")


def _best(summary: StudySummary, prefer: str | None) -> Choice:
    front = [summary.trial(number) for number in summary.front]
    if not front:
        raise UsageError(
            f"study {summary.name!r} has no trial to choose: none is complete and keeps all"
            " constraints"
        )
    if len(summary.metric_names) == 1:
        return Choice(front[0], f"the best {summary.metric_names[0]}")
    points = np.array([trial.values for trial in front]) * signs(summary.directions)
    if prefer is not None:
        index = int(np.argmax(points[:, summary.metric_names.index(prefer)]))
        return Choice(front[index], f"the best {prefer} on the front of {len(front)}")
    low, high = points.min(0), points.max(0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    # Of equally near points the first one: the best in the first objective.
    index = int(np.argmin(np.linalg.norm(1.0 - scaled, axis=1).round(9)))
    names = " and ".join(summary.metric_names)
    return Choice(
        front[index],
        f"the knee of the front of {len(front)}: nearest to the best {names} at once",
    )
