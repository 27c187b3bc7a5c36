"""Pictures of one trial as PNG files: its network, and how it learnt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flatsearch.networks.layers import Layer, executed_layers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

__all__ = ["draw_curves", "draw_network", "is_available"]

_COLOURS = {"image": "#cccccc", "conv": "#7fa7cf", "gate": "#d9a6c8", "linear": "#8fc49b"}
_OTHER = "#e3d58a"
_EDGE = "#444444"
# Inches: the widest box, a row, and all rows of a deep network.
_WIDEST, _ROW, _HIGHEST = 3.6, 0.4, 16.0
_DPI = 110


def is_available() -> bool:
    """Return whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def _figure(width: float, height: float, *margins: float) -> Any:
    # The object interface: pyplot keeps figures, and may want a display. Margins are given, in
    # inches: to find them takes as long as to draw.
    from matplotlib.figure import Figure

    left, right, bottom, top = margins
    figure = Figure(figsize=(width, height), dpi=_DPI)
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height, wspace=0.22
    )
    return figure


def draw_network(
    model: nn.Module, in_channels: int, image_size: int, path: Path, title: str
) -> None:
    """Draw the layers of a network from the image down, as boxes.

    A box is as wide as the square root of its share of the most channels; beside it stand what the
    layer does, channels and size of its output, and its parameters.

    Args:
        model: The network.
        in_channels: Channels of an image.
        image_size: Height and width.
        path: The PNG file to write.
        title: Above it.
    """
    from matplotlib.patches import FancyBboxPatch

    image = Layer("image", in_channels, image_size, image_size, 0)
    layers = [image, *executed_layers(model, in_channels, image_size)]
    row = min(_ROW, _HIGHEST / len(layers))
    font = 10 * row / _ROW
    figure = _figure(8.5, 0.5 + row * len(layers), 0, 0, 0, 0.35)
    axes = figure.add_subplot()
    widest = max(layer.channels for layer in layers)
    for index, layer in enumerate(layers):
        y = -row * index
        width = max(0.2, _WIDEST * math.sqrt(layer.channels / widest))
        colour = next((c for k, c in _COLOURS.items() if layer.kind.startswith(k)), _OTHER)
        if index:
            axes.plot([0, 0], [y + row, y], color=_EDGE, lw=1, zorder=1)
        box = FancyBboxPatch(
            (-width / 2, y - 0.36 * row),
            width,
            0.72 * row,
            fc=colour,
            ec=_EDGE,
            lw=0.8,
            zorder=2,
            boxstyle=f"round,pad=0,rounding_size={0.12 * row}",
        )
        axes.add_patch(box)
        times = f"{layer.repeats} x " if layer.repeats > 1 else ""
        size = f" x {layer.height}x{layer.width}" if layer.height else ""
        count = f"{times}{layer.parameters:,} parameters" if layer.parameters else ""
        place = {"va": "center", "fontsize": font}
        axes.text(-_WIDEST / 2 - 0.15, y, times + layer.kind, ha="right", **place)
        axes.text(_WIDEST / 2 + 0.15, y, f"{layer.channels}{size}", **place)
        axes.text(_WIDEST / 2 + 1.25, y, count, color="#666666", **place)
    axes.set(xlim=(-3.8, 4.9), ylim=(-row * (len(layers) - 0.4), 0.6 * row))
    axes.set_title(title, fontsize=11)
    axes.axis("off")
    figure.savefig(path)


def draw_curves(steps: Mapping[int, Mapping[str, float]], path: Path, title: str) -> None:
    """Draw accuracy, losses and flatness by epoch.

    Args:
        steps: Metrics by step; the first is 0.
        path: The PNG file to write.
        title: Above it.
    """
    from matplotlib.ticker import MaxNLocator

    panels = (
        (
            "accuracy",
            {
                "accuracy": "validation",
                "balanced_accuracy": "validation, balanced",
                "train_accuracy": "training",
            },
        ),
        ("cross-entropy", {"loss": "validation", "train_loss": "training"}),
        ("relative flatness", {"flatness": "last convolution", "flatness_all": "all"}),
    )
    figure = _figure(11, 3.4, 0.55, 0.15, 0.5, 0.6)
    for axes, (label, metrics) in zip(figure.subplots(1, 3), panels, strict=True):
        drawn: list[float] = []
        for name, legend in metrics.items():
            known = [(s + 1, m[name]) for s, m in steps.items() if name in m]
            if known:
                axes.plot(*zip(*known, strict=True), marker="o", ms=3, label=legend)
                drawn += [y for _, y in known]
        if label == "relative flatness" and drawn and min(drawn) > 0:
            axes.set_yscale("log")
        axes.set(xlabel="epoch", title=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if drawn:
            axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)
