"""What notebooks show of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flatsearch
from flatsearch import Architecture
from tests.cases import small_study

if TYPE_CHECKING:
    from flatsearch.data.splits import ImageData


def test_an_architecture_has_a_drawing_where_its_space_is_known() -> None:
    values = {"activation": "relu", "halve_before": [], "kernel": 3, "widths": [8, 16]}
    page = Architecture("plain_cnn", values)._repr_html_()
    assert "<b>plain_cnn: 8-16 · relu · kernel 3</b>" in page
    assert "<td>widths</td><td>8-16</td>" in page
    assert "conv 3x3" in page
    for unknown in (Architecture("<nowhere>", values), Architecture("plain_cnn", {"depth": 3})):
        page = unknown._repr_html_()
        assert "<pre" not in page
        assert "<nowhere>" not in page


def test_a_summary_shows_the_front() -> None:
    page = flatsearch.summarise(small_study())._repr_html_()
    assert "study made: 5 complete, 1 pruned" in page
    assert "<tr><td>0</td><td>0.9</td><td>40</td><td>3</td></tr>" in page
    assert "The trial to go on with is" in page


def test_a_measurement_shows_its_layers(few_digits: ImageData) -> None:
    space = flatsearch.load_space("plain_cnn")
    values = {"activation": "relu", "halve_before": [], "kernel": 3, "widths": [4, 4]}
    model = space.build(Architecture("plain_cnn", values), in_channels=1, num_classes=10)
    page = flatsearch.relative_flatness(model, few_digits.probe.tensors(), "all")._repr_html_()
    assert page.count("<tr>") == 4
    assert "<td>all of them</td>" in page
