"""Which trial of a study to go on with, and which file is its model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsearch.errors import UsageError, unknown_name
from flatsearch.pareto import accuracy_error, signs
from flatsearch.record import StudyRecord
from flatsearch.settings import file_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.export.card import ModelCard
    from flatsearch.record.trial import TrialRecord

__all__ = ["Choice", "SavedModel", "choose", "choose_best", "saved_model"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
# The objective that has a standard error.
_ACCURACY = "accuracy"


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
    """Return a trial to go on with: the best, see `choose_best`, or that of a number.

    Instead of a trial that took over an earlier one's result it is the earlier one; instead of one
    whose network went on in a later trial, the later one.

    Raises:
        UsageError: If there is no such trial or objective, no trial is best, or the trial is still
            running or has no architecture.
    """
    if prefer is not None and prefer not in summary.metric_names:
        raise UsageError(unknown_name("objective to prefer", prefer, summary.metric_names))
    if which == "best":
        return choose_best(summary, prefer)
    if prefer is not None:
        raise UsageError(f"`prefer` is for the best trial, not for trial {which}")
    known = {str(trial.number): trial for trial in summary.trials}
    if which.isdecimal() and int(which) in summary.unreadable:
        raise UsageError(summary.unreadable[int(which)])
    if which not in known:
        what = f"0 to {len(known) - 1}" if known else "none"
        raise UsageError(f"there is no trial {which!r} in study {summary.name!r}; it has {what}")
    trial = known[which]
    if trial.duplicate_of is not None:
        trial = known.get(str(trial.duplicate_of), trial)
    if trial.superseded_by is not None:
        trial = summary.trial(trial.superseded_by)
    if trial.state in {"RUNNING", "WAITING"}:
        raise UsageError(f"trial {which} is still {trial.state.lower()}")
    if trial.architecture is None:
        raise UsageError(f"trial {which} has no architecture on record: it ended before")
    ended = "" if trial.state == "COMPLETE" else f", though it ended as {trial.state.lower()}"
    return Choice(trial, f"as asked for{ended}")


def choose_best(summary: StudySummary, prefer: str | None = None) -> Choice:
    """Return the best trial of a study.

    **What is best.** Of one objective, or of several with one preferred, its best value. Of a
    front its knee: with every objective scaled to its range on the front, 1 the best, the point
    nearest to being the best in all, in Euclidean distance.

    **What the validation loss decides.** An accuracy p on n images has a standard error of
    sqrt(p (1 - p) / n), and trials that differ by less are better told apart by the validation
    loss. So among the trials that would be as good as the best if their accuracy were one such
    error higher, p being that of the best, the one with the lowest validation loss is chosen: the
    one-standard-error rule of Breiman et al., "Classification and Regression Trees", 1984, section
    3.4.3, with the loss in the place of the size. Where accuracy alone counts these may be any
    trials that keep the constraints, elsewhere those of the front. Where accuracy is no objective,
    or n is not on record, the loss decides between equally good trials only; where the loss of the
    best is not on record, it decides nothing.

    Raises:
        UsageError: If no trial is complete and keeps all constraints.
    """
    names, front = summary.metric_names, summary.front
    aim = prefer or (names[0] if len(names) == 1 else None)
    pool = [summary.trial(number) for number in front]
    if aim == _ACCURACY or len(names) == 1:
        pool += [trial for trial in summary.eligible() if trial.number not in front]
    if not pool:
        raise UsageError(
            f"study {summary.name!r} has no trial to choose: none is complete and keeps all"
            " constraints"
        )
    points = np.array([trial.values for trial in pool]) * signs(summary.directions)
    worth = _nearness(points) if aim is None else itemgetter((slice(None), names.index(aim)))
    best = int(np.argmax(worth(points)))
    error = _accuracy_error(summary, pool[best])
    raised = points + np.array([error * (name == _ACCURACY) for name in names])
    near = np.flatnonzero(worth(raised) >= worth(points)[best]).tolist()
    losses = {i: pool[i].metrics.get("loss", math.inf) for i in near}
    decided = len(near) > 1 and math.isfinite(losses[best])
    index = min(near, key=losses.__getitem__) if decided else best
    return Choice(pool[index], _reason(summary, aim, error, len(near) if decided else 1))


def _nearness(front: _Array) -> Callable[[_Array], _Array]:
    """Return the function that judges points by their distance from the best of a front."""
    low, high = front.min(0), front.max(0)
    scale = np.where(high > low, high - low, 1.0)
    # Rounded, so that equally near points are equal.
    return lambda points: -np.linalg.norm(np.maximum(0.0, high - points) / scale, axis=1).round(9)


def _accuracy_error(summary: StudySummary, trial: TrialRecord) -> float:
    """Return the standard error of a trial's validation accuracy; 0 where it is not known."""
    if summary.validation_images is None or _ACCURACY not in summary.metric_names:
        return 0.0
    assert trial.values is not None  # noqa: S101 - only complete trials are chosen from
    accuracy = trial.values[summary.metric_names.index(_ACCURACY)]
    return accuracy_error(accuracy, summary.validation_images)


def _reason(summary: StudySummary, aim: str | None, error: float, tied: int) -> str:
    """Say why a trial was chosen for an aim, by its loss if several are tied within the error."""
    one, by_loss = f"one standard error ({error:.2g})", "the one with the lowest validation loss"
    size = len(summary.front)
    if aim is None:
        goals = " and ".join(summary.metric_names)
        if size == 1:
            return f"no other trial beats it in {goals} at once"
        knee = f"the knee of the front of {size}: nearest to the best {goals} at once"
        like = f"that {one} of the accuracy does not set apart" if error else "equally near"
        return knee if tied == 1 else f"{knee}; of {tied} {like}, {by_loss}"
    if tied > 1:
        like = f"within {one} of" if error and aim == _ACCURACY else "with"
        return f"of {tied} {like} the best {aim}, {by_loss}"
    return f"the best {aim}" + (
        f" on the front of {size}" if size > 1 and len(summary.metric_names) > 1 else ""
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
        """Refuse a model of another architecture."""
        if self.architecture is not None and card.architecture != self.architecture:
            raise UsageError(
                f"{str(self.file)!r} has another architecture than the trial: its folder was"
                " trained into again; train the trial with another `out`, or name the file with"
                " `model`"
            )


def saved_model(study: optuna.Study, choice: Choice, artifacts: Path) -> SavedModel:
    """Return a trial's model: that of its final training if there is one, else the search's.

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
    name = f"{file_name(study.study_name)}-trial-{trial.number}"
    return SavedModel(file, name, f"{what}, {note}", architecture)
