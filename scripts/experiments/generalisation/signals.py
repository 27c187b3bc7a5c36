"""Everything that is measured on a network, on all of its training images, in eval mode.

Sizes of steps and noise are fixed, whatever the network. "Weights" are the kernels and the
classifier's matrix; biases and batch norm are left out. `all` is all convolutions together.

| name | what | source |
|---|---|---|
| `kappa_*`, `trace_*`, `nu_*` | of the last convolution, all convolutions, the classifier (`head`); the `layers` column has them per layer | `flatsearch.relative_flatness` |
| `*_input_*` | the same with `normalize="input"` | |
| `trace_probes`, `nu_probes` | v'Hv of random signs v, of random signs times the size of the noise that nu is of: the mean is `trace_all`, `nu_all`; each of a tenth of the images, the tenths in turn | Hutchinson 1990 |
| `largest_eigenvalue` | of the loss's Hessian in the weights, 10 steps of Lanczos | |
| `sam` | rise of the loss after a step of length 0.05 along the gradient | Foret et al. 2021 |
| `adaptive_sam` | the same with steps relative to weights, length 0.5 | Kwon et al. 2021, arXiv 2102.11600 |
| `weight_noise` | mean rise of the loss under noise of a tenth of each filter's norm, 5 pairs of +/- | as in GeNAS, arXiv 2304.02466 |
| `gradient_norm` | of the loss in the weights | |
| `weight_norm`, `log_frobenius`, `log_spectral`, `distance` | norm of all weights; sums over layers of log Frobenius and log spectral norms; distance from the initialisation | Jiang et al. 2020 |
| `log_path_norm` | log of the sum of the logits of the network with squared weights, batch norm folded, on an image of ones | Neyshabur et al. 2015, arXiv 1504.03114 |
| `margin`, `normalised_margin` | tenth percentile over images of the margin, and of the margin over the norm of the image's logits | |
"""  # noqa: E501

from __future__ import annotations

import copy
import itertools
import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import score, weights

import flatsearch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COSTLY", "FLATNESS", "SIGNALS", "costly", "measure", "rescaled"]

PROBES = {"trace_probes": 100, "nu_probes": 50}
PARTS, LANCZOS, NOISE_PAIRS = 10, 10, 5
RADIUS, ADAPTIVE_RADIUS, NOISE = 0.05, 0.5, 0.1

FLATNESS = [f"{k}_{where}" for k in ("kappa", "trace", "nu") for where in ("last", "all", "head")]
# What `measure` returns beside the training loss and accuracy, and what `costly` adds.
SIGNALS = [
    *FLATNESS,
    "nu_all_error",
    "layers",
    "sam",
    "adaptive_sam",
    "weight_noise",
    "gradient_norm",
    "weight_norm",
    "log_frobenius",
    "log_spectral",
    "distance",
    "log_path_norm",
    "margin",
    "normalised_margin",
    "flatness_seconds",
]
COSTLY = [
    *(name.replace("_", "_input_") for name in FLATNESS),
    "input_layers",
    "largest_eigenvalue",
    *PROBES,
    "probes_seconds",
]


def _loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def kernels(net: nn.Module) -> list[nn.Parameter]:
    """Return the convolutions' kernels, in order."""
    return [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]


def flatness(net: nn.Module, x: Tensor, y: Tensor, normalize: str | None = None) -> dict:
    """Return kappa, trace and nu of the last convolution, all of them, and the classifier."""
    names = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    started = time.process_time()
    found = flatsearch.relative_flatness(net, (x, y), layers=names, normalize=normalize)
    values = {"flatness_seconds": round(time.process_time() - started, 2)}
    *convolutions, head = found.layers.values()
    parts = {"last": convolutions[-1:], "all": convolutions, "head": [head]}
    for key, field in (("kappa", "relative_flatness"), ("trace", "hessian_trace"), ("nu", "nu")):
        for where, layers in parts.items():
            values[f"{key}_{where}"] = math.fsum(getattr(layer, field) for layer in layers)
    text = (
        ":".join(f"{v:.6g}" for v in (m.relative_flatness, m.hessian_trace, m.nu, m.fan_in))
        for m in found.layers.values()
    )
    error = math.hypot(*(layer.nu_standard_error for layer in convolutions))
    return {**values, "nu_all_error": error, "layers": " ".join(text), "kind": found.kind}


