"""Networks as pictures of a page: a bar for every layer, as wide as its map has channels."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from flatsearch.errors import FlatsearchError
from flatsearch.export.checkpoint import load_model
from flatsearch.networks.layers import Layer, executed_layers
from flatsearch.reports.colours import BLUE, GREY
from flatsearch.reports.text import number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flatsearch.analysis.summary import StudySummary

__all__ = ["drawings", "picture"]

_MOST_NETWORKS = 8
# In the picture's own units; it is as wide as the page allows.
_WIDTH, _ROW, _WIDEST, _MIDDLE = 400, 18, 130, 205


def drawings(summary: StudySummary, artifacts: Path) -> dict[int, str]:
    """Return pictures of the front's networks as SVG, by the numbers of their trials.

    Args:
        summary: The study.
        artifacts: Where the search saved its models; what is not there is not drawn.

    Returns:
        The pictures, of the first trials of the front.
    """
    found = {}
    for trial in map(summary.trial, summary.front[:_MOST_NETWORKS]):
        if trial.artifact is None or not (artifacts / trial.artifact).is_file():
            continue
        try:
            model, card = load_model(artifacts / trial.artifact)
        except FlatsearchError:  # its search space is gone, say: the page has the rest
            continue
        image = Layer("image", card.in_channels, card.image_size, card.image_size, 0)
        layers = executed_layers(model, card.in_channels, card.image_size)
        found[trial.number] = picture([image, *layers])
    return found


def picture(layers: Sequence[Layer]) -> str:
    """Return layers as SVG, in the order of execution from the top.

    Example:
        >>> picture([Layer("conv <3x3>", 8, 4, 4, 80, repeats=2)]).count("&lt;3x3&gt;")
        1
    """
    widest = max(layer.channels for layer in layers)
    rows = []
    for i, layer in enumerate(layers):
        top, width = i * _ROW, max(2.0, _WIDEST * layer.channels / widest)
        times = f"{layer.repeats} x " if layer.repeats > 1 else ""
        size = f" x {layer.height}x{layer.width}" if layer.height else ""
        weights = f", {times}{number(layer.parameters)}" if layer.parameters else ""
        rows += [
            f'<text x="0" y="{top + 12}">{html.escape(times + layer.kind)}</text>',
            f'<rect x="{_MIDDLE - width / 2:.1f}" y="{top + 2}" width="{width:.1f}"'
            f' height="{_ROW - 5}" fill="{BLUE if layer.parameters else GREY}"/>',
            f'<text x="{_WIDTH}" y="{top + 12}" text-anchor="end">{layer.channels}{size}{weights}'
            "</text>",
        ]
    return (
        f'<svg class="network" viewBox="0 0 {_WIDTH} {len(layers) * _ROW}" role="img"'
        f' fill="currentColor" font-size="11">{"".join(rows)}</svg>'
    )
