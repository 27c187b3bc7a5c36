"""Decisions of the calibrated pruner, as stored with a trial."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flatsearch.record.numbers import to_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    import optuna

__all__ = ["AUDITED", "Decision", "first_flag", "read_decisions", "stands_for", "write_decision"]

# Outcomes of a decision that flags a trial and runs it on.
AUDITED = ("audited", "suspended")
_DECISION = "flatsearch:decision:"


@dataclass(frozen=True)
class Decision:
    """What a pruner decided after a step, and why.

    Attributes:
        step: The step.
        probability: Of ending among the best, as predicted; NaN where nothing was.
        limit: A smaller probability flags a trial; NaN in the start-up.
        outcome: "start-up", "kept", "pruned"; of a flagged trial that is run on "audited" or
            "suspended" (pruning is), and "under audit" at later steps.
        chance: The probability with which a trial that is flagged here is run on.
        n_trials: Complete trials that it was learnt from.
        best: The share of all trials that counts as the best; None where it is the front.
    """

    step: int
    probability: float
    limit: float
    outcome: str
    chance: float
    n_trials: int
    best: float | None = None


class TakesAttributes(Protocol):
    """A running trial, as far as this module needs one."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Store an attribute."""


def write_decision(trial: TakesAttributes, decision: Decision) -> None:
    """Store what a pruner decided after a step."""
    stored = {k: to_json(v) if isinstance(v, float) else v for k, v in asdict(decision).items()}
    trial.set_user_attr(f"{_DECISION}{stored.pop('step')}", stored)


def first_flag(decisions: Iterable[Decision]) -> Decision | None:
    """Return the decision by which a trial was flagged and run on all the same, or None."""
    return next((decision for decision in decisions if decision.outcome in AUDITED), None)


def stands_for(decisions: Iterable[Decision]) -> float:
    """Return how many trials one stands for among all: more than itself if it was audited."""
    flag = first_flag(decisions)
    return 1.0 if flag is None else 1.0 / flag.chance


def read_decisions(trial: optuna.trial.FrozenTrial) -> list[Decision]:
    """Return a trial's decisions in the order of steps."""
    found = [
        Decision(
            step=int(key[len(_DECISION) :]),
            probability=float(value["probability"]),
            limit=float(value["limit"]),
            outcome=str(value["outcome"]),
            chance=float(value["chance"]),
            n_trials=int(value["n_trials"]),
            best=value.get("best"),
        )
        for key, value in trial.user_attrs.items()
        if key.startswith(_DECISION)
    ]
    return sorted(found, key=lambda decision: decision.step)
