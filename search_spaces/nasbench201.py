"""`nasbench201`: the 15,625 cells of NAS-Bench-201.

Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search",
ICLR 2020, arXiv 2001.00326. A cell has four nodes; each of its six edges carries one of five
operations, and a node is the sum of what its edges bring. The network is a stem, three stages of
N = 5 cells of 16, 32 and 64 channels with a residual block of stride 2 between stages, batch
norm, global average pooling and a linear classifier.

The string form is the benchmark's own: node after node, each edge as `operation~source`,

    |nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|none~1|avg_pool_3x3~2|
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import Tensor, nn

from flatsearch.networks.gap_cnn import GapCnn
from flatsearch.spaces.space import Architecture

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna

__all__ = ["OPERATIONS", "NasBench201", "cell_string", "parse_cell"]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
# (target node, source node) in the order of the string; node 0 is the cell's input.
_EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
# Larger images are halved by the stem until they are not: the benchmark itself is for 32x32.
_LARGEST_MAP = 64


def cell_string(operations: Sequence[str]) -> str:
    """Return the benchmark's string of six operations.

    Args:
        operations: In the order of the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3.

    Returns:
        The string.

    Raises:
        ValueError: If there are not six of them, or one is unknown.

    Example:
        >>> cell_string(["none"] * 6)
        '|none~0|+|none~0|none~1|+|none~0|none~1|none~2|'
    """
    unknown = [name for name in operations if name not in OPERATIONS]
    if len(operations) != len(_EDGES) or unknown:
        raise ValueError(
            f"a cell has {len(_EDGES)} operations of {', '.join(OPERATIONS)} but got"
            f" {', '.join(operations)}"
        )
    nodes = []
    for node in (1, 2, 3):
        edges = zip(_EDGES, operations, strict=True)
        nodes.append(
            "".join(f"|{name}~{source}" for (target, source), name in edges if target == node)
        )
    return "|+".join(nodes) + "|"


def parse_cell(text: str) -> tuple[str, ...]:
    """Return the six operations of a cell's string.

    Args:
        text: As `cell_string` writes it.

    Returns:
        The operations, in the order of the edges.

    Raises:
        ValueError: If the text is not such a string.

    Example:
        >>> parse_cell("|none~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_3x3~2|")[2]
        'skip_connect'
    """
    operations = tuple(re.findall(r"\|([a-z_0-9]+)~\d", text))
    if cell_string(operations) != text:
        raise ValueError(f"not a NAS-Bench-201 cell: {text!r}")
    return operations


def _relu_conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0


def _operation(name: str, channels: int) -> nn.Module:
    if name == "none":
        return _Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return _relu_conv_norm(channels, channels, 1 if name == "nor_conv_1x1" else 3)


class _Cell(nn.Module):
    """Four nodes; node 3 is the output."""

    def __init__(self, operations: Sequence[str], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList([_operation(name, channels) for name in operations])

    def forward(self, x: Tensor) -> Tensor:
        nodes = {0: x}
        for (target, source), edge in zip(_EDGES, self.edges, strict=True):
            value = edge(nodes[source])
            nodes[target] = nodes[target] + value if target in nodes else value
        return nodes[3]


class _Reduction(nn.Module):
    """The residual block of stride 2 between two stages."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(inputs, outputs, 1, bias=False)
        )
        self.branch = nn.Sequential(
            _relu_conv_norm(inputs, outputs, 3, 2), _relu_conv_norm(outputs, outputs, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        return shortcut + self.branch(x)


class NasBench201:
    """The 15,625 cells of NAS-Bench-201, one operation per edge.

    Parameters of a trial: `edge_0_1`, `edge_0_2`, `edge_1_2`, `edge_0_3`, `edge_1_3`, `edge_2_3`,
    each none, skip_connect, nor_conv_1x1, nor_conv_3x3 or avg_pool_3x3.

    Args:
        width: Channels of the first stage; the benchmark's networks have 16.
        cells: Cells per stage; the benchmark's networks have 5.

    Example:
        >>> import optuna
        >>> params = {f"edge_{s}_{t}": "nor_conv_3x3" for t, s in _EDGES}
        >>> architecture = NasBench201().suggest(optuna.trial.FixedTrial(params))
        >>> architecture["cell"][:16]
        '|nor_conv_3x3~0|'
    """

    name = "nasbench201"

    def __init__(self, width: int = 16, cells: int = 5) -> None:
        self._widths = (width, 2 * width, 4 * width)
        self._cells = cells

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Return the architecture of a trial's parameters."""
        operations = [
            trial.suggest_categorical(f"edge_{source}_{target}", OPERATIONS)
            for target, source in _EDGES
        ]
        return Architecture(self.name, {"cell": cell_string(operations)})

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> GapCnn:
        """Return a freshly initialised network, as `SearchSpace.build` asks for."""
        operations, widths = parse_cell(architecture["cell"]), self._widths
        stride = 1 if image_size <= _LARGEST_MAP else 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, widths[0], 3, stride, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
        ]
        for stage, width in enumerate(widths):
            if stage:
                layers.append(_Reduction(widths[stage - 1], width))
            layers += [_Cell(operations, width) for _ in range(self._cells)]
        layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
        return GapCnn(nn.Sequential(*layers), widths[-1], num_classes)
