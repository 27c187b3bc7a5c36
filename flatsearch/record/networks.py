"""The networks of a study: which trials are parts of the training of one and the same.

A trial whose turn is over is *parked*: it ends, with its network's training kept. A network that is
*promoted* goes on in a new trial, whose curve begins with the steps of the earlier ones. Of all
those trials the last one that has ended says everything; the others are *superseded* by it. This is
the only place where that is worked out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flatsearch.record.promotion import Promotion
from flatsearch.record.trial import TrialRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optuna.trial import FrozenTrial

    from flatsearch.record.study import LeastAccuracy

__all__ = ["Network", "least_accuracy", "networks_of", "read_trials"]

# A network whose process has died this often is what kills it.
_MOST_DEATHS = 3


@dataclass(frozen=True)
class Network:
    """A network in training, as a rule sees it that promotes parked ones.

    Attributes:
        number: The number of the trial that began its training.
        steps: The metrics of every step so far; 0 is the first epoch.
        fixed: What no epoch changes, by name, for example the number of parameters.
        parked: The number of epochs after which it is parked; None if it is not, or cannot go on.
        resumes: How it goes on, if its last trial was cut off in training, and it can.
        busy: Whether a trial of it is running or waiting to be.
        final: The objective values, if it has been trained to the end.
        feasible: Whether it was better than guessing the last time that mattered.
        audit: See `TrialRecord.audit`.
        parts: The numbers of its trials.
    """

    number: int
    steps: Mapping[int, Mapping[str, float]]
    fixed: Mapping[str, float] = field(default_factory=dict)
    parked: int | None = None
    resumes: Promotion | None = None
    busy: bool = False
    final: tuple[float, ...] | None = None
    feasible: bool = True
    audit: tuple[int, int] | None = None
    parts: tuple[int, ...] = ()

    def parked_between(self, rung: int, following: int) -> bool:
        """Return whether it is parked at a rung, or beyond it by a rule with other rungs."""
        return self.parked is not None and rung <= self.parked < following

    @property
    def acquitted(self) -> bool | None:
        """Whether it went on for the audit and was among the best of the next rung.

        Returns:
            None if there was no audit, or it is not known yet.
        """
        if self.audit is None or (self.busy and len(self.steps) <= self.audit[1]):
            return None
        return len(self.steps) > self.audit[1] or self.final is not None


def networks_of(trials: Iterable[TrialRecord]) -> list[Network]:
    """Return the networks that trials train, without duplicates, failures and those over a limit.

    Args:
        trials: All trials of a study.

    Returns:
        The networks in the order of their first trials.
    """
    grouped = sorted(_grouped(trials).items())
    # Of those that somebody else trains, or has trained, since.
    keys = {p.network for _, parts in grouped for p in parts if p.state != "FAIL"}
    found = []
    for number, parts in grouped:
        network = _network(number, parts)
        fails = all(part.state == "FAIL" for part in parts)
        again = fails and parts[0].network is not None and parts[0].network in keys
        if (network.resumes or network.parked or not fails) and not again:
            found.append(network)
    return found


def read_trials(
    trials: Iterable[FrozenTrial],
    least: LeastAccuracy | None = None,
    unreadable: dict[int, str] | None = None,
) -> tuple[TrialRecord, ...]:
    """Return the readable records of trials, which know by which other one they are superseded.

    Args:
        trials: All trials of the study.
        least: What those must have learnt that are to be on the front. The best trial may have
            come after the one that is judged, so this is told here and not when a trial ends.
        unreadable: Is given the numbers of those that cannot be read, and why.

    Returns:
        Their records, in the same order; those that cannot be read are left out.
    """
    found = list(map(TrialRecord, trials))
    records = tuple(record for record in found if record.readable)
    if unreadable is not None:
        unreadable.update({record.number: record.damage for record in found if record.damage})
    for parts in _grouped(records).values():
        finished = [part for part in parts if part.finished]
        for part in finished[:-1]:
            part.superseded_by = finished[-1].number
    enough = least_accuracy(records, least)
    for record in records:
        if record.complete and least is not None and enough is not None:
            record.behind = record.metrics.get(least.metric, math.inf) < enough
    return records


def least_accuracy(trials: Iterable[TrialRecord], least: LeastAccuracy | None) -> float | None:
    """Return the accuracy that a trial of the front must have, as the best one is now.

    Args:
        trials: All trials of a study.
        least: What the study says; see `StudyRecord`.

    Returns:
        The validation accuracy; None where the study does not say, or no trial is complete.
    """
    if least is None:
        return None
    known = [t.metrics.get(least.metric, math.nan) for t in trials if t.complete]
    return max((least.beside(x) for x in known if math.isfinite(x)), default=None)


def _grouped(trials: Iterable[TrialRecord]) -> dict[int, list[TrialRecord]]:
    parts = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: trial.number):
        if not trial.duplicate and not trial.over_limit:
            parts[trial.begun_by].append(trial)
    return parts


def _network(number: int, parts: Sequence[TrialRecord]) -> Network:
    # A running trial that says that it is parked is about to be told.
    busy = any(p.state == "WAITING" or (p.state == "RUNNING" and p.parked is None) for p in parts)
    # So is, as good as, one whose process died in between.
    ended = [p for p in parts if p.finished or p.parked is not None]
    last = ended[-1] if ended else None
    in_training = [p for p in parts if p.checkpoint is not None]
    cut = in_training[-1] if in_training else None
    after = 0 if last is None else last.parked
    failed = [p for p in parts if p.state == "FAIL"]
    deaths = sum(p.failure is None for p in failed)
    works = all(p.cut_off for p in failed) and deaths < _MOST_DEATHS
    goes_on = works and not busy
    resumes = None
    if goes_on and cut is not None and cut.state == "FAIL" and cut.parked is None:
        until = 0 if cut.promotion is None else cut.promotion.until
        resumes = Promotion(number, after or 0, until, "cut off")
    steps: dict[int, Mapping[str, float]] = {}
    fixed: dict[str, float] = {}
    feasible = True
    for part in parts:
        steps |= part.steps
        fixed |= part.metrics
        if part.state != "FAIL" and part.steps:
            feasible = not part.guesses
    return Network(
        number,
        steps=steps,
        fixed=fixed,
        parked=after or None if goes_on and resumes is None else None,
        resumes=resumes,
        busy=busy,
        final=last.values if last is not None and last.complete else None,
        feasible=feasible,
        audit=next((p.audit for p in parts if p.audit is not None), None),
        parts=tuple(part.number for part in parts),
    )
