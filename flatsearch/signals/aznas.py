"""AZ-NAS: how an untrained network's blocks use their channels, and pass gradients on.

Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024,
arXiv 2403.19232. Three of its four signals; the fourth, complexity, is the number of FLOPs. The
paper adds up the logarithms of their ranks among the candidates.

A block here is a child of the network's feature extractor, nested `Sequential`s unfolded: a stem
convolution with the normalisation and activation behind it, a residual block, a cell. Images are
Gaussian noise, and normalisation uses the batch's statistics.
"""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["block_outputs", "entropy", "expressivity", "progressivity", "trainability"]


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.Sequential):
            yield from _children(child)
        else:
            yield child


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs are those of the blocks, in order."""
    features = getattr(model, "features", model)
    blocks: list[nn.Module] = []
    bare = False
    for child in _children(features):
        if isinstance(child, nn.Conv2d) or list(child.children()):
            blocks.append(child)
            bare = isinstance(child, nn.Conv2d)
        elif bare:  # a normalisation, activation or pooling behind a convolution ends its block
            blocks[-1] = child
    return blocks


def block_outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the maps (N, C, h, w) of a network's blocks in order, with their graph.

    The network is put into train mode.
    """
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # A copy: what follows may work in place.
        output = output.clone()
        if output.dim() == 4:
            outputs.append(output)
        return output

    with contextlib.ExitStack() as hooks:
        for block in _blocks(model):
            hooks.enter_context(block.register_forward_hook(keep))
        model.train()(x)
    return outputs


def entropy(maps: Tensor) -> float:
    """Return the entropy of the principal components' shares of a map's variance.

        sum_i -v_i log v_i,   v the eigenvalues of the channels' covariance over images and
                              positions, divided by their sum

    between 0 (one direction, or a constant map) and log C (isotropic). Equations 2 and 3 of the
    paper. The maps are (N, C, h, w).

    Example:
        >>> maps = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(entropy(maps.view(4, 2, 1, 1)), 6) == round(math.log(2), 6)
        True
    """
    rows = maps.detach().movedim(1, -1).flatten(0, -2).double()
    rows = rows - rows.mean(0)
    values = torch.linalg.eigvalsh(rows.T @ rows / len(rows)).clamp(min=0)
    total = float(values.sum())
    if not total > 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum())


def _noise(x: Tensor) -> Tensor:
    return torch.randn(x.shape, device=x.device, dtype=x.dtype)


def _entropies(model: nn.Module, x: Tensor) -> list[float]:
    with torch.no_grad():
        return [entropy(maps) for maps in block_outputs(model, _noise(x))]


def expressivity(model: nn.Module, x: Tensor, _: Tensor | None = None) -> float:
    """Return the sum of the blocks' entropies, equation 4.

        sum_l S_l

    with S_l the `entropy` of the map of block l.
    """
    return sum(_entropies(model, x))


def progressivity(model: nn.Module, x: Tensor, _: Tensor | None = None) -> float:
    """Return the smallest growth of the entropy from one block to the next, equation 5.

        min_l ( S_l - S_{l-1} )

    with S_l the `entropy` of the map of block l; 0 with a single block.
    """
    values = _entropies(model, x)
    return min((b - a for a, b in pairwise(values)), default=0.0)


def _match(gradient: Tensor, like: Tensor) -> Tensor:
    """Fold the positions of a larger map into channels, so that both have the same positions."""
    factor = gradient.shape[-1] // max(1, like.shape[-1])
    if factor > 1 and gradient.shape[-2:] == tuple(factor * s for s in like.shape[-2:]):
        return torch.nn.functional.pixel_unshuffle(gradient, factor)
    return gradient


def _isometry(before: Tensor, after: Tensor) -> float:
    signs = torch.randint(0, 2, after.shape, device=after.device).to(after.dtype) * 2 - 1
    (back,) = torch.autograd.grad(after, before, signs, retain_graph=True, allow_unused=True)
    if back is None or (back.shape == signs.shape and torch.equal(back, signs)):
        return -math.inf  # nothing gets through, or nothing is done
    back = _match(back, signs)
    if back.shape[-2:] != signs.shape[-2:]:
        return math.nan
    left, right = (t.movedim(1, -1).flatten(0, -2).double() for t in (back, signs))
    largest = float(torch.linalg.matrix_norm(left.T @ right / len(right), 2))
    return -largest - 1 / (largest + 1e-6) + 2


def trainability(model: nn.Module, x: Tensor, _: Tensor | None = None) -> float:
    """Return how near the blocks' Jacobians are to isometries, equations 6 to 8.

        mean_l ( 2 - s_l - 1 / s_l ),   s_l = | E[ (J_l^T e) e^T ] |, the spectral norm

    e of random signs, the mean over images and positions; at most 0, which is best. A block that
    hands everything or nothing on makes it -inf. The mean is over the blocks but the first whose
    positions fit those of the one before.
    """
    outputs = block_outputs(model, _noise(x))
    scores = [_isometry(before, after) for before, after in pairwise(outputs)]
    known = [score for score in scores if not math.isnan(score)]
    return sum(known) / len(known) if known else 0.0