def _moved(net: nn.Module, parameters: Sequence[Tensor], step: Sequence[Tensor], x, y) -> float:
    """Return the mean loss with a step added to some parameters; they are left as they were."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        torch._foreach_add_(parameters, step)
        loss = float(score(net, x, y)[0].mean())
        torch._foreach_copy_(parameters, before)
    return loss


def perturbations(net: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """Return the rises of the loss after steps of fixed size, and the gradient's norm."""
    wanted = weights(net)
    loss = float(score(net, x, y)[0].mean())
    gradient = torch.autograd.grad(_loss(net, x, y), wanted)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
    steps = [g * (RADIUS / max(norm, 1e-30)) for g in gradient]
    scaled = [w.detach().abs() * g for w, g in zip(wanted, gradient, strict=True)]
    size = math.sqrt(sum(float(s.double().square().sum()) for s in scaled))
    adaptive = [
        w.detach().abs() * s * (ADAPTIVE_RADIUS / max(size, 1e-30))
        for w, s in zip(wanted, scaled, strict=True)
    ]
    generator, found = torch.Generator().manual_seed(seed), kernels(net)
    rises = []
    for _ in range(NOISE_PAIRS):
        units = [NOISE * torch.randn(w.shape, generator=generator) for w in found]
        noise = _noise_sizes(found, units)
        rises += [_moved(net, found, [s * e for e in noise], x, y) - loss for s in (1, -1)]
    return {
        "sam": _moved(net, wanted, steps, x, y) - loss,
        "adaptive_sam": _moved(net, wanted, adaptive, x, y) - loss,
        "weight_noise": sum(rises) / len(rises),
        "gradient_norm": norm,
    }


def _noise_sizes(parameters: Sequence[Tensor], units: Sequence[Tensor]) -> list[Tensor]:
    """Return numbers of unit variance times the size that nu's noise has: |w_c| / sqrt(d)."""
    scaled = []
    for w, unit in zip(parameters, units, strict=True):
        rows = w.detach().flatten(1)
        size = rows.norm(dim=1) / math.sqrt(rows.shape[1])
        scaled.append(unit * size.view(-1, *[1] * (w.dim() - 1)))
    return scaled


def norms(net: nn.Module, initial: Sequence[Tensor]) -> dict[str, float]:
    """Return the norms of the weights, and their distance from `initial`."""
    matrices = [w.detach().double().flatten(1) for w in weights(net)]
    pairs = zip(matrices, initial, strict=True)
    return {
        "weight_norm": math.sqrt(sum(float(m.square().sum()) for m in matrices)),
        "log_frobenius": sum(math.log(float(m.norm())) for m in matrices),
        "log_spectral": sum(math.log(float(torch.linalg.matrix_norm(m, 2))) for m in matrices),
        "distance": math.sqrt(
            sum(float((m - start.double().flatten(1)).square().sum()) for m, start in pairs)
        ),
    }


@torch.no_grad()
def log_path_norm(net: nn.Module, channels: int, size: int) -> float:
    """Return the log of the path norm: every weight squared, batch norm as the weight it is."""
    squared = copy.deepcopy(net).double().eval()
    for module in squared.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(module.weight.square() / (module.running_var + module.eps))
            module.bias.zero_(), module.running_mean.zero_(), module.running_var.fill_(1)
            module.eps = torch.finfo(torch.float64).tiny  # 0 is refused by some versions
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.square_()
            if module.bias is not None:
                module.bias.square_()
    total = squared(torch.ones(1, channels, size, size, dtype=torch.float64)).sum()
    return float(total.log())


