"""Reading a program that `torch.export.save` wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flatsearch.errors import UsageError
from flatsearch.export.card import METADATA, ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["exported_card", "load_exported"]


def load_exported(path: Path) -> nn.Module:
    """Load an exported program as a model that can be measured.

    Args:
        path: A `.pt2` file of `torch.export.save`, with a dynamic batch dimension.

    Returns:
        A module from images to logits, with the parameters' own names.

    Raises:
        UsageError: If the file is missing, is something else, or takes one batch size only.
    """
    if not path.is_file():
        raise UsageError(f"model file {str(path)!r} does not exist")
    try:
        program = torch.export.load(path)
        module: Any = program.module()
    except Exception as error:  # a damaged archive can fail in any way
        raise UsageError(
            f"{str(path)!r} is not a program saved by torch.export.save:"
            f" {type(error).__name__} while reading it"
        ) from None
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    shape: list[Any] = list(inputs[0].meta["val"].shape) if len(inputs) == 1 else []
    if len(shape) != 4:
        raise UsageError(f"{str(path)!r} does not take one batch of images (N, C, H, W)")
    if isinstance(shape[0], int):
        raise UsageError(
            f"{str(path)!r} takes batches of exactly {shape[0]}; export it with a dynamic batch:"
            " torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('n')},))"
        )
    # A plain graph module: that of the program checks shapes, and refuses eval().
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    return torch.fx.GraphModule(module, module.graph)


def exported_card(path: Path) -> ModelCard | None:
    """Return the card of a program that flatsearch exported; None of any other."""
    extra = {METADATA: ""}
    torch.export.load(path, extra_files=extra)
    return ModelCard.from_json(extra[METADATA], path) if extra[METADATA] else None
