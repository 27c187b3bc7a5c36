"""Brute force: the dense Hessian of the mean cross-entropy in one kernel, by torch.func.

Independent of the package: no patches, no softmax algebra, only automatic differentiation of
the loss as a function of the kernel, in float64.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev


def _in_double(model: nn.Module, x: Tensor, layer: str) -> tuple[nn.Module, Tensor, str, Tensor]:
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # vmap cannot see through changes in place
    name = f"{layer}.weight"
    return model, x.double(), name, model.get_parameter(name).detach()


def _trace_and_kappa(H: Tensor, W: Tensor) -> tuple[float, float]:
    """Contract a Hessian of layout (C, d, C, d) by its definition, block by block."""
    C = W.shape[0]
    W = W.flatten(1)
    H = H.reshape(C, W.shape[1], C, W.shape[1])
    trace = kappa = 0.0
    for c in range(C):
        for other in range(C):
            block = float(H[c, :, other, :].detach().diagonal().sum())
            kappa += float(W[c] @ W[other]) * block
            trace += block if c == other else 0.0
    return trace, kappa


def by_hessian(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> tuple[float, float]:
    """Return (trace, kappa) from the Hessian."""
    model, x, name, W = _in_double(model, x, layer)

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {name: weight}, (x,)), y)

    return _trace_and_kappa(hessian(loss)(W), W)


def by_gauss_newton(model: nn.Module, x: Tensor, layer: str) -> tuple[float, float]:
    """Return (trace, kappa) from the generalised Gauss-Newton matrix."""
    model, x, name, W = _in_double(model, x, layer)

    def logits(weight: Tensor) -> Tensor:
        return functional_call(model, {name: weight}, (x,))

    J = jacrev(logits)(W).flatten(2)  # (N, K, C d)
    p = logits(W).softmax(1)
    A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    G = torch.einsum("nki,nkl,nlj->ij", J, A, J) / len(x)
    return _trace_and_kappa(G, W)
