"""VKDNW: how evenly an untrained network's Fisher information is spread over its layers.

Týbl and Neumann, "Training-free Neural Architecture Search through Variance of Knowledge of Deep
Network Weights", CVPR 2025, arXiv 2502.04975. The labels are the network's own predictions and the
images are Gaussian noise, so neither is needed. One weight stands for each layer, a kernel or
matrix; of deeper networks the first 128 layers are looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

__all__ = ["fisher_information", "vkdnw", "vkdnw_entropy"]

_MOST_LAYERS = 128
_IMAGES = 64


def _layers(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}


def _derivative(model: nn.Module, name: str, weight: Tensor, x: Tensor) -> Tensor:
    """Return the derivative (N, C) of the logits in the first element of a weight."""
    direction = torch.zeros_like(weight)
    direction.view(-1)[0] = 1

    def logits(weight: Tensor) -> Tensor:
        found: Tensor = functional_call(model, {name: weight}, (x,))
        return found

    derivative: Tensor = jvp(logits, (weight,), (direction,))[1]
    return derivative


def fisher_information(model: nn.Module, x: Tensor) -> Tensor:
    """Return the Fisher information of one weight per layer, equations 8 to 10.

        F = mean_n J_n' ( diag p_n - p_n p_n' ) J_n

    with p_n (C) the probabilities of image n and J_n (C, L) the derivatives of its logits in the
    first weight of each of the L layers: the covariance of the derivatives of log p.

    Args:
        model: Put into eval mode, and its parameters fixed.
        x: Images (N, C, H, W).

    Returns:
        F in float64, (L, L).
    """
    # Derivatives are taken forwards: nothing is to be kept for a backward pass.
    model.eval().requires_grad_(False)
    layers = list(_layers(model).items())[:_MOST_LAYERS]
    probabilities = model(x).double().softmax(1).unsqueeze(2)
    columns = [_derivative(model, name, weight, x) for name, weight in layers]
    jacobian = torch.stack(columns, 2).double()
    centred = jacobian - (probabilities * jacobian).sum(1, keepdim=True)
    rows = (probabilities.sqrt() * centred).flatten(0, 1)
    return rows.T @ rows / len(x)


def vkdnw_entropy(model: nn.Module, x: Tensor, y: Tensor | None = None) -> float:
    """Return the entropy of the deciles of the Fisher information's eigenvalues, equation 11.

        - sum_k l_k log l_k,   l_k = d_k / sum_j d_j,   k = 1, ..., 9

    d_k the k-th decile of the eigenvalues of `fisher_information`. At most log 9, where the
    weights of all layers are equally well determined; it says nothing about size.

    Args:
        model: Put into eval mode.
        x: Images, whose shape alone matters.
        y: Not looked at.

    Returns:
        The entropy; 0 if no weight changes the predictions.
    """
    del y
    noise = torch.randn(_IMAGES, *x.shape[1:], device=x.device, dtype=x.dtype)
    values = torch.linalg.eigvalsh(fisher_information(model, noise)).clamp(min=0)
    deciles = values.quantile(torch.arange(1, 10).to(values) / 10)
    total = float(deciles.sum())
    return float(torch.special.entr(deciles / total).sum()) if total > 0 else 0.0


def vkdnw(model: nn.Module, x: Tensor, y: Tensor | None = None) -> float:
    """Return the number of layers plus the entropy, equation 12: the paper's score for ranking.

    Args:
        model: Put into eval mode.
        x: Images, whose shape alone matters.
        y: Not looked at.

    Example:
        Of a single layer all deciles are the same:

        >>> from math import log
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> round(vkdnw(model, torch.ones(1, 1, 2, 2)), 6) == round(1 + log(9), 6)
        True
    """
    return len(_layers(model)) + vkdnw_entropy(model, x, y)
