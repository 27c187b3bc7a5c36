"""One forward pass of a few samples, with everything that was called."""

from __future__ import annotations

import contextlib
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
    Network,
    call,
    classifier_input,
    disagree,
    influential,
)
from flatsearch.flatness.graph import dtype_of, inputs, match_layouts, ordered
from flatsearch.flatness.parameters import Parameters
from flatsearch.flatness.replica import modules_with_gradient_hooks, replicate
from flatsearch.flatness.truth import derivatives_are_true, handwritten
from flatsearch.flatness.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from flatsearch.flatness.watch import RandomState

__all__ = ["Probe"]


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
        with self._network.recording(), self.watch, _in_precision(model, dtype):
            self.logits = call(self.model, x)
        self.nodes = ordered(self.logits.grad_fn)
        match_layouts(self.nodes)
        if not all(self.parameters.names(leaf.variable) for leaf in leaf_users(self.nodes)):
            self.watch.cut = True  # a tensor made anew of what has been computed
        self.convolutions = find_convolutions(
            self.nodes, self.parameters, len(x), self.watch.convolutions
        )
        self.classifier = self.classifier_kernel = None
        self._head: Any = None
        found = classifier_input(self.logits)
        if found is not None:
            self._head = found[1]
            (self.classifier_kernel, *_) = self.parameters.names(self._head.variable)
            self.classifier = self.parameters.layer(self.classifier_kernel)

    def unseen(self) -> dict[str, Tensor]:
        """Return the kernels that no recorded operation uses, by the parameter's name."""
        seen = {id(node.variable) for node in leaf_users(self.nodes)}
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if id(parameter) not in seen and self._is_kernel(name, parameter)
        }

    def _is_kernel(self, name: str, parameter: Tensor) -> bool:
        convolved = any(parameter is kernel for kernel in self.watch.convolutions)
        return convolved or (parameter.ndim >= 3 and self.parameters.is_kernel(name))

    def hidden_convolutions(self) -> list[Convolution]:
        """Return the convolutions that the logits depend on although autograd has none of it."""
        names = influential(self.model, self.unseen(), self._x)
        names.sort(key=self._place)
        return [Convolution(self.parameters.layer(name), name, None, HIDDEN) for name in names]

    def hidden_after(self, last: Convolution) -> list[Convolution]:
        """Return those of them that are executed after another one."""
        place = self._place(last.kernel)
        if all(self._place(name) <= place for name in self.unseen()):
            return []
        return [one for one in self.hidden_convolutions() if self._place(one.kernel) > place]

    def _place(self, kernel: str) -> int:
        """Return when a convolution was last called with a kernel, -1 if it was not seen."""
        parameter = self.model.get_parameter(kernel)
        called = self.watch.convolutions
        return max((i for i, other in enumerate(called) if other is parameter), default=-1)

    def is_structural(self) -> bool:
        """Return whether nothing has to be tried with numbers, which may be others next time."""
        tried = self.watch.cut or self.watch.left_out or handwritten(self.nodes) or self.unseen()
        return not (tried or modules_with_gradient_hooks(self._original))

    def prove_head(self) -> None:
        """Refuse a classifier whose kernel something else uses, too."""
        if not used_once(self.nodes, self._head):
            raise UnsupportedModelError(f"layer {self.classifier!r}: {USED_ELSEWHERE}")

    def prove_derivatives(self, convolutions: Sequence[Convolution]) -> None:
        """Refuse logits whose derivatives at convolutions cannot be had, or are not autograd's."""
        if not convolutions:
            return
        behind = {convolution.node for convolution in convolutions}
        for node in self.nodes:
            if not behind.isdisjoint(inputs(node)):
                behind.add(node)
                _refuse_inexact(node)
        self._gradients(self.logits, self.nodes, convolutions)
        hooked = modules_with_gradient_hooks(self._original)
        if hooked or self.watch.left_out:
            self._refuse_changed_gradients(hooked)
        written = handwritten(self.nodes)
        if written or self.watch.cut:
            self._refuse_untrue(convolutions, written)

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
        except RuntimeError as error:
            if CHANGED_IN_PLACE in str(error):
                raise
            reason = " ".join(str(error).split(". ")[0].split())
            raise UnsupportedModelError(f"the model cannot be differentiated: {reason}") from error

    def _refuse_changed_gradients(self, hooked: Sequence[str]) -> None:
        """Run the model once more with its hooks on gradients, which must only look at them."""
        convolutions = [one for one in self.convolutions if not one.problem]
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
        for a, b in zip(gradients, expected, strict=True):
            if (a is None) != (b is None) or (a is not None and b is not None and disagree(a, b)):
                where = ", ".join(repr(name) for name in hooked)
                what = f"of layer {where}" if hooked else "that the forward pass puts on a tensor"
                raise UnsupportedModelError(f"a hook {what} changes gradients; remove it")

    def _refuse_untrue(self, convolutions: Sequence[Convolution], written: Sequence[str]) -> None:
        twin = replicate(self._original, torch.float64)
        require_gradients(twin)
        kernels = {id(twin.get_parameter(convolution.kernel)) for convolution in convolutions}
        with _in_precision(self._original, torch.float64):
            x, copies = self._x.double(), self._network.copies
            true = derivatives_are_true(twin, kernels, x, copies=copies)
        if not true:
            cut = (
                "a tensor that is detached, or computed under torch.no_grad, on the way,"
                " or a hook on the graph"
            )
            why = ", ".join(written) or cut
            if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
                why = "hook on the gradients of all modules"
            raise UnsupportedModelError(
                f"autograd's derivatives are not those of the logits, because of {why}"
            )


def _refuse_inexact(node: Any) -> None:
    """Refuse an operation behind measured layers whose derivative is missing or has few digits."""
    if "NotImplemented" in node.name():  # gradients end there, with a warning at most
        raise UnsupportedModelError(
            "an operation behind the measured layers has no derivative in autograd, as in quantised"
            " layers"
        )
    dtype = dtype_of(node)
    if dtype in {torch.float16, torch.bfloat16}:
        raise UnsupportedModelError(
            f"the model computes in {dtype} behind the measured layers, whose derivatives have two"
            " or three digits then"
        )


def require_gradients(model: nn.Module) -> None:
    """Let every parameter require a gradient that can."""
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_()


@contextlib.contextmanager
def _in_precision(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Refuse models that fail only because they are computed in another precision."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        own = {parameter.dtype for parameter in model.parameters()}
        if own == {dtype} or CHANGED_IN_PLACE in str(error):
            raise
        reason = " ".join(str(error).split())
        raise UnsupportedModelError(
            f"the model cannot be computed in {dtype}, to which it does not convert all of its"
            f" tensors: {reason}"
        ) from error
