from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flatsearch.data.splits import Split
from flatsearch.training.evaluation import accuracy_interval, calibration_error, score


class Pixels(nn.Module):
    """Logits are the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def split(logits: list[list[float]], targets: list[int]) -> Split:
    images = torch.tensor(logits)[:, :, None, None]
    zero, one = torch.zeros(1, len(logits[0]), 1, 1), torch.ones(1, len(logits[0]), 1, 1)
    return Split(images, torch.tensor(targets), zero, one)


def test_scores_by_hand() -> None:
    # Softmax of (log 3, 0) is (3/4, 1/4).
    log3 = float(torch.tensor(3.0).log())
    found = score(Pixels(), split([[log3, 0], [log3, 0], [0, log3], [log3, 0]], [0, 0, 1, 1]))
    assert found.accuracy == 0.75
    assert found.confusion == ((2, 0), (1, 1))  # rows are true classes
    expected = -(3 * torch.tensor(0.75).log() + torch.tensor(0.25).log()) / 4
    assert found.loss == pytest.approx(float(expected))
    assert found.calibration_error == pytest.approx(0, abs=1e-6)  # 3/4 sure, 3 of 4 right
    assert found.n_samples == 4


def test_calibration_error_bins() -> None:
    p = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45]])
    # Two bins: 0.95 sure and all right (0.05), 0.55 sure and none right (0.55).
    assert calibration_error(p, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.3)
    # In one bin over- and underconfidence cancel.
    found = calibration_error(p, torch.tensor([0, 0, 1, 1]), bins=1)
    assert found == pytest.approx(0.75 - 0.5)
    sure = torch.tensor([[1.0, 0.0]])
    assert calibration_error(sure, torch.tensor([0])) == 0  # the edges are in bins too


def test_interval_of_wilson() -> None:
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964
    z, p, n = 1.959964, 0.8, 50
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = accuracy_interval(p, n)
    assert low == pytest.approx((middle - half) / (1 + z**2 / n), rel=1e-5)
    assert high == pytest.approx((middle + half) / (1 + z**2 / n), rel=1e-5)
    assert accuracy_interval(1.0, 10)[1] == pytest.approx(1)
