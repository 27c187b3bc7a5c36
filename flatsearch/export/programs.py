"""Reading a program that `torch.export.save` wrote."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from flatsearch.errors import UsageError
from flatsearch.export.archives import plain_program
from flatsearch.export.card import METADATA, ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

__all__ = ["load_exported", "read_program"]


def read_program(path: Path) -> tuple[Any, str]:
    """Return a `.pt2` file's program as a module, and its card as JSON, if it has one.

    Raises:
        UsageError: If the file is missing or is something else.
    """
    if not path.is_file():
        raise UsageError(f"model file {str(path)!r} does not exist")
    extra = {METADATA: ""}
    disabled = logging.root.manager.disable
    logging.disable()  # torch tells the whole traceback of what is said here in a line
    try:
        with _only_values():
            program = torch.export.load(plain_program(path), extra_files=extra)
            return program.module(), extra[METADATA]
    except UsageError:
        raise
    except Exception as error:  # a damaged archive can fail in any way
        raise UsageError(
            f"{str(path)!r} is not a program saved by torch.export.save:"
            f" {type(error).__name__} while reading it"
        ) from None
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _only_values() -> Iterator[None]:
    """Let torch unpickle tensors and plain values only, where it would fall back to anything."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}))
        with contextlib.suppress(ImportError):  # older versions have no such module
            from torch.export.pt2_archive import _package

            stack.enter_context(patch.object(_package, "pickle", None, create=True))
        yield


def load_exported(path: Path) -> tuple[nn.Module, ModelCard | None]:
    """Load an exported program as a model that can be measured.

    Args:
        path: A `.pt2` file of `torch.export.save`, with a dynamic batch dimension.

    Returns:
        A module from images to logits, with the parameters' own names, and its card if flatsearch
        exported it.

    Raises:
        UsageError: If the file is missing, is something else, or takes one batch size only.
    """
    module, text = read_program(path)
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
    plain = torch.fx.GraphModule(module, module.graph)
    return plain, ModelCard.from_json(text, path) if text else None
