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
    name = kernel_of(model, layer)
    return model, x.double(), name, model.get_parameter(name).detach()


def kernel_of(model: nn.Module, layer: str) -> str:
    """Return the name of a layer's kernel: its weight, or the layer is called as the kernel is."""
    return layer if layer in dict(model.named_parameters()) else f"{layer}.weight"


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


def _nu(H: Tensor, W: Tensor) -> float:
    """Return E[e^T H e] of noise e with the covariance |w_c|^2 / d on filter c, by its definition.

    Tr(H E[e e^T]) with the whole covariance matrix of the flattened kernel.
    """
    fan_in = W[0].numel()
    variances = [float(w.square().sum()) / fan_in for w in W for _ in range(fan_in)]
    return float((H.reshape(W.numel(), -1) @ torch.diag(W.new_tensor(variances))).trace())


def _dense_hessian(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    model, x, name, W = _in_double(model, x, layer)

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {name: weight}, (x,)), y)

    return hessian(loss)(W).detach(), W


def by_hessian(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> tuple[float, float]:
    """Return (trace, kappa) from the Hessian."""
    return _trace_and_kappa(*_dense_hessian(model, x, y, layer))


def nu_by_hessian(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> float:
    """Return nu from the Hessian."""
    return _nu(*_dense_hessian(model, x, y, layer))


def by_gauss_newton(model: nn.Module, x: Tensor, layer: str) -> tuple[float, float]:
    """Return (trace, kappa) from the generalised Gauss-Newton matrix."""
    return _trace_and_kappa(*_dense_gauss_newton(model, x, layer))


def nu_by_gauss_newton(model: nn.Module, x: Tensor, layer: str) -> float:
    """Return nu from the generalised Gauss-Newton matrix."""
    return _nu(*_dense_gauss_newton(model, x, layer))


def _dense_gauss_newton(model: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    model, x, name, W = _in_double(model, x, layer)

    def logits(weight: Tensor) -> Tensor:
        return functional_call(model, {name: weight}, (x,))

    J = jacrev(logits)(W).flatten(2)  # (N, K, C d)
    p = logits(W).softmax(1)
    A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nki,nkl,nlj->ij", J, A, J).detach() / len(x), W


def by_differences(model: nn.Module, x: Tensor, layer: str) -> tuple[float, float]:
    """Return (trace, kappa) of the Gauss-Newton matrix from central differences of the logits.

    No backward pass at all: right to about eight digits where the logits are smooth, or no kink
    is near.
    """
    model, x, name, W = _in_double(model, x, layer)
    J = []
    with torch.no_grad():
        for j in range(W.numel()):
            step = torch.zeros_like(W)
            step.view(-1)[j] = 1e-5
            ends = [functional_call(model, {name: W + s * step}, (x,)) for s in (1, -1)]
            J.append((ends[0] - ends[1]) / 2e-5)
        p = model(x).softmax(1)
    A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    G = torch.einsum("ink,nkl,jnl->ij", torch.stack(J), A, torch.stack(J)) / len(x)
    return _trace_and_kappa(G, W)


def by_kernel_gradients(
    model: nn.Module, x: Tensor, layers: list[str], *, copied: bool = True
) -> dict[str, tuple[float, float]]:
    """Return each layer's Gauss-Newton (trace, kappa) where the matrix itself is too large.

    One sample and one class at a time: autograd's own kernel gradients of the logits, and the
    full K x K Hessian of the cross-entropy in the logits. Each sample is evaluated beside a copy
    of itself: torch's batch norm is not differentiated rightly for one alone.
    """
    model = (copy.deepcopy(model) if copied else model).double().eval()
    weights = [model.get_parameter(kernel_of(model, layer)) for layer in layers]
    sums = {layer: [0.0, 0.0] for layer in layers}
    for n in range(len(x)):
        logits = model(x[[n, n]].double())[0]
        p = logits.detach().softmax(0)
        A = torch.diag(p) - torch.outer(p, p)
        rows = [torch.autograd.grad(logit, weights, retain_graph=True) for logit in logits]
        for i, layer in enumerate(layers):
            J = torch.stack([row[i] for row in rows]).flatten(2)  # (K, C, d)
            W = weights[i].detach().flatten(1)
            # sum_kl A_kl J_k J_l^T, whose diagonal over fan-ins is contracted with W W^T
            AJ = torch.einsum("kl,lcd->kcd", A, J)
            sums[layer][0] += float((J * AJ).sum())
            if W.shape[1] < W.shape[0]:  # sum_ce <J_c, AJ_e> <W_c, W_e> = <W^T J, W^T AJ>
                sums[layer][1] += float(((W.T @ J) * (W.T @ AJ)).sum())
            else:
                blocks = torch.einsum("kcd,ked->ce", J, AJ)
                sums[layer][1] += float((blocks * (W @ W.T)).sum())
    return {layer: (t / len(x), k / len(x)) for layer, (t, k) in sums.items()}


def by_output_hessian(model: nn.Module, x: Tensor, y: Tensor, layer: str) -> tuple[float, float]:
    """Return (trace, kappa) from the dense Hessian in the output of a 1x1 convolution.

    The output is linear in the kernel, A_c(p) = sum_j W_cj z_j(p), so the kernel's Hessian is
    sum_pq z_i(p) z_j(q) times the output's; second derivatives of everything behind included.
    """
    model = copy.deepcopy(model).double().eval()
    conv = model.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    assert conv.kernel_size == (1, 1)
    W = conv.weight.detach().flatten(1)
    trace = kappa = 0.0
    for n in range(len(x)):
        z, output = _input_and_output(model, conv, x[n : n + 1].double())

        def loss(changed: Tensor, n: int = n) -> Tensor:
            put = conv.register_forward_hook(lambda m, a, out: changed.view_as(out))
            result = F.cross_entropy(model(x[n : n + 1].double()), y[n : n + 1])
            put.remove()
            return result

        changed = output.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(changed), changed, create_graph=True)
        C, P = output.shape[1], output[0, 0].numel()
        G = z.flatten(2)[0].T @ z.flatten(2)[0]
        Q = W @ W.T
        for c in torch.arange(C).split(64):
            # Rows of the Hessian, (64 P, C, P), by one vectorised backward pass.
            entries = (c[:, None] * P + torch.arange(P)).flatten()
            ones = F.one_hot(entries, C * P).to(first.dtype).view(-1, *first.shape)
            (rows,) = torch.autograd.grad(
                first, changed, ones, retain_graph=True, is_grads_batched=True
            )
            H = rows.view(len(c), P, C, P)
            blocks = torch.einsum("pq,cpdq->cd", G, H)  # sum_pq G(p, q) H[(c, p), (d, q)]
            trace += float(blocks[range(len(c)), c].sum())
            kappa += float((Q[c] * blocks).sum())
    return trace / len(x), kappa / len(x)


def _input_and_output(model: nn.Module, conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []
    keep = conv.register_forward_hook(lambda m, a, out: seen.extend([a[0], out]))
    model(x)
    keep.remove()
    return seen[0].detach(), seen[1].detach()
