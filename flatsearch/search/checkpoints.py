"""Networks in training, as files in the artifact store: saved after an epoch, gone on with later.

A checkpoint has two places, which are written in turn, and the older one is removed after the newer
one is written: a process that is killed at any moment leaves a whole one. Nothing in it is code.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from optuna.artifacts.exceptions import ArtifactNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO, Protocol

    class Store(Protocol):
        """Any of Optuna's artifact stores."""

        def open_reader(self, artifact_id: str) -> BinaryIO: ...

        def write(self, artifact_id: str, content_body: BinaryIO) -> None: ...

        def remove(self, artifact_id: str) -> None: ...


__all__ = ["Checkpoint", "Checkpoints", "random_state", "set_random_state"]

_FORMAT = "flatsearch-checkpoint"
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A network in training, after an epoch.

    Attributes:
        network: What tells the network from others.
        epochs: The number of epochs that it has been trained for.
        state: All that is needed to go on: tensors and plain values.
        steps: The metrics of every step so far.
        fixed: What is known of the network untrained.
    """

    network: str
    epochs: int
    state: dict[str, Any]
    steps: Mapping[int, Mapping[str, float]]
    fixed: Mapping[str, float]

    def is_whole(self) -> bool:
        """Return whether the parts are what they should be, as far as they can be looked at."""
        kinds = (str, int, dict, dict, dict)
        values = (self.network, self.epochs, self.state, self.steps, self.fixed)
        return (
            all(map(isinstance, values, kinds))
            and self.epochs - 1 in self.steps
            and all(isinstance(metrics, dict) for metrics in self.steps.values())
            and isinstance(self.state.get("accumulate", 1), int)
        )


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of PyTorch's random numbers on the CPU and on a device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Go on with the random numbers where `random_state` was called."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


class Checkpoints:
    """The checkpoints in an artifact store.

    Args:
        store: Any artifact store of Optuna; one that all workers share.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._dropped: set[str] = set()

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Save a checkpoint, and then remove the one before, if there is one.

        Args:
            name: The checkpoint's name.
            checkpoint: The network.
        """
        file = io.BytesIO()
        fields = {field: getattr(checkpoint, field) for field in checkpoint.__dataclass_fields__}
        torch.save({"format": _FORMAT, "version": _VERSION, **fields}, file)
        file.seek(0)
        newer, older = _places(name, checkpoint.epochs)
        self._store.write(newer, file)
        self._remove(older)
        self._dropped.discard(name)

    def load(self, name: str, device: torch.device) -> Checkpoint | None:
        """Return the newest whole checkpoint of a name; None if there is none.

        Args:
            name: The checkpoint's name.
            device: Where its tensors are wanted.
        """
        found = [self._read(place, device) for place in _places(name, 0)]
        whole = [checkpoint for checkpoint in found if checkpoint is not None]
        return max(whole, key=lambda checkpoint: checkpoint.epochs, default=None)

    def has(self, name: str) -> bool:
        """Return whether there is a checkpoint of a name, whole or not."""
        return any(map(self._exists, _places(name, 0)))

    def drop(self, name: str) -> None:
        """Remove a checkpoint, if it is there."""
        if name not in self._dropped:
            for place in _places(name, 0):
                self._remove(place)
            self._dropped.add(name)

    def _remove(self, place: str) -> None:
        try:
            self._store.remove(place)
        except ArtifactNotFound:
            pass
        except Exception:
            # Not every store says so when there is nothing to remove.
            if self._exists(place):
                raise

    def _exists(self, place: str) -> bool:
        try:
            with self._store.open_reader(place):
                return True
        except ArtifactNotFound:
            return False

    def _read(self, place: str, device: torch.device) -> Checkpoint | None:
        try:
            with self._store.open_reader(place) as file:
                content = io.BytesIO(file.read())
            stored = torch.load(content, map_location=device, weights_only=True)
            if stored.pop("format") != _FORMAT or stored.pop("version") > _VERSION:
                return None
            found = Checkpoint(**stored)
            return found if found.is_whole() else None
        except Exception:  # none, or a half-written one, which can fail in any way
            return None


def _places(name: str, epochs: int) -> tuple[str, str]:
    """Return where a checkpoint after so many epochs is, and where the one before it was."""
    return f"{name}-{epochs % 2}.pt", f"{name}-{1 - epochs % 2}.pt"
