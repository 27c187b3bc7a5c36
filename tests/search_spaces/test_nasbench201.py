"""The benchmark's cells: strings both ways, and the published sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from flatsearch import Architecture, count_parameters
from search_spaces.nasbench201 import OPERATIONS, NasBench201, cell_string, parse_cell


def model(*operations: str) -> torch.nn.Module:
    cell = cell_string(operations)
    return NasBench201().build(Architecture("nasbench201", {"cell": cell}), 3, 10)


def test_all_cells_round_trip() -> None:
    cells = [cell_string(operations) for operations in itertools.product(OPERATIONS, repeat=6)]
    assert len(set(cells)) == 15_625
    for operations, cell in zip(itertools.product(OPERATIONS, repeat=6), cells, strict=True):
        assert parse_cell(cell) == operations


@pytest.mark.parametrize(
    "text", ["", "|none~0|", "|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "|conv~0|" * 6]
)
def test_other_strings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a cell has 6 operations|not a NAS-Bench-201 cell"):
        parse_cell(text)


def test_published_sizes() -> None:
    # The benchmark's API gives 1.531546 MB of parameters for the cell of 3x3 convolutions only,
    # and 0.073306 for networks whose cells have no parameters (CIFAR-10, N = 5, C = 16).
    assert count_parameters(model(*["nor_conv_3x3"] * 6)) == 1_531_546
    assert count_parameters(model(*["skip_connect"] * 6)) == 73_306


def test_what_the_cell_computes() -> None:
    cell = model("skip_connect", "none", "skip_connect", "none", "none", "avg_pool_3x3").features[2]
    x = torch.randn(1, 16, 6, 6)
    expected = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert torch.equal(cell(x), expected)
    summed = model(*["skip_connect"] * 6).features[2]
    assert torch.allclose(summed(x), 4 * x)  # 0-3, 0-1-3, 0-2-3 and 0-1-2-3


def test_a_smaller_network_of_the_same_cell() -> None:
    # Stem, three stages of one cell of one 1x1 convolution, two reductions, head.
    cell = "|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|"
    architecture = Architecture("nasbench201", {"cell": cell})
    net = NasBench201(width=2, cells=1).build(architecture, in_channels=1, num_classes=3)
    convs = 9 * 2 + (2 * 2 + 4 * 4 + 8 * 8) + (2 * 4 * 10 + 9 * 16) + (4 * 8 * 10 + 9 * 64)
    norms = 2 * (2 + (2 + 4 + 8) + (4 + 4) + (8 + 8) + 8)
    assert count_parameters(net) == convs + norms + 8 * 3 + 3