@torch.no_grad()
def margins(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the tenth percentiles of the margin and of the margin over the logits' norm."""
    logits = torch.cat([net(part) for part in x.split(500)]).double()
    own = logits.gather(1, y[:, None])[:, 0]
    margin = own - logits.scatter(1, y[:, None], -math.inf).max(1).values
    norm = (logits - logits.mean(1, keepdim=True)).norm(dim=1)
    return {
        "margin": float(margin.quantile(0.1)),
        "normalised_margin": float((margin / norm.clamp(min=1e-30)).quantile(0.1)),
    }


def measure(net: nn.Module, x: Tensor, y: Tensor, initial: Sequence[Tensor], seed: int) -> dict:
    """Return the training loss and accuracy, and every signal in `SIGNALS`.

    Args:
        net: A network; left in eval mode.
        x: All of its training images.
        y: The classes that it was trained on.
        initial: Its weights before training.
        seed: Of the noise.
    """
    losses, right = score(net, x, y)
    values = {"loss": float(losses.mean()), "accuracy": float(right.double().mean())}
    values |= flatness(net, x, y) | perturbations(net, x, y, seed) | norms(net, initial)
    values |= {"log_path_norm": log_path_norm(net, x.shape[1], x.shape[2])} | margins(net, x, y)
    return values


def costly(net: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict:
    """Return every signal in `COSTLY`."""
    scaled = flatness(net, x, y, normalize="input")
    values = {name.replace("_", "_input_"): scaled[name] for name in FLATNESS}
    values["input_layers"] = scaled["layers"]
    values["largest_eigenvalue"] = largest_eigenvalue(net, x, y, seed)
    started = time.process_time()
    for name, probes in hutchinson(net, x, y, seed).items():
        values[name] = " ".join(f"{v:.5g}" for v in probes)
    return values | {"probes_seconds": round(time.process_time() - started, 2)}


def hutchinson(net: nn.Module, x: Tensor, y: Tensor, seed: int) -> dict[str, list[float]]:
    """Return random v'Hv in the kernels whose mean is the trace, and such whose mean is nu."""
    generator, found = torch.Generator().manual_seed(seed), kernels(net)
    values: dict[str, list[list[float]]] = {name: [] for name in PROBES}
    for part in range(PARTS):
        # Every tenth image: the classes are one after the other.
        chosen = slice(part, None, PARTS)
        gradient = torch.autograd.grad(_loss(net, x[chosen], y[chosen]), found, create_graph=True)
        for name, probes in values.items():
            own = []
            for _ in range(PROBES[name] // PARTS):
                v = [torch.randint(2, w.shape, generator=generator) * 2.0 - 1 for w in found]
                v = _noise_sizes(found, v) if name == "nu_probes" else v
                product = torch.autograd.grad(gradient, found, v, retain_graph=True)
                own.append(sum(float((a * b).sum()) for a, b in zip(v, product, strict=True)))
            probes.append(own)
    # The first probe of every tenth, then the second of every tenth.
    return {name: np.array(probes).T.ravel().tolist() for name, probes in values.items()}


def largest_eigenvalue(net: nn.Module, x: Tensor, y: Tensor, seed: int) -> float:
    """Return the largest eigenvalue of the Hessian in the weights, by Lanczos' method."""
    wanted = weights(net)
    gradient = torch.autograd.grad(_loss(net, x, y), wanted, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    v = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))
    basis, diagonal, below = [v / v.norm()], [], []
    for _ in range(LANCZOS):
        product = torch.autograd.grad(flat, wanted, basis[-1], retain_graph=True)
        v = torch.cat([p.flatten() for p in product])
        diagonal.append(float(v @ basis[-1]))
        for other in basis:
            v = v - (v @ other) * other
        below.append(float(v.norm()))
        if below[-1] < 1e-12:
            break
        basis.append(v / v.norm())
    off = below[: len(diagonal) - 1]
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)).max())


@torch.no_grad()
def rescaled(net: nn.Module, seed: int) -> nn.Module:
    """Return the same function with filters of other sizes.

    Every filter is multiplied by a random factor between 1/5 and 5, and the batch norm that
    follows it undoes that: its mean is multiplied by the factor and its weight divided.
    """
    generator, other = torch.Generator().manual_seed(seed), copy.deepcopy(net)
    modules = list(other.modules())
    for conv, norm in itertools.pairwise(modules):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            factor = 5 ** (2 * torch.rand(len(conv.weight), generator=generator) - 1)
            conv.weight.mul_(factor.view(-1, 1, 1, 1))
            norm.running_mean.mul_(factor)
            norm.weight.div_(factor)
    return other
