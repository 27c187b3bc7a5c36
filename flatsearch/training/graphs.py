"""A training step as one CUDA graph: launched once instead of kernel by kernel.

Small networks are limited by how fast Python can launch kernels; a graph replays all those of a
step (forward, backward, update) in one launch. The first steps of a training are plain ones, which
warm up; what cannot be captured, or has another shape, is a plain step as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["GraphedStep"]

# Plain steps before the capture, on the stream that captures: libraries choose their kernels then.
_WARM_UP = 3
# What torch raises without CUDA, and where a step does what cannot be captured.
_NO_GRAPHS = (RuntimeError, AssertionError, NotImplementedError, ValueError)


class GraphedStep:
    """Calls a step, and replays it as a graph once it is warm.

    Args:
        step: Takes images and targets; everything else that it reads or writes stays where it is in
            memory.
        undo: Called where a recording has failed, to take back what Python has noted of the step.

    Attributes:
        failure: Why there is no graph; empty if there is one, or none yet.
        replays: How many steps were replayed.
    """

    def __init__(
        self, step: Callable[[Tensor, Tensor], None], undo: Callable[[], None] = lambda: None
    ) -> None:
        self._step, self._undo = step, undo
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: tuple[Tensor, Tensor] | None = None
        self._shape: torch.Size | None = None
        self._warm = 0
        self.failure = ""
        self.replays = 0

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Take one step."""
        self._shape = self._shape or x.shape
        if self.failure or x.shape != self._shape:
            self._step(x, y)
        elif self._warm < _WARM_UP:
            self._warm += 1
            self._warm_up(x, y)
        else:
            if self._graph is None:
                self._capture(x, y)
            self._replay(x, y)

    def _warm_up(self, x: Tensor, y: Tensor) -> None:
        try:
            stream: torch.cuda.Stream = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
            main = torch.cuda.current_stream(x.device)
        except _NO_GRAPHS as error:
            self.failure = _reason(error)
            self._step(x, y)
            return
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            self._step(x, y)
        main.wait_stream(stream)

    def _capture(self, x: Tensor, y: Tensor) -> None:
        given = torch.empty_like(x), torch.empty_like(y)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(*given)
        except _NO_GRAPHS as error:
            self.failure = _reason(error)
            self._undo()
        else:
            self._graph, self._given = graph, given

    def _replay(self, x: Tensor, y: Tensor) -> None:
        if self._graph is None or self._given is None:
            self._step(x, y)
            return
        self._given[0].copy_(x)
        self._given[1].copy_(y)
        self._graph.replay()
        self.replays += 1


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
