"""The process's switches while something is measured, as they were afterwards."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["exact_arithmetic"]


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
