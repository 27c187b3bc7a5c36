"""What is stored of a trial.

A trial holds one attribute per reported step, ``flatsearch:step:N``, with that step's metrics, and
one per fact of `TrialRecord`. Architecture, recipe and final metrics are shown a second time
without the prefix, where people look for them and optuna-dashboard draws them. Nothing is stored as
Optuna intermediate values except a single-objective study's own objective: a pruned trial's last
intermediate value becomes its value, and Optuna's samplers rank pruned trials by it, so any other
metric there would steer the search; in a multi-objective study they would make the default sampler
fail.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any

import optuna
from optuna.trial import BaseTrial, TrialState

from flatsearch.errors import UsageError, hide_passwords
from flatsearch.record import earlier
from flatsearch.record.constraints import LIMIT, PRUNED_SOFTLY, read_constraints
from flatsearch.record.decisions import Decision, read_decisions
from flatsearch.record.facts import (
    PREFIX,
    UNREADABLE,
    Fact,
    Record,
    from_numbers,
    to_numbers,
)
from flatsearch.record.promotion import Promotion
from flatsearch.spaces.space import Architecture

__all__ = ["FINISHED", "STEP", "TrialRecord"]

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
STEP = f"{PREFIX}step:"
# Some databases keep 64 kilobytes of a text.
_LONGEST_TRACE = 20_000
_LONGEST_REASON = 500


def _first_words(reason: str) -> str:
    return " ".join(reason.split())[:_LONGEST_REASON]


def _two_numbers(stored: list[int]) -> tuple[int, int]:
    first, second = map(int, stored)
    return first, second


@cache
def _warn_once(damage: str) -> None:
    logging.getLogger("flatsearch").warning(f"{damage}; it is left out")


class TrialRecord(Record):
    """What is known of a trial, ours or not; read from Optuna's trial when it is looked at.

    Args:
        trial: A trial of any state.

    Attributes:
        number: Optuna's number of the trial.
        state: "COMPLETE", "PRUNED", "FAIL", "RUNNING" or "WAITING".
        values: The objective values; None unless Optuna's state is COMPLETE.
        params: Optuna's parameters.
        seconds: The time from start to end; None while running.
        worker: The process that runs the trial, see `flatsearch.search.liveness`.
        architecture: The architecture; None if the trial ended before one was suggested.
        recipe: The training settings that were suggested with the architecture; empty for none.
        network: What tells this candidate from others: equal for equal networks and recipes.
        duplicate_of: The number of the earlier trial of the same network whose result this one took
            over instead of training, if any.
        retrain_of: The number of the earlier trial of the same network, which this one trained
            again, if any.
        retried: Why the trial was trained once more, with every batch in two halves; None mostly.
        metrics: Final metrics and sizes by name; what is written is added to what there is.
        measured: The name of the convolution whose flatness was measured after every epoch.
        layers: The relative flatness of every convolution by name, in order of execution, where it
            was measured last.
        computation: The precision and the memory format that it was trained with, and why its steps
            were not replayed as a CUDA graph where they should have been; empty where that is not
            on record.
        schedule: On how many images and after which epochs flatness was measured, and at what share
            of the training; empty where that is not on record.
        artifact: The identifier of the saved model in the artifact store, if any.
        failure: Why the trial came to no result, where it was not the pruner.
        traceback: The traceback of the exception that it failed with.
        stopped: Why the pruner stopped the trial, if the objective says so.
        diverged: Whether training left the finite numbers.
        late: Whether the trial failed for want of time or budget or was interrupted, which is no
            fault of the candidate.
        promotion: How the trial goes on with the network of an earlier one; None for a trial of its
            own.
        parked: The number of epochs after which the trial was parked, if it was.
        guesses: Whether the network was hardly better than guessing the last time that mattered.
        audit: The number of epochs after which the trial would have been parked but for the audit,
            and the one up to which it went on; None mostly.
        checkpoint: The name of its network's checkpoint in the artifact store, if it has one.
        damage: Why the record cannot be read, if it cannot; it then says nothing else.
        superseded_by: The number of the later trial that went on with its network and has ended, if
            any; known where all trials are read together, by `flatsearch.record.read_trials`.
        behind: Whether the trial knows too little beside the best one to be on the front; known
            where all trials are read together.
    """

    worker = Fact[str | None](stored=str)
    architecture = Fact[Architecture | None](
        earlier.architecture,
        encode=Architecture.to_json,
        decode=Architecture.from_json,
        stored=str,
        public=lambda stored: {"architecture": stored},
    )
    recipe = Fact[Mapping[str, Any]](
        lambda trial: earlier.stored(trial, "recipe", dict) or {},
        stored=dict,
        public=lambda stored: {"recipe": stored},
    )
    network = Fact[str | None](stored=str)
    duplicate_of = Fact[int | None](
        lambda trial: earlier.stored(trial, "flatsearch:same_as", int), stored=int
    )
    retrain_of = Fact[int | None](
        lambda trial: earlier.stored(trial, "flatsearch:repeats", int), stored=int
    )
    retried = Fact[str | None](encode=_first_words, stored=str)
    metrics = Fact[Mapping[str, float]](
        earlier.numbers, encode=to_numbers, decode=from_numbers, stored=dict, public=dict, adds=True
    )
    measured = Fact[str | None](stored=str)
    computation = Fact[Mapping[str, str]](lambda _: {}, stored=dict)
    schedule = Fact[Mapping[str, Any]](lambda _: {}, stored=dict)
    layers = Fact[Mapping[str, float]](
        lambda _: {},
        encode=lambda values: to_numbers({name: float(f"{v:.6g}") for name, v in values.items()}),
        decode=from_numbers,
        stored=dict,
    )
    artifact = Fact[str | None](key="model", stored=str)
    failure = Fact[str | None](earlier.failure, encode=hide_passwords, stored=str)
    traceback = Fact[str | None](
        encode=lambda trace: hide_passwords(trace)[-_LONGEST_TRACE:], stored=str
    )
    stopped = Fact[str | None](earlier.stopped, stored=str)
    diverged = Fact[bool](earlier.diverged, stored=bool)
    late = Fact[bool](lambda _: False, stored=bool)
    promotion = Fact[Promotion | None](
        encode=Promotion.to_dict, decode=Promotion.from_dict, stored=dict
    )
    parked = Fact[int | None](stored=int)
    guesses = Fact[bool](lambda _: False, stored=bool)
    audit = Fact[tuple[int, int] | None](encode=list, decode=_two_numbers, stored=list)
    checkpoint = Fact[str | None](stored=str)

    def __init__(self, trial: BaseTrial) -> None:
        super().__init__(f"trial {trial.number}", trial.user_attrs)
        self.trial = trial
        self.number = trial.number
        self.params: Mapping[str, Any] = trial.params
        self.state = "RUNNING"
        self.values: tuple[float, ...] | None = None
        self.seconds: float | None = None
        self.superseded_by: int | None = None
        self.behind = False
        self.damage = ""
        if isinstance(trial, optuna.trial.FrozenTrial):
            self.state = trial.state.name
            if trial.state == TrialState.COMPLETE:
                self.values = tuple(trial.values or ())
                if not self.values or any(map(math.isnan, self.values)):
                    self.damaged("values", ValueError(f"{trial.values} are no results"))
            if trial.duration is not None:
                self.seconds = trial.duration.total_seconds()

    def damaged(self, key: str, error: Exception) -> None:
        """Say nothing any more, and say so: one bad trial is one bad trial."""
        try:
            super().damaged(key, error)
        except UsageError as damage:
            self.damage = str(damage)
            _warn_once(self.damage)
        # What is asked for from now on is that of a trial that has come to nothing.
        self.attributes, self.values, self.state = {}, None, "UNREADABLE"

    @property
    def readable(self) -> bool:
        """Whether everything on the record can be read; looks at all of it."""
        for name in _FACTS:
            getattr(self, name)
        return not self.damage

    @cached_property
    def constraints(self) -> dict[str, float]:
        """The values of Optuna's constraints by name; one above 0 is violated."""
        try:
            return {name: float(value) for name, value in read_constraints(self.trial).items()}
        except UNREADABLE as error:
            self.damaged("constraints", error)
            return {}

    @cached_property
    def steps(self) -> Mapping[int, Mapping[str, float]]:
        """The metrics of every reported step in ascending order; 0 is the first epoch."""
        key = STEP
        try:
            keys = {int(k[len(STEP) :]): k for k in self.attributes if k.startswith(STEP)}
            found = {}
            for step, key in sorted(keys.items()):
                found[step] = from_numbers(self.attributes[key])
        except UNREADABLE as error:
            self.damaged(key, error)
            return {}
        # What an earlier attempt has left is emptied: an attribute cannot be removed.
        return {step: metrics for step, metrics in found.items() if metrics}

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """What a pruner that says why decided, by step."""
        try:
            return read_decisions(self.attributes)
        except UNREADABLE as error:
            self.damaged("flatsearch:decision", error)
            return ()

    @property
    def feasible(self) -> bool:
        """Whether the trial keeps every constraint; one that does not is never on the front."""
        return not self.behind and all(value <= 0 for value in self.constraints.values())

    @property
    def over_limit(self) -> bool:
        """Whether the candidate costs more than the study allows, and was not trained."""
        return any(v > 0 for name, v in self.constraints.items() if name.startswith(LIMIT))

    @property
    def duplicate(self) -> bool:
        """Whether the trial took over the result of an earlier one of the same network."""
        return self.duplicate_of is not None

    @property
    def own(self) -> bool:
        """Whether the trial says something: is no duplicate, not over a limit, not superseded."""
        return not self.duplicate and not self.over_limit and self.superseded_by is None

    @property
    def finished(self) -> bool:
        """Whether the trial was trained, to the end or not, and no other one says more of it."""
        return self.state in {"COMPLETE", "PRUNED"} and self.own

    @property
    def begun_by(self) -> int:
        """The number of the trial that began the training of its network."""
        return self.number if self.promotion is None else self.promotion.trial

    @property
    def begins(self) -> bool:
        """Whether the trial, when it finishes, is the first one of its network that does."""
        return self.promotion is None or self.promotion.after == 0

    @property
    def trained(self) -> bool:
        """Whether the trial has had its turn: its network counts towards the budget, once."""
        told = self.state in {"COMPLETE", "PRUNED"} or self.parked is not None
        return told and not self.duplicate and not self.over_limit

    @property
    def counted(self) -> bool:
        """Whether the trial is the one for which its network counts towards the budget."""
        return self.begins and self.trained

    @property
    def cut_off(self) -> bool:
        """Whether the trial failed for no fault of the candidate: it may go on where it was."""
        return self.state == "FAIL" and (self.failure is None or self.late)

    @property
    def pruned_softly(self) -> bool:
        """Whether the trial was pruned and is told as complete, with a violated constraint."""
        return self.constraints.get(PRUNED_SOFTLY, 0.0) > 0

    @property
    def complete(self) -> bool:
        """Whether the trial has the values of its last epoch: those of a pruned one are earlier."""
        return self.values is not None and not self.pruned_softly

    @property
    def pruned(self) -> bool:
        """Whether the pruner stopped the trial, in either way."""
        hard = self.state == "PRUNED" and not self.diverged and not self.over_limit
        return hard or self.pruned_softly

    @property
    def halved(self) -> bool:
        """Whether the trial was trained with every batch in two halves, for want of memory."""
        return self.retried is not None

    @property
    def flag(self) -> Decision | None:
        """The decision by which the trial was flagged and run on all the same, if any."""
        return next((decision for decision in self.decisions if decision.runs_on), None)

    @property
    def audited(self) -> bool:
        """Whether the trial would have been pruned, and was run on for the audit."""
        return self.flag is not None and self.flag.outcome == "audited"

    @property
    def weight(self) -> float:
        """How many trials this one stands for: 1, or 1/chance if it was audited."""
        return 1.0 if self.flag is None else 1.0 / self.flag.chance


# All that a record says.
_FACTS = (
    *(name for name, fact in vars(TrialRecord).items() if isinstance(fact, Fact)),
    "constraints",
    "decisions",
    "steps",
)
