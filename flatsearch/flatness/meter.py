"""`FlatnessMeter`: the measure of one network, again and again while it is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.accumulator import Accumulator
from flatsearch.flatness.batches import (
    MOST_SAMPLES,
    Data,
    as_batches,
    can_be_read_again,
    first_samples,
    iterate,
    memory_budget,
    most_samples,
    split,
)
from flatsearch.flatness.forward import ForwardError
from flatsearch.flatness.graph import ordered
from flatsearch.flatness.layers import locate
from flatsearch.flatness.normalise import input_scales
from flatsearch.flatness.precision import device_and_dtype, exact_arithmetic
from flatsearch.flatness.probe import explained
from flatsearch.flatness.replica import unwrapped
from flatsearch.flatness.samplewise import is_samplewise, refuse_mixed_samples
from flatsearch.flatness.state import State
from flatsearch.flatness.truth import handwritten
from flatsearch.flatness.watch import keep_random_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flatsearch.flatness.forward import Network
    from flatsearch.flatness.layers import Located
    from flatsearch.flatness.program import Program
    from flatsearch.flatness.result import FlatnessResult
    from flatsearch.flatness.watch import RandomState

__all__ = ["FlatnessMeter", "Normalize"]

Normalize = Literal["input"]
Programs = dict[Any, list[Any]]


@dataclass
class _Prepared:
    """What has been proved of a model, and is believed while nothing of it changes.

    Attributes:
        network: The copy of the model.
        found: What is measured.
        state: What the model was.
        twins: The copy's tensors, in the order of the model's.
        programs: What passes were like, by the shape of the batch.
        samplewise: Whether the operations prove that samples do not mix; None where it has not been
            asked yet.
    """

    network: Network
    found: Located
    state: State
    twins: list[Tensor]
    programs: Programs
    samplewise: bool | None = None

    @torch.no_grad()
    def refresh(self, now: State) -> None:
        """Give the copy the model's values."""
        torch._foreach_copy_(self.twins, [tensor.detach() for tensor in now.tensors])


class _ChangedError(Exception):
    """A pass is not what it was when the model was proved."""


