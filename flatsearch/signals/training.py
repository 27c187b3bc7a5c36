"""Proxies of a network in training, measured after an epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from flatsearch.errors import SettingsError
from flatsearch.networks.inference import eval_mode

if TYPE_CHECKING:
    from flatsearch.signals.compute import ProxyInput

__all__ = ["gradient_norm", "weight_movement"]


def weight_movement(given: ProxyInput) -> float:
    """Return how far kernels and matrices have moved, relative to where they began.

        mean_l |W_l - W_l(0)| / |W_l(0)|,   Frobenius norms

    over the parameters of two or more dimensions that did not begin as zeros. Distance from
    initialisation: Nagarajan and Kolter, "Generalization in Deep Networks: The Role of Distance
    from Initialization", 2019, arXiv 1901.01672. It is 0 without any.

    Raises:
        SettingsError: If the initial parameters are not those of the same network.

    Example:
        >>> from flatsearch.signals.compute import ProxyInput
        >>> model = torch.nn.Linear(2, 1)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 0.0]]))
        >>> initial = {"weight": torch.tensor([[0.0, 4.0]])}
        >>> weight_movement(ProxyInput(model, torch.ones(1, 2), torch.zeros(1), initial))
        1.25
    """
    moved = []
    for name, weight in given.model.named_parameters():
        if weight.dim() < 2:
            continue
        if name not in given.initial or given.initial[name].shape != weight.shape:
            raise SettingsError(f"parameter {name!r} is not among the initial ones in that shape")
        start = given.initial[name].double()
        norm = float(start.norm())
        if norm > 0:
            moved.append(float((weight.detach().double() - start).norm()) / norm)
    return sum(moved) / len(moved) if moved else 0.0


def gradient_norm(given: ProxyInput) -> float:
    """Return |dL/dw|, the Euclidean norm over all weights of the mean cross-entropy's gradient.

    Of the network as it predicts, in eval mode, with biases and normalisations.

    Example:
        >>> from flatsearch.signals.compute import ProxyInput
        >>> model = torch.nn.Linear(1, 2)
        >>> _ = [torch.nn.init.zeros_(p) for p in model.parameters()]  # dL/dlogits = (-1/2, 1/2)
        >>> round(gradient_norm(ProxyInput(model, torch.ones(1, 1), torch.tensor([0]))), 6)
        1.0
    """
    weights = [p for p in given.model.parameters() if p.requires_grad]
    with eval_mode(given.model):
        loss = F.cross_entropy(given.model(given.inputs).float(), given.targets)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
    return math.sqrt(sum(float(g.double().square().sum()) for g in found if g is not None))
