"""A study as its sampler is to see it: every network once, with what is known of it.

Samplers know nothing of parked trials. TPE holds a pruned trial against its parameters, the parked
part of a network that was promoted since among them; in a study with several objectives it does not
even ask how far a pruned trial came; GP and NSGA-II leave pruned trials out. So a sampler is shown

- a network that has gone on as its first trial alone (the others were not proposed), but with what
  its last one ended with; the later ones, and duplicates, are shown as failed, from which samplers
  learn nothing;
- a parked network as complete, with the values that are predicted for the end of its training.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from flatsearch.pruners.metric_view import shown_study
from flatsearch.pruners.promoter import Promoter
from flatsearch.record import networks_of, read_trials
from flatsearch.record.constraints import shown_as_kept, with_constraints_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import optuna
    from optuna.trial import FrozenTrial

    from flatsearch.record import Network, TrialRecord

__all__ = ["predicted_finals", "seen"]

_TOLD = {"COMPLETE", "PRUNED"}


def seen(study: optuna.Study) -> optuna.Study:
    """Return a study as its sampler is to see it.

    Args:
        study: The study.

    Returns:
        The study itself where no trial can be parked.
    """
    if not isinstance(study.pruner, Promoter):
        return study
    known: tuple[tuple[int, int], list[FrozenTrial]] = (-1, -1), []

    def show(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        nonlocal known
        key = len(trials), sum(trial.state.is_finished() for trial in trials)
        found = known
        if found[0] != key:
            # Named perhaps after the first trial began.
            known = found = key, _show(trials, tuple(view.metric_names or ()))
        return found[1]

    view = shown_study(study, show)
    return view


def _show(trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[FrozenTrial]:
    records = {record.number: record for record in read_trials(trials)}
    networks = networks_of(records.values())
    parked = [r for r in records.values() if r.parked is not None and r.state in _TOLD]
    finals = predicted_finals(networks, parked, names)
    shown = {trial.number: trial for trial in trials}
    for number, values in finals.items():
        shown[number] = shown_as_kept(_told(shown[number], TrialState.COMPLETE, values))
    # A network that goes on is shown as it was parked.
    hidden = {r.number for r in records.values() if r.state == "RUNNING" and not r.begins}
    for network in networks:
        told = [n for n in network.parts if records[n].state in _TOLD]
        if len(told) > 1:
            last = shown[told[-1]]
            first = _told(shown[told[0]], last.state, last.values)
            shown[told[0]] = with_constraints_of(first, last)
            hidden.update(told[1:])
        if len(told) > 1 or finals.keys() & network.parts:
            # Told as the network was then, which says less than what is shown of it.
            hidden |= {r.number for r in records.values() if r.duplicate_of in network.parts}
    return [
        _told(trial, TrialState.FAIL, trial.values) if trial.number in hidden else trial
        for trial in shown.values()
    ]


def _told(trial: FrozenTrial, state: TrialState, values: list[float] | None) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = state
    shown.values = values
    return shown


def predicted_finals(
    networks: Sequence[Network], parked: Collection[TrialRecord], names: Sequence[str]
) -> dict[int, list[float]]:
    """Return the objective values that parked trials would end with.

    The value so far, and for each stretch between the epochs at which networks are parked, and then
    the end, the median of what the networks gained that were trained over all of it. Every network
    that has gone on teaches, none has to be finished first.

    Args:
        networks: Of the study.
        parked: The trials.
        names: The names of the objectives.

    Returns:
        The values by the trials' numbers; without those of which some are not known.
    """
    points = sorted({record.parked or 0 for record in parked})
    whole = [network for network in networks if network.final is not None]
    found = {}
    for record in parked:
        values = []
        for index, name in enumerate(names):
            value = record.steps.get((record.parked or 0) - 1, {}).get(name, math.nan)
            later = [point for point in points if point >= (record.parked or 0)]
            for start, end in pairwise(later):
                value += _gain(networks, name, start - 1, end - 1)
            last = [
                network.final[index] - network.steps[later[-1] - 1][name]
                for network in whole
                if network.final is not None and name in network.steps.get(later[-1] - 1, {})
            ]
            values.append(value + _median(last))
        if values and all(map(math.isfinite, values)):
            found[record.number] = values
    return found


def _gain(networks: Sequence[Network], name: str, start: int, end: int) -> float:
    gains = [
        network.steps[end][name] - network.steps[start][name]
        for network in networks
        if name in network.steps.get(start, {}) and name in network.steps.get(end, {})
    ]
    return _median(gains)


def _median(values: Iterable[float]) -> float:
    known = list(filter(math.isfinite, values))
    return median(known) if known else 0.0
