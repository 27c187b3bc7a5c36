"""A study as numbers: trials, Pareto front, what its signals and pruning did."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flatsearch.analysis.correlations import (
    FlatnessGain,
    SignalCorrelation,
    flatness_gain,
    signal_correlations,
)
from flatsearch.analysis.pruning import PruningEffect, pruning_effect
from flatsearch.analysis.selection import choose_best
from flatsearch.errors import FlatsearchError
from flatsearch.notebooks import card
from flatsearch.pareto import front_of, signs
from flatsearch.record import StudyRecord, least_accuracy, read_trials
from flatsearch.spaces.words import short_form, varied

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import optuna

    from flatsearch.analysis.selection import Choice
    from flatsearch.record import TrialRecord

__all__ = ["StudySummary", "finite", "outcome", "require_complete", "summarise"]


@dataclass(frozen=True)
class StudySummary:
    """What is to be said about a study.

    Attributes:
        name: The study's name.
        metric_names: One per objective.
        directions: "minimize" or "maximize" per objective.
        settings: What all trials share; None if the study is not ours.
        counts: Trials by state; "DUPLICATE" for those that took over an earlier result,
            "OVER LIMIT" for those that were not trained for their cost, "DIVERGED" for those whose
            training left the finite numbers, "PARKED" for those that may go on, "PROMOTED" for
            those whose network went on in a later trial, which counts instead.
        trials: All trials.
        front: Numbers of the Pareto-optimal trials, best first in the first objective; of the
            best trial alone if there is one objective, see `choose_best`.
        correlations: How the early signals rank the trials; empty with too few complete ones.
        gain: What flatness adds to the other signals, empty with too few complete trials.
        pruning: What pruning saved and cost; None where there was none.
        validation_images: The number of images that accuracies are of; None where it is unknown.
        least_accuracy: The validation accuracy that a trial must have to be on the front, where it
            follows the best one; None elsewhere.
        unreadable: Why the record of a trial cannot be read, by its number; such trials are left
            out of everything else, but that they are counted as "UNREADABLE".
    """

    name: str
    metric_names: tuple[str, ...]
    directions: tuple[str, ...]
    settings: dict[str, Any] | None
    counts: dict[str, int]
    trials: tuple[TrialRecord, ...]
    front: tuple[int, ...]
    correlations: tuple[SignalCorrelation, ...]
    gain: tuple[FlatnessGain, ...] = ()
    pruning: PruningEffect | None = None
    validation_images: int | None = None
    least_accuracy: float | None = None
    unreadable: dict[int, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """Return what notebooks show: the front, and the trial to go on with."""
        front = [self.trial(number) for number in self.front]
        return card(
            f"study {self.name}: {self.counted() or 'no trials'}",
            ("trial", *self.metric_names, "architecture"),
            [(t.number, *(f"{x:.4g}" for x in t.values or ()), self.describe(t)) for t in front],
            [self.chosen()],
        )

    def counted(self) -> str:
        """Return how many trials there are of each outcome; empty where there are none."""
        return ", ".join(f"{n} {state.lower()}" for state, n in sorted(self.counts.items()))

    def chosen(self) -> str:
        """Return which trial is the best to go on with, and why; empty where none is."""
        best = self.best
        return f"The trial to go on with is {best.trial.number}: {best.reason}." if best else ""

    @cached_property
    def varied(self) -> frozenset[str]:
        """The names of the architecture's and the recipe's values that differ between trials."""
        return varied(map(_values_of, self.trials))

    def describe(self, trial: TrialRecord) -> str:
        """Return in a few words what tells a trial's architecture and recipe from the others'."""
        return short_form(_values_of(trial), self.varied)

    @property
    def accuracy(self) -> str:
        """The accuracy by which it is judged what a network has learnt, in words."""
        return "balanced accuracy" if "balanced_accuracy" in self.metric_names else "accuracy"

    def trial(self, number: int) -> TrialRecord:
        """Return a trial by its number."""
        return next(trial for trial in self.trials if trial.number == number)

    def ranked(self) -> list[TrialRecord]:
        """Return the trials that have values, best first in the first objective."""
        sign = -signs(self.directions)[0]
        current = [t for t in self.trials if t.superseded_by is None]
        found = [(sign * t.values[0], t.number, t) for t in current if t.values is not None]
        return [trial for *_, trial in sorted(found)]

    def eligible(self) -> list[TrialRecord]:
        """Return the trials that can be the best: complete, of their own, and within constraints.

        A result that was taken over is an earlier trial's.
        """
        return [trial for trial in self.trials if trial.complete and trial.own and trial.feasible]

    @property
    def best(self) -> Choice | None:
        """The best trial, with the reason; None if there is none."""
        return choose_best(self) if self.front else None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON types; what is not finite becomes None."""
        trials = [
            {
                "number": trial.number,
                "state": trial.state,
                "values": None
                if trial.values is None
                else dict(zip(self.metric_names, trial.values, strict=True)),
                "params": dict(trial.params),
                "architecture": trial.architecture and dict(trial.architecture.values),
                "metrics": dict(trial.metrics),
                "measured_layer": trial.measured,
                "epochs": [{"epoch": step + 1, **metrics} for step, metrics in trial.steps.items()],
                "recipe": dict(trial.recipe) or None,
                "duplicate_of": trial.duplicate_of,
                "retrain_of": trial.retrain_of,
                "parked": trial.parked,
                "goes_on_with": trial.promotion and trial.promotion.trial,
                "failure": trial.failure,
                "stopped": trial.stopped,
                "model": trial.artifact,
                "seconds": trial.seconds,
            }
            for trial in self.trials
        ]
        best = self.best
        fields = {
            "study": self.name,
            "objectives": dict(zip(self.metric_names, self.directions, strict=True)),
            "settings": self.settings,
            "counts": self.counts,
            "unreadable": {str(number): why for number, why in self.unreadable.items()},
            "pareto_front": list(self.front),
            "least_accuracy": self.least_accuracy,
            "best": best and {"trial": best.trial.number, "reason": best.reason},
            "signal_correlations": [asdict(found) for found in self.correlations],
            "flatness_gain": [asdict(gain) for gain in self.gain],
            "pruning": self.pruning and asdict(self.pruning),
            "trials": trials,
        }
        cleaned: dict[str, Any] = finite(fields)
        return cleaned


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(study: optuna.Study, *, statistics: bool = True) -> StudySummary:
    """Return what is to be said about a study; one not made by flatsearch has fewer facts.

    The statistics, what signals and pruning did, may take seconds.
    """
    frozen = study.get_trials(deepcopy=False)
    known = StudyRecord(study)
    unreadable: dict[int, str] = {}
    trials = read_trials(frozen, known.least, unreadable)
    directions = tuple(direction.name.lower() for direction in study.directions)
    names = study.metric_names or [f"value {i}" for i in range(len(directions))]
    # A result that was taken over is an earlier trial's: neither a point of its own on the front
    # nor another observation.
    complete = [t for t in trials if t.complete and t.own]
    sign = -signs(directions)[0]
    first = {trial.number: sign * (trial.values or ())[0] for trial in complete}
    front = _front([t for t in complete if t.feasible], directions) if len(directions) > 1 else []
    front.sort(key=first.__getitem__)
    summary = StudySummary(
        name=study.study_name,
        metric_names=tuple(names),
        directions=directions,
        settings=known.settings,
        counts=dict(Counter([*map(outcome, trials), *("UNREADABLE" for _ in unreadable)])),
        trials=trials,
        front=tuple(front),
        correlations=tuple(signal_correlations(complete)) if statistics else (),
        gain=tuple(flatness_gain(complete)) if statistics else (),
        pruning=pruning_effect(trials, directions, (known.settings or {}).get("epochs"))
        if statistics
        else None,
        validation_images=known.validation_images,
        least_accuracy=least_accuracy(trials, known.least),
        unreadable=unreadable,
    )
    if len(directions) == 1 and summary.eligible():
        return replace(summary, front=(choose_best(summary).trial.number,))
    return summary


