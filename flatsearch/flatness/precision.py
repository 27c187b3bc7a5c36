"""Where and in which precision is measured, and the process's switches meanwhile."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch._C import _functorch as functorch
from torch._subclasses.fake_tensor import is_fake
from torch._subclasses.functional_tensor import FunctionalTensor

from flatsearch.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

__all__ = ["device_and_dtype", "exact_arithmetic"]


def _precise() -> Callable[[], None]:
    """Switch off TF32 and bfloat16 in float32 products; return what switches them back."""
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # since torch 2.9
        switches = [
            backends.cuda.matmul,
            backends.cudnn.conv,
            backends.mkldnn.matmul,
            backends.mkldnn.conv,
        ]
        before = [switch.fp32_precision for switch in switches]
        for switch in switches:
            switch.fp32_precision = "ieee"

        def restore() -> None:
            for switch, precision in zip(switches, before, strict=True):
                switch.fp32_precision = precision

        return restore
    matmul, convolution = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False

    def restore_legacy() -> None:
        torch.set_float32_matmul_precision(matmul)
        backends.cudnn.allow_tf32 = convolution

    return restore_legacy


def _uncompiled() -> Callable[[], None]:
    """Let functions under `torch.compile` run as written: compiled ones hide their operations."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled
        return lambda: None
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


class _Switches:
    """Sets switches of the process, and sets them back.

    Of several threads that measure at the same time the first one sets them, and the last one
    sets them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._restore = [_precise(), _uncompiled()]
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for restore in self._restore:
                    restore()


_switches = _Switches()


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Full precision, no autocast, no inference mode, nothing compiled."""
    with (
        _switches,
        torch.inference_mode(False),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def device_and_dtype(
    model: nn.Module, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Return where a model is measured, and in which precision.

    Args:
        model: The model.
        dtype: The precision that is asked for; None for its own, float32 at least.

    Returns:
        The device and the precision.

    Raises:
        UnsupportedModelError: If nothing can be computed with the model where it is.
        ValueError: If the precision is no such.
    """
    parameters = list(model.parameters())
    if not parameters:
        raise UnsupportedModelError("the model has no parameters; quantised weights are none")
    parameter = parameters[0]
    if parameter.is_meta:
        raise UnsupportedModelError("the model is on a meta device: its weights have no values")
    if is_fake(parameter):
        raise UnsupportedModelError(
            "the model was made in FakeTensorMode: its weights have no values"
        )
    probe = torch.ones(1, device=parameter.device)
    valueless = is_fake(probe) or isinstance(probe, FunctionalTensor)
    if valueless or functorch.peek_interpreter_stack() is not None:
        raise UnsupportedModelError(
            "nothing can be measured inside of torch.func transforms, or of modes that compute"
            " without values (FakeTensorMode, tracing)"
        )
    if any(hasattr(p, "full_tensor") for p in parameters) or any(
        hasattr(module, "_fsdp_wrapped_module") for module in model.modules()
    ):
        raise UnsupportedModelError(
            "the model's weights are sharded (FSDP); measure a copy whose weights are whole"
        )
    devices = {p.device for p in parameters}
    if len(devices) > 1:
        names = sorted(map(str, devices))
        raise UnsupportedModelError(f"the model is spread over several devices: {names}")
    if dtype is None:
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    if dtype not in {torch.float32, torch.float64}:
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64 but got {dtype}")
    return parameter.device, dtype
