"""Decisions of a pruner that says why, as stored with a trial."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flatsearch.record.facts import PREFIX, to_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Decision", "read_decisions", "write_decision"]

_DECISION = f"{PREFIX}decision:"


@dataclass(frozen=True)
class Decision:
    """What a pruner decided after a step, and why.

    Attributes:
        step: The step.
        probability: The predicted probability of ending among the best; NaN where nothing was
            predicted.
        limit: The probability below which a trial is flagged; NaN in the start-up.
        outcome: "start-up", "kept", "pruned"; of a flagged trial that is run on "audited" or
            "suspended" (pruning is), and "under audit" at later steps.
        chance: The probability with which a trial that is flagged here is run on.
        n_trials: The number of complete trials that the prediction was learnt from.
        best: The share of all trials that counts as the best; None where it is the front.
    """

    step: int
    probability: float
    limit: float
    outcome: str
    chance: float
    n_trials: int
    best: float | None = None

    @property
    def runs_on(self) -> bool:
        """Whether the trial is flagged here, and run on all the same."""
        return self.outcome in {"audited", "suspended"}


class TakesAttributes(Protocol):
    """A running trial, or the copy of one that a pruner is given."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Store an attribute."""


def write_decision(trial: TakesAttributes, decision: Decision) -> None:
    """Store what a pruner decided after a step."""
    fields = asdict(decision)
    key = f"{_DECISION}{fields.pop('step')}"
    numbers = {name: value for name, value in fields.items() if isinstance(value, float)}
    trial.set_user_attr(key, {**fields, **to_numbers(numbers)})


def read_decisions(attributes: Mapping[str, Any]) -> tuple[Decision, ...]:
    """Return the decisions among a trial's attributes in the order of steps."""
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
        for key, value in attributes.items()
        if key.startswith(_DECISION)
    ]
    return tuple(sorted(found, key=lambda decision: decision.step))
