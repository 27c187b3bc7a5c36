"""What a network's parameters are called, which layer they belong to, and what makes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.forward import disagree
from flatsearch.flatness.watch import address

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Parameters", "Settled"]

_MODULES = "torch.nn.utils"
# What makes a weight has names like weight_orig, weight_g, and weight.original0.
_WEIGHT = re.compile(r"weight(_orig|_g|_v|_bar|\..*)?")


class Parameters:
    """The parameters of a model, by what they are.

    Args:
        model: Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names: dict[int, list[str]] = {}
        self._tensors: list[Tensor] = []  # keeps their ids in use
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._tensors.append(parameter)
            self._names.setdefault(id(parameter), []).append(name)

    def names(self, parameter: Tensor) -> list[str]:
        """Return all names that a parameter has; none for a tensor that is not the model's."""
        return self._names.get(id(parameter), [])

    def entangled(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, str]:
        """Return why parameters are not alone that lie in the memory of others.

        As after `a.weight.data = b.weight.data`: to a copy, and to autograd, they are two.

        Args:
            pairs: Parameters of what the model is a copy of, each with its copy.

        Returns:
            The end of a sentence that starts with the layer, by the parameter's name.
        """
        spans = []
        for own, twin in pairs:
            place = address(own)
            if place and own.layout == torch.strided:
                steps = zip(own.shape, own.stride(), strict=True)
                last = sum((size - 1) * step for size, step in steps)
                spans.append((place, place + own.itemsize * (last + 1), self.names(twin)[0]))
        found: dict[str, str] = {}
        furthest = (0, 0, "")
        for start, end, name in sorted(spans):
            if start < furthest[1]:
                for one, other in ((name, furthest[2]), (furthest[2], name)):
                    found[one] = f"its kernel lies in the memory of {other!r}, which is used too"
            furthest = max(furthest, (start, end, name), key=lambda span: span[1])
        return found

    def owner(self, name: str) -> tuple[str, nn.Module]:
        """Return the name of the module that a parameter belongs to, and the module."""
        path, _, _ = name.rpartition(".")
        path, _, _ = path.partition("parametrizations.")
        path = path.removesuffix(".")
        return path, self._modules[path]

    def layer(self, name: str) -> str:
        """Return the name of the module whose weight a kernel is, or is made from.

        Return the kernel's own name if it is not called a weight.
        """
        path, _ = self.owner(name)
        own = name.removeprefix(f"{path}.").removeprefix("parametrizations.")
        return path if path and _WEIGHT.fullmatch(own) else name

    def is_kernel(self, name: str) -> bool:
        """Return whether a parameter is, or makes, the weight of a convolution or linear layer."""
        path, module = self.owner(name)
        made = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        named = made or "conv" in type(module).__name__.lower()
        return named and "weight" in name.removeprefix(path)

    def kind(self, name: str) -> str:
        """Return what the module that a parameter belongs to is called in Python."""
        return type(self.owner(name)[1]).__name__

    def computation(self, name: str) -> str:
        """Return how a kernel is computed from a parameter, and what undoes that.

        It is the end of a sentence that starts with the kernel.
        """
        path, module = self.owner(name)
        call = f"(model.get_submodule({path!r})" if path else "(model"
        made = getattr(module, "parametrizations", None)
        if ".parametrizations." in f".{name}" and made is not None:
            attribute = name.rpartition("parametrizations.")[2].partition(".")[0]
            by = ", ".join(type(part).__name__.strip("_") for part in made[attribute])
            undo = f"{_MODULES}.parametrize.remove_parametrizations{call}, {attribute!r})"
            return f"is reparametrised ({by}): {undo} makes it plain"
        for hook in module._forward_pre_hooks.values():
            undo = _undo(hook, call)
            if undo:
                return f"is reparametrised ({type(hook).__name__}): {undo} makes it plain"
        return f"is computed from {name!r} in the forward pass"


def _undo(hook: Any, call: str) -> str:
    if isinstance(hook, WeightNorm):
        return f"{_MODULES}.remove_weight_norm{call}, {hook.name!r})"
    if isinstance(hook, SpectralNorm):
        return f"{_MODULES}.remove_spectral_norm{call}, {hook.name!r})"
    if isinstance(hook, BasePruningMethod):
        return f"{_MODULES}.prune.remove{call}, {hook._tensor_name!r})"
    return ""


class Settled:
    """The parameters of a model, which forward passes must leave as they are.

    Args:
        model: The copy that is run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._found = [
            (name, parameter, _mark(parameter), parameter.detach().clone())
            for name, parameter in model.named_parameters()
        ]

    def refuse_changed(self) -> None:
        """Refuse a model that has changed one; a weight that is normalised again stays the same.

        Raises:
            UnsupportedModelError: If it has; names it.
        """
        for name, parameter, mark, value in self._found:
            if _mark(parameter) != mark and bool(disagree(parameter.detach(), value)):
                raise UnsupportedModelError(
                    f"parameter {name!r} is changed by the forward pass of some batches, so there"
                    " is no one network to measure"
                )


def _mark(parameter: Tensor) -> tuple[int, int]:
    return parameter._version, parameter.data_ptr()
