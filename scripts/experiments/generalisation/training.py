"""Training to a training loss, not for a number of epochs.

The learning rate is a fifth of what it was from the 51st epoch on.
Steps are those of SGD with momentum 0.9 or AdamW; with `sam`, the gradient is taken where the
loss is largest nearby, to first order (Foret et al. 2021, arXiv 2010.01412, radius 0.02). Weight
decay is of kernels and the classifier's matrix. Augmentation mirrors every other image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LEVELS", "MILESTONES", "SAM_RADIUS", "score", "train", "weights"]

SAM_RADIUS, MILESTONES = 0.02, (50,)
# What the levels of two factors mean with each optimiser: learning rate, weight decay.
LEVELS = {
    "sgd": ({"low": 0.05, "high": 0.1}, {"none": 0.0, "some": 1e-3}),
    "adamw": ({"low": 0.003, "high": 0.006}, {"none": 0.0, "some": 0.05}),
}


def weights(net: nn.Module) -> list[nn.Parameter]:
    """Return the kernels and the classifier's matrix."""
    return [p for p in net.parameters() if p.dim() > 1]


@torch.no_grad()
def score(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return every image's loss and whether it is classified right, in eval mode."""
    net.eval()
    logits = torch.cat([net(part) for part in x.split(500)]).double()
    return F.cross_entropy(logits, y, reduction="none"), logits.argmax(1) == y


def _mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, every other one mirrored, at random."""
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)


def _climb(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Replace the gradient by the one where the loss is largest nearby, to first order."""
    parameters = [p for p in net.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm()
    steps = [p.grad * (SAM_RADIUS / (norm + 1e-12)) for p in parameters]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        torch._foreach_add_(parameters, steps)
    # The statistics of batch norm are those of the weights that are kept.
    for module in norms:
        module.momentum = 0.0
    net.zero_grad(set_to_none=True)
    F.cross_entropy(net(x), y).backward()
    for module in norms:
        module.momentum = 0.1
    with torch.no_grad():
        torch._foreach_sub_(parameters, steps)


def train(
    net: nn.Module, x: Tensor, y: Tensor, levels: dict, seed: int, epochs: int
) -> Iterator[tuple[int, float, float]]:
    """Train a network, and score it on its training images after every epoch.

    Args:
        net: Changed in place; in eval mode after every epoch.
        x: Training images.
        y: Their classes, wrong ones included.
        levels: The configuration's.
        seed: Of the order of images and of augmentation.
        epochs: How many at most.

    Yields:
        The epoch, and the mean loss and accuracy on `x` as it is, in eval mode.
    """
    rates, decays = LEVELS[levels["optimiser"]]
    kernels, others = weights(net), [p for p in net.parameters() if p.dim() <= 1]
    groups = [
        {"params": kernels, "weight_decay": decays[levels["weight_decay"]]},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = rates[levels["learning_rate"]]
    if levels["optimiser"] == "sgd":
        optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    else:
        optimiser = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, MILESTONES, gamma=0.2)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        net.train()
        for chosen in torch.randperm(len(y), generator=generator).split(levels["batch_size"]):
            images, classes = x[chosen], y[chosen]
            if levels["augmentation"] != "none":
                images = _mirrored(images, generator)
            net.zero_grad(set_to_none=True)
            F.cross_entropy(net(images), classes).backward()
            if levels["sam"] == "yes":
                _climb(net, images, classes)
            optimiser.step()
        schedule.step()
        losses, right = score(net, x, y)
        yield epoch, float(losses.mean()), float(right.double().mean())
