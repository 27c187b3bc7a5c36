"""A network's layers as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsearch.networks.layers import Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["draw"]

_BAR = 32


def draw(layers: Sequence[Layer], in_channels: int, image_size: int) -> list[str]:
    """Return a drawing of a network, a line per layer; bars are as long as maps have channels.

    Example:
        >>> for line in draw([Layer("conv 3x3", 8, 4, 4, 80, repeats=2)], 1, 4):
        ...     print(line)
        image            1 x 4x4  ####
        2 x conv 3x3     8 x 4x4  ################################  2 x 80
    """
    image = Layer("image", in_channels, image_size, image_size, 0)
    widest = max(layer.channels for layer in [image, *layers])
    rows = []
    for layer in [image, *layers]:
        times = f"{layer.repeats} x " if layer.repeats > 1 else ""
        size = f" x {layer.height}x{layer.width}" if layer.height else ""
        bar = "#" * max(1, round(_BAR * layer.channels / widest))
        count = f"{times}{layer.parameters:,}" if layer.parameters else ""
        rows.append((times + layer.kind, f"{layer.channels:4d}{size}", bar.ljust(_BAR), count))
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [
        f"{kind:{first}s} {size:{second}s}  {bar}  {count}".rstrip()
        for kind, size, bar, count in rows
    ]
