"""Weights that somebody has trained: of files, and torchvision's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatsearch.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["published_network", "read_tensors", "replace_head"]


def read_tensors(path: Path, what: str) -> Any:
    """Return the tensors and plain values that `torch.save` wrote; no pickled code is run.

    Raises:
        UsageError: If it cannot be read: then the file is not `what` it should be.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way inside the unpickler
        raise UsageError(
            f"{str(path)!r} is not {what}: {type(error).__name__} while reading it"
        ) from None


def published_network(name: str, weights: str) -> nn.Module:
    """Return a network of torchvision with its weights and its own number of classes.

    Args:
        name: The network's name there.
        weights: The name of published weights, such as "DEFAULT", which are downloaded where they
            are not there yet; or a file with a state dictionary.

    Raises:
        UsageError: If there are no such weights, or they are another network's.
    """
    from torchvision import models

    if Path(weights).exists():
        return _with_state(name, Path(weights))
    try:
        known = models.get_model_weights(name)["DEFAULT" if weights == "DEFAULT" else weights]
    except KeyError:
        accepted = ["DEFAULT", *(weight.name for weight in models.get_model_weights(name))]
        message = unknown_name(f"weights of {name}", weights, accepted, also="; or a file")
        raise UsageError(message) from None
    try:
        network: nn.Module = models.get_model(name, weights=known)
    except OSError as error:  # those of the network, too
        raise UsageError(
            f"weights {weights!r} of {name} cannot be downloaded ({error}); download {known.url}"
            " elsewhere, and give the file"
        ) from None
    return network


def _with_state(name: str, path: Path) -> nn.Module:
    """Return a torchvision network with the weights of a state-dictionary file."""
    from torchvision import models

    state = read_tensors(path, "a file of weights")
    # Training scripts wrap the weights beside the optimiser's state.
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{str(path)!r} is not a state dictionary of tensors")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        network: nn.Module = models.get_model(name, num_classes=_classes(state))
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"{str(path)!r} holds other weights than those of {name}:"
            f" {' '.join(str(error).split())[:200]}"
        ) from None
    return network


def _classes(state: Mapping[str, Tensor]) -> int:
    # The last tensor of two dimensions, or of four in networks without a linear layer, has one
    # row per class.
    kernels = [v for v in state.values() if v.ndim in {2, 4}]
    return len(kernels[-1]) if kernels else 0


def replace_head(network: nn.Module, num_classes: int) -> None:
    """Exchange a network's last linear layer, in place, for one of other classes, untrained."""
    name, head = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, child = name.rpartition(".")
    new = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
    setattr(network.get_submodule(parent), child, new)
