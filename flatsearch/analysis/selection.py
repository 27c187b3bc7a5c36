"""Which trial of a study to go on with, and which file is its model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flatsearch.errors import UsageError, unknown_name
from flatsearch.pareto import signs
from flatsearch.record import StudyRecord

if TYPE_CHECKING:
    import optuna

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.export.card import ModelCard
    from flatsearch.record.trial import TrialRecord

__all__ = ["Choice", "SavedModel", "choose", "saved_model"]


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
        raise UsageError(f"`prefer` is for the best trial, not for trial {which}")
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


@dataclass(frozen=True)
class SavedModel:
    """A file with a trained model.

    Attributes:
        file: The file.
        name: A name for what is made of it.
        what: What it is, in words.
        architecture: The architecture that it must have; None where any will do.
    """

    file: Path
    name: str
    what: str
    architecture: str | None = None

    def check(self, card: ModelCard) -> None:
        """Refuse a model of another architecture.

        Raises:
            UsageError: If it has another one.
        """
        if self.architecture is not None and card.architecture != self.architecture:
            raise UsageError(
                f"{str(self.file)!r} has another architecture than the trial: its folder was"
                " trained into again; train the trial with another `out`, or name the file with"
                " `model`"
            )


def saved_model(study: optuna.Study, choice: Choice, artifacts: Path) -> SavedModel:
    """Return a trial's model: that of its final training if there is one, else the search's.

    Args:
        study: The study.
        choice: The trial.
        artifacts: Where the search saved its models.

    Returns:
        The model's file.

    Raises:
        UsageError: If there is none.
    """
    trial = choice.trial
    what = f"trial {trial.number} ({choice.reason})"
    trained = StudyRecord(study).trained(trial.number)
    if trained is not None and Path(trained).exists():
        file, note = Path(trained), "after its final training"
    elif trial.artifact is None:
        gone = "" if trained is None else f" (that of its final training, {trained!r}, is missing)"
        raise UsageError(
            f"trial {trial.number} has no saved model{gone}: train it with 'flatsearch train'"
        )
    else:
        file, note = artifacts / trial.artifact, "as the search left it"
        if not file.exists():
            raise UsageError(
                f"the saved model of trial {trial.number}, {str(file)!r}, is missing; give"
                " `artifacts`, or train it with 'flatsearch train'"
            )
        missing = f": the final training's {trained!r} is missing"
        note += "; 'flatsearch train' makes a better one" if trained is None else missing
    architecture = None if trial.architecture is None else trial.architecture.to_json()
    name = f"{study.study_name}-trial-{trial.number}"
    return SavedModel(file, name, f"{what}, {note}", architecture)
