"""A training step as one CUDA graph: launched once instead of kernel by kernel.

Small networks are limited by how fast Python can launch kernels; a graph replays all those of a
step (forward, backward, update) in one launch. The first steps of a training are plain ones, which
warm up; what cannot be captured, or has another shape, is a plain step as well.

A replay is what the kernels were when they were captured, so a network whose steps are not all
alike must not be captured: one that draws numbers on the host (layers that are left out at random
by Python), counts its own passes, or waits for the device to decide on. The last of the first steps
shows that.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

import torch

from flatsearch.flatness.state import State
from flatsearch.flatness.watch import other_generators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

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
        model: What is trained.
        undo: Called where a recording has failed, to take back what Python has noted of the step.

    Attributes:
        failure: Why there is no graph; empty if there is one, or none yet.
        replays: How many steps were replayed.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Tensor], None],
        model: nn.Module,
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        self._step, self._model, self._undo = step, model, undo
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
            if self._warm < _WARM_UP:
                self._step(x, y)
            else:
                self._watch(x, y)
        main.wait_stream(stream)

    def _watch(self, x: Tensor, y: Tensor) -> None:
        """Take a plain step, and note whether steps may not all be alike."""
        before = _OnHost(self._model)
        with _waits() as waits:
            self._step(x, y)
        self.failure = before.difference(_OnHost(self._model))
        if waits and not self.failure:
            self.failure = "a step waits for the device"

    def _capture(self, x: Tensor, y: Tensor) -> None:
        given = torch.empty_like(x), torch.empty_like(y)
        try:
            with _capture(x.device) as graph:
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


@contextlib.contextmanager
def _capture(device: torch.device) -> Iterator[torch.cuda.CUDAGraph]:
    """Capture what is launched inside; where that fails, leave torch as it was."""
    main, drawn = torch.cuda.current_stream(device), torch.cuda.get_rng_state(device)
    graph = torch.cuda.CUDAGraph()
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    try:
        # Other threads may use the device meanwhile.
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            yield graph
    except BaseException:
        # It would go on on that stream, and draw random numbers for a graph only.
        torch.cuda.set_stream(main)
        fresh = torch.Generator(device).set_state(drawn).graphsafe_get_state()
        torch.cuda.default_generators[device.index or 0].graphsafe_set_state(fresh)
        raise


@contextlib.contextmanager
def _waits() -> Iterator[list[str]]:
    """Yield a list of the times that the host waits for the device inside, filled at the end."""
    found: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for one in caught:
        if "synchronizing CUDA operation" in str(one.message):
            found.append(str(one.message))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


class _OnHost:
    """What a step can change on the host, where a graph does not see it."""

    def __init__(self, model: nn.Module) -> None:
        self._drawn = *other_generators(), torch.get_rng_state().numpy().tobytes()
        self._model = State(model)

    def difference(self, after: _OnHost) -> str:
        """Return why steps are not all alike; empty if they may be."""
        if self._drawn != after._drawn:
            return "a step draws random numbers on the host"
        if not self._model.same(after._model):
            return "a step changes more of the network than its weights and buffers"
        return ""


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
