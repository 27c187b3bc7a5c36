"""Trials in several threads of one process take turns at what belongs to the process.

PyTorch's random numbers, its switches of precision and a CUDA graph that is being captured are the
process's. Of the trials that ``study.optimize(n_jobs=2)`` runs in threads therefore one computes at
a time, an epoch each, and every one with random numbers of its own: its numbers are those of
``n_jobs=1``. What uses several cores is PyTorch itself, or several workers.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import torch

from flatsearch.search.checkpoints import random_state, set_random_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Turns"]

_computes = threading.Lock()


class Turns:
    """The turns of one trial.

    Args:
        device: Where it computes.

    Attributes:
        random: The state of its random numbers between two turns; None before the first.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.random: Mapping[str, torch.Tensor] | None = None

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Wait for the others, and leave the process's random numbers as they were."""
        devices = [self._device] if self._device.type == "cuda" else []
        with _computes, torch.random.fork_rng(devices=devices):
            if self.random is not None:
                set_random_state(self.random, self._device)
            try:
                yield
            finally:
                self.random = random_state(self._device)
