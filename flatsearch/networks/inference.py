"""Running a network for what it computes, leaving it as it was."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["eval_mode", "zero_images"]


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def zero_images(model: nn.Module, in_channels: int, image_size: int, batch_size: int = 1) -> Tensor:
    """Return images of zeros of the model's precision, where the model is.

    Of a model without parameters they are float32, on the CPU.
    """
    parameter = next(model.parameters(), torch.empty(0))
    return torch.zeros(batch_size, in_channels, image_size, image_size).to(parameter)
