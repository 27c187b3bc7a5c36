"""How a network is computed while it is trained: precision, and the layout of maps in memory.

Both are decided by a rule that looks at the network and the device only, never at a clock, so that
a seed gives the same numbers again.

*Precision.* bfloat16 where the device multiplies it natively: on CUDA, and on CPUs with AMX or
AVX512-BF16 for networks with enough arithmetic. Weights, their updates, losses and the measure stay
in float32.

*Layout.* Convolutions of many channels read channels that lie side by side faster; those of few do
not, and may take three times as long. Depthwise ones of small kernels do, in float32.

What it takes on a CPU, and what any choice could at best: `scripts/benchmarks/computation.py`.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flatsearch.networks.inference import eval_mode, zero_images

__all__ = ["Computation", "choose_computation", "computes_bfloat16"]

Precision = Literal["float32", "bfloat16", "float16"]
Layout = Literal["contiguous", "channels_last"]

# A convolution of this many channels or more on both sides gains from channels that lie side by
# side; a network does when this share of its multiply-adds is in such convolutions.
_WIDE, _MOSTLY = 8, 0.4
# Depthwise convolutions up to this kernel are fastest in float32 with channels side by side; they
# decide from this share of all convolutions' outputs on.
_SMALL_KERNEL, _MANY = 5, 0.1
# Channels in float32 that the longest vector of a CPU has.
_VECTOR = 16
# Above so many multiply-adds a convolution and image bfloat16 saves more than casts to it cost.
_WORK = 40_000
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Computation:
    """How a network is computed.

    Attributes:
        precision: Of convolutions and matrix products.
        memory_format: The layout of weights and maps.
    """

    precision: Precision = "float32"
    memory_format: Layout = "contiguous"

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context to call the network in."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self.precision))

    def lay_out(self, images: Tensor) -> Tensor:
        """Return images in this layout."""
        return images.contiguous(memory_format=_FORMATS[self.memory_format])

    def convert(self, model: nn.Module) -> None:
        """Lay a network's weights out, in place."""
        model.to(memory_format=_FORMATS[self.memory_format])

    def to_dict(self) -> dict[str, str]:
        """Return what is stored with a trial."""
        return asdict(self)


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu: Any = torch.cpu
    known = [getattr(cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    return device.type == "cpu" and any(ask is not None and ask() for ask in known)


class _Look(TorchFunctionMode):
    """Sees what a network calls.

    Attributes:
        convolutions: How many there are.
        multiply_adds: Those of all convolutions, for one image.
        wide: Those of wide ones.
        outputs: Numbers that all convolutions give, for one image.
        depthwise: Those of depthwise ones of small kernels.
        unsuited: Whether torch's gradients are wrong on a CPU where channels lie side by side
            (docs/torch-channels-last.md): in batch norms of maps of one row or column, but for
            those of one position, in instance norms, and in strided 1x1 convolutions of few
            channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = self.multiply_adds = self.wide = self.outputs = self.depthwise = 0
        self.unsuited = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return what the function returns."""
        result = function(*args, **(kwargs or {}))
        if function is torch.conv2d:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self._convolution(given["input"], given["weight"], result)
        elif function in {F.batch_norm, torch.batch_norm} and result.dim() == 4:
            rows, columns = result.shape[2:]
            self.unsuited |= min(rows, columns) == 1 < max(rows, columns)
        elif function in {F.instance_norm, torch.instance_norm}:
            self.unsuited = True
        return result

    def _convolution(self, x: Tensor, weight: Tensor, result: Tensor) -> None:
        cost, outputs = weight.numel() * result[0, 0].numel(), result[0].numel()
        self.convolutions += 1
        self.multiply_adds += cost
        self.outputs += outputs
        strided = weight.shape[2:] == (1, 1) and result.shape[2:] != x.shape[2:]
        self.unsuited |= strided and weight.shape[1] < _VECTOR
        if x.shape[1] == weight.shape[1]:
            self.wide += cost if min(weight.shape[:2]) >= _WIDE else 0
        elif weight.shape[1] == 1 and max(weight.shape[2:]) <= _SMALL_KERNEL:
            self.depthwise += outputs


def _look(model: nn.Module, in_channels: int, image_size: int) -> _Look:
    with eval_mode(model), torch.no_grad(), _Look() as seen:
        model(zero_images(model, in_channels, image_size))
    return seen


def choose_computation(
    model: nn.Module,
    in_channels: int,
    image_size: int,
    *,
    precision: str = "auto",
    memory_format: str = "auto",
) -> Computation:
    """Decide how a network is computed.

    Args:
        model: The network, on its device; it is run on one image.
        in_channels: The channels of an image.
        image_size: Its height and width.
        precision: "float32", "bfloat16", or "auto".
        memory_format: "contiguous", "channels_last", or "auto". It is contiguous in any case where
            gradients would be wrong otherwise.

    Returns:
        The same for the same network on devices of the same kind.

    Example:
        >>> def net(width):
        ...     return nn.Sequential(nn.Conv2d(width, width, 3), nn.Flatten(), nn.Linear(width, 2))
        >>> choose_computation(net(32), 32, 3).memory_format
        'channels_last'
        >>> choose_computation(net(4), 4, 3).memory_format
        'contiguous'
    """
    device = next(model.parameters()).device
    seen = _look(model, in_channels, image_size)
    cuda, depthwise = device.type == "cuda", seen.depthwise > _MANY * seen.outputs
    if precision == "auto":
        native = computes_bfloat16(device)
        enough = seen.multiply_adds > _WORK * seen.convolutions and not depthwise
        half = "bfloat16" if native else "float16"
        precision = half if cuda or (native and enough) else "float32"
    if memory_format == "auto":
        wide = seen.wide > _MOSTLY * seen.multiply_adds
        memory_format = "channels_last" if cuda or wide or depthwise else "contiguous"
    if device.type == "cpu" and seen.unsuited:
        memory_format = "contiguous"
    return Computation(precision, memory_format)  # type: ignore[arg-type]
