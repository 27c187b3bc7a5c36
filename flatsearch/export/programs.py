"""Reading a program that `torch.export.save` wrote, with its convolutions as modules again.

An exported program is a flat list of operations; the measure finds convolutions and the classifier
by their modules. Each `conv2d` and `linear` whose kernel is a parameter of its own is therefore
put back as the module it came from, under the name it had.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flatsearch.errors import UsageError
from flatsearch.export.card import METADATA, ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from torch.fx import GraphModule

__all__ = ["exported_card", "load_exported"]

# Of `conv2d`, and its first three of `linear`; exporters give any of them by position or by name.
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


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
    plain = torch.fx.GraphModule(module, module.graph)
    _restore_modules(plain)
    return plain


def exported_card(path: Path) -> ModelCard | None:
    """Return the card of a program that flatsearch exported; None of any other."""
    extra = {METADATA: ""}
    torch.export.load(path, extra_files=extra)
    return ModelCard.from_json(extra[METADATA], path) if extra[METADATA] else None


def _restore_modules(module: GraphModule) -> None:
    """Put `conv2d` and `linear` back as modules, in place."""
    parameters = dict(module.named_parameters())
    uses = Counter(
        str(node.target) for node in module.graph.nodes if node.op == "get_attr" for _ in node.users
    )
    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
            continue
        if node.target not in {aten.conv2d.default, aten.conv2d.padding, aten.linear.default}:
            continue
        given = {**dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}
        source, weight = given.pop("input"), given.pop("weight")
        bias = given.pop("bias", None)
        name = str(weight.target).removesuffix(".weight")
        tensors = {w.target for w in (weight, bias) if w is not None}
        if f"{name}.weight" != weight.target or not tensors <= parameters.keys():
            continue
        if any(uses[str(target)] > 1 for target in tensors):
            continue
        layer = _layer(parameters[weight.target], bias and parameters[bias.target], given)
        module.set_submodule(name, layer)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(name, (source,))
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _layer(weight: nn.Parameter, bias: nn.Parameter | None, options: dict[str, Any]) -> Any:
    """Return the module of one operation, with its parameters."""
    layer: nn.Module
    if weight.ndim == 2:
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    else:
        options = {
            key: tuple(value) if isinstance(value, (list, tuple)) else value
            for key, value in options.items()
        }
        size = (weight.shape[2], weight.shape[3])
        into, out = weight.shape[1] * options.get("groups", 1), weight.shape[0]
        layer = nn.Conv2d(into, out, size, **options, device="meta")
    layer.weight = weight
    layer.register_parameter("bias", bias)
    return layer
