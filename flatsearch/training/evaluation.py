"""How good a trained classifier is, from its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsearch.training.computation import Computation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flatsearch.data.splits import Split

__all__ = [
    "Scores",
    "Validation",
    "accuracy_interval",
    "calibration_error",
    "evaluate",
    "per_image",
    "reliability",
    "score",
    "scores_of",
    "validate",
]

_BATCH = 512
_BINS = 15


@dataclass(frozen=True)
class Scores:
    """What a classifier did on a split.

    Attributes:
        accuracy: Fraction right.
        loss: Mean cross-entropy in nats.
        calibration_error: See `calibration_error`.
        confusion: Counts; a row per true class, a column per predicted one.
        n_samples: Images.
        calibration: (mean confidence, accuracy, images) of every bin of the calibration error that
            holds images; empty in results of earlier versions.
    """

    accuracy: float
    loss: float
    calibration_error: float
    confusion: tuple[tuple[int, ...], ...]
    n_samples: int
    calibration: tuple[tuple[float, float, int], ...] = ()

    @property
    def balanced_accuracy(self) -> float:
        """The fraction right of a class, averaged over the classes that there are.

        Example:
            >>> round(Scores(0.9, 0.3, 0.0, ((17, 1), (1, 1)), 20).balanced_accuracy, 3)
            0.722
        """
        rows = [(row[i], sum(row)) for i, row in enumerate(self.confusion) if sum(row)]
        return sum(right / total for right, total in rows) / len(rows)

    @property
    def uneven(self) -> bool:
        """Whether a class has more than one and a half times as many images as another."""
        totals = [sum(row) for row in self.confusion if sum(row)]
        return max(totals) > 1.5 * min(totals)


def accuracy_interval(accuracy: float, n: int) -> tuple[float, float]:
    """Return the 95% score interval (Wilson 1927) of an accuracy on n images.

    Example:
        >>> low, high = accuracy_interval(0.9, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    from scipy import stats  # takes a second to load

    interval = stats.binomtest(round(accuracy * n), n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def calibration_error(probabilities: Tensor, targets: Tensor, bins: int = _BINS) -> float:
    """Return the expected calibration error.

        ECE = sum_b n_b / N | accuracy_b - confidence_b |

    over bins of equal width of the largest probability (Guo et al., "On Calibration of Modern
    Neural Networks", ICML 2017, equation 3).

    Args:
        probabilities: (N, K).
        targets: Classes (N,).
        bins: How many.

    Returns:
        In [0, 1].

    Example:
        >>> p = torch.tensor([[0.8, 0.2], [0.8, 0.2]])
        >>> round(calibration_error(p, torch.tensor([0, 1])), 6)  # 0.8 sure, half right
        0.3
    """
    return _mean_gap(reliability(probabilities, targets, bins))


def _mean_gap(found: tuple[tuple[float, float, int], ...]) -> float:
    """Return the calibration error of what `reliability` returns."""
    gaps = sum(n * abs(right - sure) for sure, right, n in found)
    return gaps / sum(n for *_, n in found)


def reliability(
    probabilities: Tensor, targets: Tensor, bins: int = _BINS
) -> tuple[tuple[float, float, int], ...]:
    """Return how often a classifier is right that is so sure, by bins of how sure it is.

    Args:
        probabilities: (N, K).
        targets: Classes (N,).
        bins: How many, of equal width of the largest probability.

    Returns:
        The mean of the largest probability, the fraction right and the number of images, of every
        bin that holds images.

    Example:
        >>> p = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
        >>> reliability(p, torch.tensor([0, 1]))
        ((0.75, 0.5, 2),)
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == targets).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(3, bins, dtype=torch.float64, device=targets.device)
    sums.index_add_(1, index, torch.stack([confidence, right, torch.ones_like(right)]))
    return tuple((sure / n, hits / n, int(n)) for sure, hits, n in sums.T.tolist() if n)


@torch.no_grad()
def per_image(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor] | None:
    """Return what a classifier does on every image.

    Args:
        model: In eval mode.
        batches: Inputs and targets, on the model's device.

    Returns:
        The cross-entropy and, 1 or 0, whether it is right, (N,) in float64; None of no batch.
    """
    losses, hits = [], []
    for x, y in batches:
        logits = model(x).double()
        losses.append(F.cross_entropy(logits, y, reduction="none"))
        hits.append((logits.argmax(1) == y).double())
    return (torch.cat(losses), torch.cat(hits)) if losses else None


@torch.no_grad()
def score(model: nn.Module, split: Split) -> Scores:
    """Run a classifier over a split, in eval mode.

    Args:
        model: On the split's device; left in eval mode.
        split: Images and targets.

    Returns:
        Its scores.
    """
    model.eval()
    logits = torch.cat([model(x).double() for x, _ in split.batches(_BATCH)])
    return scores_of(logits, split.targets)


def scores_of(logits: Tensor, targets: Tensor) -> Scores:
    """Return the scores of logits (N, K), float64, for the true classes (N,)."""
    classes = logits.shape[1]
    counts = torch.bincount(targets * classes + logits.argmax(1), minlength=classes**2)
    calibration = reliability(logits.softmax(1), targets)
    return Scores(
        accuracy=float((logits.argmax(1) == targets).double().mean()),
        loss=float(F.cross_entropy(logits, targets)),
        calibration_error=_mean_gap(calibration),
        confusion=tuple(map(tuple, counts.view(classes, classes).tolist())),
        n_samples=len(targets),
        calibration=calibration,
    )


# Images per forward pass where no gradients are needed.
EVALUATION_BATCH = 512


class Validation(NamedTuple):
    """What a classifier in training does on a split.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: Fraction right.
        balanced_accuracy: The fraction right of a class, averaged over the classes that there are.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float


def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int = EVALUATION_BATCH,
    computation: Computation | None = None,
) -> tuple[float, float]:
    """Return (mean cross-entropy, accuracy) in eval mode; see `validate`."""
    return validate(model, split, batch_size, computation)[:2]


@torch.no_grad()
def validate(
    model: nn.Module,
    split: Split,
    batch_size: int = EVALUATION_BATCH,
    computation: Computation | None = None,
) -> Validation:
    """Run a classifier over a split in eval mode, in which it is left.

    The device is waited for once.

    Args:
        model: On the split's device.
        split: Images and targets.
        batch_size: Images per forward pass.
        computation: How the network is computed; in its own precision where None.

    Returns:
        The loss and the accuracies.
    """
    model.eval()
    computation = computation or Computation()
    loss = torch.zeros(1, dtype=torch.float64, device=split.targets.device)
    counts = loss  # of images, and of those that are right, by class: (2, K) from the first batch
    for x, y in split.batches(batch_size):
        with computation.autocast(x.device):
            logits = model(computation.lay_out(x))
        loss += F.cross_entropy(logits.float(), y, reduction="sum")
        if counts is loss:
            counts = loss.new_zeros(2, logits.shape[1])
        right = (logits.argmax(1) == y).double()
        counts.index_add_(1, y, torch.stack([torch.ones_like(right), right]))
    total, *by_class = torch.cat([loss, counts.flatten()]).tolist()
    classes = len(by_class) // 2
    images, hits = by_class[:classes], by_class[classes:]
    shares = [hit / n for hit, n in zip(hits, images, strict=True) if n]
    n = len(split)
    return Validation(total / n, sum(hits) / n, sum(shares) / len(shares))