class FlatnessMeter:
    """Measures one network again and again, exactly as `relative_flatness` does, for less.

    What is proved of a model from what it calls holds for any weights, so it is proved once. Every
    call then looks whether the model is still made of the same modules, hooks and numbers, takes
    over its weights and buffers, and follows every forward pass: if a call differs in anything from
    what was proved, the model is proved anew. What depends on the images or on the weights (the
    recorded graph of every batch, finite numbers, rounding) is judged on every batch. A model of
    which not everything can be followed (random numbers, gradients by hand, state that its forward
    pass changes) is proved on every call.

    Not to be called from several threads at the same time.

    Args:
        model: See `flatsearch.relative_flatness`, as for all arguments.
        layers: The convolutions to measure.
        normalize: None or "input".
        dtype: The precision.
        batch_size: The most samples at a time.
        classes: The most backward passes per batch.
        skip_unsupported: Whether layers that are not covered are left out.

    Attributes:
        proofs: How often the model has been proved.

    Raises:
        TypeError: If the model is no module.
        ValueError: If an argument is out of range.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(1, 2))
        >>> meter = FlatnessMeter(net)
        >>> images = torch.ones(2, 1, 1, 1), torch.tensor([0, 1])
        >>> before = meter(images)
        >>> with torch.no_grad():
        ...     _ = net[0].weight.mul_(2)
        >>> meter(images) != before, meter.proofs
        (True, 1)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] = "last",
        normalize: Normalize | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        classes: int | None = None,
        *,
        skip_unsupported: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module but got {type(model).__name__}")
        if normalize not in {None, "input"}:
            raise ValueError(f"`normalize` must be None or 'input' but got {normalize!r}")
        for name, value in (("batch_size", batch_size), ("classes", classes)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be at least 1 but got {value!r}")
        if not (isinstance(layers, (str, Sequence)) and layers) or not all(
            isinstance(name, str) for name in layers
        ):
            raise ValueError(
                f"`layers` must be 'last', 'main', 'all', 'head', or names but got {layers!r}"
            )
        self._layers = layers if isinstance(layers, str) else tuple(layers)
        self._given, self._normalize = model, normalize
        self._dtype, self._batch_size, self._classes = dtype, batch_size, classes
        self._skip = skip_unsupported
        self._prepared: dict[Any, _Prepared] = {}
        self.proofs = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is prepared, of which copies have nothing."""
        return {**self.__dict__, "_prepared": {}}

    def __call__(self, data: Data) -> FlatnessResult:
        """Measure the model as it is now.

        Args:
            data: A pair (inputs, integer targets) of tensors, or an iterable of such batches.

        Returns:
            What `relative_flatness` returns.

        Raises:
            UnsupportedModelError: If the derivation does not cover the model; names the layer.
            NonFiniteError: If the logits are NaN or infinite.
            ValueError: If the data are empty or malformed.
            TypeError: If the inputs are no dense floating-point tensors.
        """
        return self.accumulate(data).result(self._normalize)

    def accumulate(self, data: Data, *, keep: bool = True) -> Accumulator:
        """Return the numbers of every sample, which a result reduces.

        Args:
            data: The images.
            keep: Whether what is proved is kept for another call.

        Returns:
            The numbers.
        """
        model = unwrapped(self._given)
        device, dtype = device_and_dtype(model, self._dtype)
        batches = as_batches(data, twice=self._normalize is not None)
        with exact_arithmetic(device), keep_random_state(device) as random:
            again = can_be_read_again(batches)
            run = _Run(self, model, device, batches, random, keep=keep and again)
            try:
                measured = run.measure(self._layers, dtype, self._batch_size)
            except ForwardError as error:
                before = random.current()
                reason = explained(model, error)
                random.notice(before)
                raise reason from reason.__cause__
            uncertain = measured.uncertain()
            if uncertain and dtype == torch.float32 and again:
                size = None if self._batch_size is None else max(1, self._batch_size // 2)
                # Not every model and device can: then it is left at saying so, in `rounding`.
                with contextlib.suppress(RuntimeError, TypeError, UnsupportedModelError):
                    measured.replace(run.measure(tuple(uncertain), torch.float64, size))
        return measured


class _Run:
    """One call of a meter."""

    def __init__(
        self,
        meter: FlatnessMeter,
        model: nn.Module,
        device: torch.device,
        batches: Iterable[tuple[Tensor, Tensor]],
        random: RandomState,
        *,
        keep: bool,
    ) -> None:
        self._meter, self._model, self._batches = meter, model, batches
        self._random, self._keep = random, keep
        self._device = device
        self._now = State(model) if keep else None

    def measure(
        self, layers: str | tuple[str, ...], dtype: torch.dtype, batch_size: int | None
    ) -> Accumulator:
        """Measure some layers in a precision, with what is prepared for them if it still holds."""
        prepared = self._meter._prepared.pop((layers, dtype), None)
        if self._now is not None and prepared is not None and prepared.state.same(self._now):
            # Whatever is wrong now shows again below, and is said there.
            with contextlib.suppress(Exception):
                measured = self._again(prepared, dtype, batch_size)
                self._meter._prepared[layers, dtype] = prepared
                return measured
        return self._anew(layers, dtype, batch_size)

    def _again(
        self, prepared: _Prepared, dtype: torch.dtype, batch_size: int | None
    ) -> Accumulator:
        assert self._now is not None  # noqa: S101 - what is prepared is used only where it is kept
        prepared.refresh(self._now)
        source = iterate(self._batches, self._device, dtype, MOST_SAMPLES)
        first = first_samples(source)
        network, x = prepared.network, first[0]
        if prepared.samplewise is None:
            prepared.samplewise = is_samplewise(network, x)
        if not prepared.samplewise:
            refuse_mixed_samples(network, x)
        known = prepared.programs

        def check(program: Program, logits: Tensor) -> None:
            if not _repeats(program, logits, known.get(program.steps[0])):
                raise _ChangedError

        return self._accumulate(
            replace(network, follow=check), prepared.found, first, source, dtype, batch_size
        )

    def _anew(
        self, layers: str | tuple[str, ...], dtype: torch.dtype, batch_size: int | None
    ) -> Accumulator:
        meter = self._meter
        meter.proofs += 1
        source = iterate(self._batches, self._device, dtype, MOST_SAMPLES)
        first = first_samples(source)
        network, found = locate(
            self._model,
            dtype,
            first[0],
            layers,
            skip_unsupported=meter._skip,
            random=self._random,
        )
        programs: Programs = {}
        followed = [network.born is not None and self._now is not None]

        def note(program: Program, logits: Tensor) -> None:
            steps = programs.setdefault(program.steps[0], program.steps)
            followed.append(_repeats(program, logits, steps))

        watched = replace(network, follow=note) if followed[0] else network
        measured = self._accumulate(watched, found, first, source, dtype, batch_size)
        if all(followed) and self._now is not None:
            prepared = _prepare(network, found, self._now, programs)
            if prepared is not None and not self._random.draws:
                meter._prepared[layers, dtype] = prepared
        return measured

    def _accumulate(
        self,
        network: Network,
        found: Located,
        first: tuple[Tensor, Tensor],
        source: Any,
        dtype: torch.dtype,
        batch_size: int | None,
    ) -> Accumulator:
        meter, device = self._meter, self._device
        # A third for the graph, a quarter for the factors: what is freed between is not at once
        # used again, and backward passes hold maps of their own.
        budget = memory_budget(device)
        weights = sum(parameter.nbytes for parameter in network.model.parameters())
        size = batch_size or most_samples(
            budget // 3, found.graph_bytes, found.map_bytes, weights, device
        )
        scales: dict[str, Tensor] = {}
        chunks = split(first, source, size)
        if meter._normalize == "input":
            # One pass after the other: some loaders have only one iterator.
            source.close()
            again = iterate(self._batches, device, dtype, size)
            scales = input_scales(network, found.names, again)
            chunks = iterate(self._batches, device, dtype, size)
        measured = Accumulator(network, found, scales, budget // 4, meter._classes)
        for x, y in chunks:
            measured.add(x, y)
        return measured


def _repeats(program: Program, logits: Tensor, steps: list[Any] | None) -> bool:
    """Return whether a pass is one with known steps, of which everything can be followed."""
    same = program.followed and steps == program.steps
    return same and not handwritten(ordered(logits.grad_fn))


def _prepare(
    network: Network, found: Located, state: State, programs: Programs
) -> _Prepared | None:
    """Return what can be used again; None if the copy has changed by being run."""
    born, now = network.born, State(network.model)
    shapes = [[tensor.shape for tensor in one.tensors] for one in (now, state)]
    if born is None or not born.untouched(now) or shapes[0] != shapes[1]:
        return None
    return _Prepared(network, found, state, now.tensors, programs)
