"""What earlier versions stored of a trial without the prefix, as other people's objectives do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatsearch.spaces.space import Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsearch.record.trial import TrialRecord

__all__ = [
    "architecture",
    "diverged",
    "failure",
    "numbers",
    "stopped",
    "stored",
]

_NOT_FINITE = ("nan", "inf", "-inf")


def stored(trial: TrialRecord, key: str, kind: type) -> Any:
    """Return an attribute of a type; one of that name may be somebody's own."""
    found = trial.attributes.get(key)
    return found if type(found) is kind else None


def architecture(trial: TrialRecord) -> Architecture | None:
    """Return the architecture."""
    text = stored(trial, "architecture", str)
    return Architecture.from_json(text) if text and text.startswith("{") else None


def numbers(trial: TrialRecord) -> Mapping[str, float]:
    """Return the metrics: all attributes that are numbers."""
    return {
        name: float(value)
        for name, value in trial.attributes.items()
        if ":" not in name
        and (
            (isinstance(value, (int, float)) and not isinstance(value, bool))
            or value in _NOT_FINITE
        )
    }


def failure(trial: TrialRecord) -> str | None:
    """Return why the trial failed."""
    return None if trial.pruned_softly else stored(trial, "failure", str)


def stopped(trial: TrialRecord) -> str | None:
    """Return why the trial was pruned softly."""
    return stored(trial, "failure", str) if trial.pruned_softly else None


def diverged(trial: TrialRecord) -> bool:
    """Return whether training left the finite numbers."""
    # The pruner gave no reason then, and a trial that took over a result has that one's.
    return trial.state == "PRUNED" and trial.own and "failure" in trial.attributes