def _values_of(trial: TrialRecord) -> Mapping[str, Any]:
    """Return an architecture and its recipe by name; Optuna's parameters where there is none."""
    if trial.architecture is None:
        return trial.params
    return {**trial.architecture.values, **trial.recipe}


def _front(trials: Sequence[TrialRecord], directions: Sequence[str]) -> list[int]:
    """Return the numbers of the trials that no other dominates."""
    shape = len(trials), len(directions)
    points = np.array([trial.values for trial in trials]).reshape(shape) * signs(directions)
    best = set(map(tuple, front_of(points)))
    return [t.number for t, point in zip(trials, points, strict=True) if tuple(point) in best]


def outcome(trial: TrialRecord) -> str:
    """Return what became of a trial: Optuna's state, or what says more; see `StudySummary`."""
    if trial.duplicate:
        return "DUPLICATE"
    if trial.superseded_by is not None:
        return "PROMOTED"
    if trial.diverged:
        return "DIVERGED"
    if trial.parked is not None and trial.finished:
        return "PARKED"
    return "OVER LIMIT" if trial.over_limit else trial.state


def require_complete(summary: StudySummary) -> None:
    """Refuse a study without a complete trial, and say why the last one is not."""
    if "COMPLETE" not in summary.counts:
        reasons = [trial.failure for trial in summary.trials if trial.failure]
        last = f"; the last one: {reasons[-1]}" if reasons else ""
        raise FlatsearchError(f"no trial completed{last}")
