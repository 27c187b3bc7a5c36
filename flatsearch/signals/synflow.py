"""SynFlow: how much the weights let through, without any data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["synflow"]

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def _without_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _NORMS):
            setattr(module, name, nn.Identity())
            continue
        # What was a copy behind a normalisation is now the tensor itself, which others need too.
        if isinstance(getattr(child, "inplace", None), bool):
            child.inplace = False  # type: ignore[assignment]
        _without_norms(child)


def synflow(model: nn.Module, x: Tensor, _: Tensor | None = None) -> float:
    """Return the logarithm of the synaptic flow, and change the model while at it.

        log sum_w |w| dR/d|w|,   R = sum of the logits of an image of ones with all weights |w|

    Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic
    flow", NeurIPS 2020, arXiv 2006.05467, equation 1, over kernels and matrices, normalisations
    left out as in Abdelfattah et al. 2021; in float64, where deep networks do not overflow. It is
    -inf if nothing gets through.
    """
    _without_norms(model)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    weights = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    ones = torch.ones(1, *x.shape[1:], dtype=torch.float64, device=weights[0].device)
    flow = model(ones).sum()
    gradients = torch.autograd.grad(flow, weights, allow_unused=True)
    total = sum(
        float((w.detach() * g).abs().sum())
        for w, g in zip(weights, gradients, strict=True)
        if g is not None
    )
    return math.log(total) if total > 0 else -math.inf
