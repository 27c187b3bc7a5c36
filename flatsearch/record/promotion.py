"""How a trial goes on with the network of an earlier one, as stored with the trial."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Promotion"]


@dataclass(frozen=True)
class Promotion:
    """What a trial that goes on with the network of an earlier one was told.

    Attributes:
        trial: The number of the trial that began the network's training.
        after: The number of epochs after which the network was parked last; 0 if its trial was cut
            off before it was ever parked.
        until: The number of epochs up to which no pruner stops it.
        why: "rule" if it is among the best where it was parked, "last" if nothing else would have
            been trained to the end, "cut off" if its trial was.
    """

    trial: int
    after: int
    until: int
    why: Literal["rule", "last", "cut off"] = "rule"

    def same_as(self, other: Promotion) -> bool:
        """Return whether the other one goes on with the same network from the same epoch."""
        return (self.trial, self.after) == (other.trial, other.after)

    def to_dict(self) -> dict[str, Any]:
        """Return the promotion as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Promotion:
        """Return the promotion of which `to_dict` gave these entries."""
        return cls(**stored)
