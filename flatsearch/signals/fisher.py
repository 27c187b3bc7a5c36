"""VKDNW: how evenly an untrained network's Fisher information is spread over its layers.

Týbl and Neumann, "Training-free Neural Architecture Search through Variance of Knowledge of Deep
Network Weights", CVPR 2025, arXiv 2502.04975. The labels are the network's own predictions and the
images are Gaussian noise, so neither is needed. One weight stands for each layer, a convolution or
linear module; of deeper networks the first 128 layers are looked at.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fisher_information", "vkdnw", "vkdnw_entropy"]

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_MOST_LAYERS = 128
_IMAGES = 64


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _LAYERS)]


def _add(layer: nn.Module, scale: Tensor) -> Callable[..., Tensor]:
    """Return a hook that adds to a layer's first weight a number per image, (N,)."""
    direction = copy.deepcopy(layer)
    direction.bias = None  # type: ignore[assignment]
    nn.init.zeros_(direction.weight).view(-1)[0] = 1  # type: ignore[arg-type]

    def add(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # A layer is linear in its weights.
        change: Tensor = direction(*args)
        return output + scale.view(-1, *[1] * (change.dim() - 1)) * change

    return add


def _jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Return the derivatives (N, C, L) of the logits in the first weight of every layer."""
    model.eval().requires_grad_(False)
    layers = _layers(model)[:_MOST_LAYERS]
    scales = [torch.zeros(len(x), device=x.device, dtype=x.dtype) for _ in layers]
    with contextlib.ExitStack() as hooks:
        for layer, scale in zip(layers, scales, strict=True):
            add = _add(layer, scale.requires_grad_())
            hooks.enter_context(layer.register_forward_hook(add))
        logits = model(x)
    columns = [
        torch.autograd.grad(logits[:, c].sum(), scales, retain_graph=True, allow_unused=True)
        for c in range(logits.shape[1])
    ]
    none = torch.zeros_like(scales[0])
    by_class = [torch.stack([none if g is None else g for g in column], 1) for column in columns]
    return torch.stack(by_class, 1)


def fisher_information(model: nn.Module, x: Tensor) -> Tensor:
    """Return the Fisher information of one weight per layer, equations 8 to 10.

        F = mean_n J_n' ( diag p_n - p_n p_n' ) J_n

    with p_n (C) the probabilities of image n and J_n (C, L) the derivatives of its logits in the
    first weight of each of the L layers: the covariance of the derivatives of log p. F is (L, L),
    in float64. The network is put into eval mode, and its parameters are fixed.
    """
    jacobian = _jacobian(model, x).double()
    probabilities = model(x).double().softmax(1).unsqueeze(2)
    centred = jacobian - (probabilities * jacobian).sum(1, keepdim=True)
    rows = (probabilities.sqrt() * centred).flatten(0, 1)
    return rows.T @ rows / len(x)


def vkdnw_entropy(model: nn.Module, x: Tensor, _: Tensor | None = None) -> float:
    """Return the entropy of the deciles of the Fisher information's eigenvalues, equation 11.

        - sum_k l_k log l_k,   l_k = d_k / sum_j d_j,   k = 1, ..., 9

    d_k the k-th decile of the eigenvalues of `fisher_information`. At most log 9, where the
    weights of all layers are equally well determined; 0 if no weight changes the predictions. It
    says nothing about size.
    """
    noise = torch.randn(_IMAGES, *x.shape[1:], device=x.device, dtype=x.dtype)
    values = torch.linalg.eigvalsh(fisher_information(model, noise)).clamp(min=0)
    deciles = values.quantile(torch.arange(1, 10).to(values) / 10)
    total = float(deciles.sum())
    return float(torch.special.entr(deciles / total).sum()) if total > 0 else 0.0


def vkdnw(model: nn.Module, x: Tensor, _: Tensor | None = None) -> float:
    """Return the number of layers plus the entropy, equation 12: the paper's score for ranking.

    Example:
        Of a single layer all deciles are the same:

        >>> from math import log
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> round(vkdnw(model, torch.ones(1, 1, 2, 2)), 6) == round(1 + log(9), 6)
        True
    """
    return len(_layers(model)) + vkdnw_entropy(model, x)
