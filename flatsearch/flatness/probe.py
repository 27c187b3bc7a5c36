"""One forward pass of a few samples, with everything that was called."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import grad
from torch.autograd.graph import GradientEdge
from torch.nn.modules import module as everywhere

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.convolutions import Convolution, find_convolutions, leaf_users, used_once
from flatsearch.flatness.forward import (
    CHANGED_IN_PLACE,
    HIDDEN,
    USED_ELSEWHERE,
    ForwardError,
    Network,
    call,
    classifier_input,
    disagree,
    influential,
)
from flatsearch.flatness.graph import ACCUMULATE, dtype_of, inputs, match_layouts, ordered
from flatsearch.flatness.parameters import Parameters
from flatsearch.flatness.replica import modules_with_gradient_hooks, replicate
from flatsearch.flatness.truth import handwritten, untrue_derivatives
from flatsearch.flatness.watch import Watch, address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from flatsearch.flatness.watch import RandomState

__all__ = ["Probe", "explained"]


class Probe:
    """One forward pass of a few samples through a copy of a model.

    Attributes:
        model: The copy, all of whose parameters require gradients.
        parameters: What they are called.
        watch: What the graph does not show.
        logits: (N, K).
        nodes: The recorded operations.
        convolutions: All convolutions that the logits depend on, in order of execution.
        classifier: The name of the linear classifier; None if the logits are not one's output.
        classifier_kernel: The name of its weight.

    Args:
        model: The model itself, which is only read.
        dtype: The precision of the copy.
        x: The samples.
        copies: Whether the graph keeps copies of what it needs.
        random: The generators of random numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        x: Tensor,
        *,
        copies: bool,
        random: RandomState,
    ) -> None:
        self._original, self._x = model, x
        self._network = Network(replicate(model, dtype), {}, copies=copies)
        self.model = self._network.model
        require_gradients(self.model)
        self.parameters = Parameters(self.model)
        self.watch = Watch(random)
        self.watch.patches.begin(x)
        first = _next_place()
        with self._network.recording(), self.watch, random.watching_others():
            self.logits = call(self.model, x)
        self.nodes = ordered(self.logits.grad_fn)
        _refuse_threads(self.nodes, range(first, _next_place()))
        match_layouts(self.nodes)
        leaves = [leaf.variable for leaf in leaf_users(self.nodes)]
        self._used = set(map(id, leaves))
        if not all(map(self.parameters.names, leaves)):
            self.watch.cut = True  # a tensor made anew of what has been computed
        recorded = find_convolutions(
            self.nodes,
            self.parameters,
            len(x),
            self.watch.convolutions,
            self.watch.patches.found,
        )
        pairs = zip(model.parameters(), self.model.parameters(), strict=True)
        self._entangled = self.parameters.entangled(
            (own, twin) for own, twin in pairs if id(twin) in self._used
        )
        self.convolutions = [
            replace(one, problem=one.problem or self._entangled.get(one.kernel, ""))
            for one in recorded
        ]
        self.classifier = self.classifier_kernel = None
        self._head: Any = None
        found = classifier_input(self.logits)
        if found is not None:
            self._head = found[1]
            (self.classifier_kernel, *_) = self.parameters.names(self._head.variable)
            self.classifier = self.parameters.layer(self.classifier_kernel)

    def unseen(self) -> dict[str, Tensor]:
        """Return the kernels that no recorded operation uses, by the parameter's name."""
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if id(parameter) not in self._used and self._is_kernel(name, parameter)
        }

    def _is_kernel(self, name: str, parameter: Tensor) -> bool:
        by_hand = (one.weight for one in self.watch.patches.found)
        convolved = any(parameter is one for one in (*self.watch.convolutions, *by_hand))
        return convolved or (parameter.ndim >= 3 and self.parameters.is_kernel(name))

    def hidden_convolutions(self) -> list[Convolution]:
        """Return the convolutions that the logits depend on although autograd has none of it."""
        names = influential(self.model, self.unseen(), self._x)
        names.sort(key=lambda name: self._place(name, math.inf))
        return [Convolution(self.parameters.layer(name), name, None, HIDDEN) for name in names]

    def hidden_after(self, last: Convolution) -> list[Convolution]:
        """Return those of them that are not seen to be executed before another one."""
        place = self._place(last.kernel, -1)

        def after(kernel: str) -> bool:
            return self._place(kernel, math.inf) > place

        if not any(map(after, self.unseen())):
            return []
        return [one for one in self.hidden_convolutions() if after(one.kernel)]

    def _place(self, kernel: str, unknown: float) -> float:
        """Return when a convolution was last called with a kernel, detached or not."""
        called, own = self.watch.addresses, address(self.model.get_parameter(kernel))
        return max((i for i, other in enumerate(called) if other == own), default=unknown)

    def is_structural(self) -> bool:
        """Return whether nothing has to be tried with numbers, which may be others next time."""
        tried = self.watch.cut or self.watch.left_out or handwritten(self.nodes) or self.unseen()
        return not (tried or modules_with_gradient_hooks(self._original))

    def prove_head(self) -> None:
        """Refuse a classifier whose kernel something else uses, too."""
        entangled = self._entangled.get(self.classifier_kernel or "")
        if entangled or not used_once(self.nodes, self._head):
            why = entangled or USED_ELSEWHERE
            raise UnsupportedModelError(f"layer {self.classifier!r}: {why}")

    def untrue(self, convolutions: Sequence[Convolution]) -> dict[str, str]:
        """Return those whose derivatives cannot be had, or are not autograd's, with the reasons.

        Args:
            convolutions: Those that are covered otherwise.

        Returns:
            By the layer's name; what is in front of an operation without a true derivative.
        """
        wrong = _inexact(self.nodes, convolutions)
        for judge in (
            self._undifferentiable,
            self._changed_by_hooks,
            self._not_those_of_the_logits,
        ):
            rest = [one for one in convolutions if one.name not in wrong]
            wrong |= judge(rest) if rest else {}
        return wrong

    def _undifferentiable(self, convolutions: Sequence[Convolution]) -> dict[str, str]:
        try:
            self._gradients(self.logits, self.nodes, convolutions)
        except UnsupportedModelError as error:
            alone: dict[str, str] = {}
            for one in convolutions if len(convolutions) > 1 else ():
                alone |= self._undifferentiable([one])
            return alone or {one.name: str(error) for one in convolutions}
        return {}

    def _gradients(
        self, logits: Tensor, nodes: Sequence[Any], convolutions: Sequence[Convolution]
    ) -> tuple[Tensor | None, ...]:
        """Return the derivatives of <c, logits> with a random c at the convolutions' outputs."""
        # whatever the default device is
        generator, cpu = torch.Generator("cpu").manual_seed(0), torch.device("cpu")
        c = torch.randn(logits.shape, generator=generator, dtype=torch.float64, device=cpu)
        c = c.to(logits)
        by_name = {
            convolution.name: convolution.node
            for convolution in find_convolutions(nodes, self.parameters, len(logits))
        }
        edges = [GradientEdge(by_name[convolution.name], 0) for convolution in convolutions]
        try:
            return grad(logits, edges, c, retain_graph=True, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if CHANGED_IN_PLACE in str(error):
                raise
            reason = " ".join(str(error).split(". ")[0].split())
            written = "".join(f" through {name}" for name in handwritten(nodes))
            if written.endswith("AutogradOpBackward"):
                reason = "torch's control flow has derivatives only where it is compiled"
            raise UnsupportedModelError(
                f"the model cannot be differentiated{written}: {reason}"
            ) from error

    def _changed_by_hooks(self, convolutions: Sequence[Convolution]) -> dict[str, str]:
        """Run the model once more with its hooks on gradients, which must only look at them."""
        hooked = modules_with_gradient_hooks(self._original)
        if not (hooked or self.watch.left_out):
            return {}
        expected = self._gradients(self.logits, self.nodes, convolutions)
        dtype = self.logits.dtype
        twin = replicate(self._original, dtype, gradient_hooks=True)
        require_gradients(twin)
        parameters, self.parameters = self.parameters, Parameters(twin)
        try:
            with Network(twin, {}, copies=self._network.copies).recording():
                # torch warns of hooks on modules whose inputs require no gradients.
                logits = call(twin, self._x.detach().requires_grad_())
            nodes = ordered(logits.grad_fn)
            match_layouts(nodes)
            gradients = self._gradients(logits, nodes, convolutions)
        finally:
            self.parameters = parameters
        where = ", ".join(repr(name) for name in hooked)
        what = f"of layer {where}" if hooked else "that the forward pass puts on a tensor"
        return {
            one.name: f"a hook {what} changes gradients; remove it"
            for one, a, b in zip(convolutions, gradients, expected, strict=True)
            if (a is None) != (b is None) or (a is not None and b is not None and disagree(a, b))
        }

    def _not_those_of_the_logits(self, convolutions: Sequence[Convolution]) -> dict[str, str]:
        written = handwritten(self.nodes)
        if not (written or self.watch.cut):
            return {}
        twin = replicate(self._original, torch.float64)
        require_gradients(twin)
        kernels = [twin.get_parameter(convolution.kernel) for convolution in convolutions]
        x, copies = self._x.double(), self._network.copies
        try:
            untrue = untrue_derivatives(twin, kernels, x, copies=copies)
        except AssertionError as error:  # hooks of the model's on what the graph keeps
            return {
                one.name: f"the model cannot be differentiated: {error}" for one in convolutions
            }
        why = ", ".join(written) or (
            "a tensor that is detached, turned into a number, or computed under torch.no_grad"
            " on the way, or a hook on the graph"
        )
        if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
            why = "hook on the gradients of all modules"
        return {
            one.name: f"autograd's derivatives are not those of the logits, because of {why}"
            for one, wrong in zip(convolutions, untrue, strict=True)
            if wrong
        }


# Of an operation without a derivative.
_NO_PLACE = 2**64 - 1


def _next_place() -> int:
    """Return when an operation is recorded now; every thread counts on its own."""
    with torch.enable_grad():
        node: Any = torch.ones((), requires_grad=True).clone().grad_fn
    place: int = node._sequence_nr()
    return place


def _refuse_threads(nodes: Sequence[Any], places: range) -> None:
    """Refuse a model that starts threads, in which nothing is seen of what it calls."""
    every = [node._sequence_nr() for node in nodes if node.name() != ACCUMULATE]
    found = [place for place in every if place < _NO_PLACE]
    if len(set(found)) < len(found) or not all(place in places for place in found):
        raise UnsupportedModelError("parts of the model run in threads of their own")


def _inexact(nodes: Sequence[Any], convolutions: Sequence[Convolution]) -> dict[str, str]:
    """Return those in front of an operation whose derivative is missing or has few digits."""
    wrong: dict[str, str] = {}
    behind: dict[Any, set[str]] = {one.node: {one.name} for one in convolutions}
    for node in nodes:
        before = [behind[previous] for previous in inputs(node) if previous in behind]
        if before:
            why = _inexactness(node)
            wrong |= {name: why for name in set().union(*before) if why}
            behind[node] = behind.get(node, set()).union(*before)
    return {one.name: wrong[one.name] for one in convolutions if one.name in wrong}


def _inexactness(node: Any) -> str:
    if "NotImplemented" in node.name():  # gradients end there, with a warning at most
        return (
            "an operation behind the measured layers has no derivative in autograd, as in quantised"
            " layers"
        )
    dtype = dtype_of(node)
    if dtype in {torch.float16, torch.bfloat16}:
        return (
            f"the model computes in {dtype} behind the measured layers, whose derivatives have two"
            " or three digits then"
        )
    return ""


def require_gradients(model: nn.Module) -> None:
    """Let every parameter require a gradient that can."""
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_()


def explained(model: nn.Module, error: ForwardError) -> Exception:
    """Return what is wrong where a copy of a model has failed: its own error if it fails as it is.

    Args:
        model: The model, which is only read.
        error: How a copy has failed.

    Returns:
        The error to raise.
    """
    cause, dtype = error.__cause__, error.x.dtype
    assert isinstance(cause, Exception)  # noqa: S101 - it is raised from one
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if _fails(replicate(model, None), error.x.to(own)):
        if _fails(replicate(model, None), error.x.to(own), recorded=True):
            return cause
        why = "run under torch.no_grad"
    elif _fails(replicate(model, dtype), error.x):
        why = f"computed in {dtype}, to which it does not convert all of its tensors"
    elif _fails(replicate(model, dtype), error.x, recorded=True):
        why = "recorded by autograd"
    else:
        return cause  # it fails at times
    refusal = UnsupportedModelError(f"the model cannot be {why}: {reason}")
    refusal.__cause__ = cause
    return refusal


def _fails(model: nn.Module, x: Tensor, *, recorded: bool = False) -> bool:
    mode: AbstractContextManager[None] = torch.no_grad()
    if recorded:
        require_gradients(model)
        mode = Network(model, {}, copies=True, hooks=True).recording()
    try:
        with mode:
            call(model, x)
    except (ForwardError, UnsupportedModelError):
        return True
    return False
