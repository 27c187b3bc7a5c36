"""NASWOT: how differently the units of an untrained network treat the images of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["nwot"]

# Units that are "on" where their input is positive.
_NAMES = ("relu", "leaky_relu", "silu", "gelu", "hardswish", "hardtanh", "elu", "mish", "threshold")
_UNITS = {getattr(torch.ops.aten, name + inplace) for name in _NAMES for inplace in ("", "_")}


class _Codes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up, for every pair of images, in how many units they agree."""

    def __init__(self, n: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._n = n
        self.kernel: Tensor | None = None

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _UNITS and args[0].shape[:1] == (self._n,):
            on = (args[0].detach() > 0).flatten(1).to(torch.float64)
            # on on' + off off', with off = 1 - on, from one product.
            count = on.sum(1)
            agree = 2 * (on @ on.T) - count - count[:, None] + on.shape[1]
            self.kernel = agree if self.kernel is None else self.kernel + agree
        return func(*args, **(kwargs or {}))


def nwot(model: nn.Module, x: Tensor, _: Tensor | None = None) -> float:
    """Return log |det K| with K_ij the number of units that are on or off for both images i, j.

    Mellor et al., "Neural Architecture Search without Training", ICML 2021, arXiv 2006.04647,
    equation 2. A unit is an element of the input of an activation function, however it is called
    in the network; it is on where it is positive (for ReLU the paper's definition). Batch norm uses
    the batch's own statistics, as in the paper's code. It is -inf if two images have the same code
    everywhere, or there are no units.
    """
    model.train()
    with torch.no_grad(), _Codes(len(x)) as codes:
        model(x)
    if codes.kernel is None:
        return float("-inf")
    return float(torch.linalg.slogdet(codes.kernel).logabsdet)
