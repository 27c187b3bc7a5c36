"""What can be optimised, and what a candidate may cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from flatsearch.settings.fields import SettingsRecord, setting
from flatsearch.settings.values import Quantity

__all__ = ["COSTS", "OBJECTIVES", "Direction", "Limits"]

Direction: TypeAlias = Literal["minimize", "maximize"]
_LIMITS = "limits: a candidate over one is not trained, and does not count as a trial"

COUNTED = Quantity(
    units={"": 1, "k": 1e3, "M": 1e6, "G": 1e9}, like="a number such as 200k or 1.5M", integral=True
)
_TIMED = Quantity(units={"us": 1e-3, "ms": 1, "": 1, "s": 1e3}, like="a time such as 2ms or 500us")


def _limit(accepts: Quantity, help: str, metavar: str, flag: str = "") -> Any:  # noqa: A002
    return setting(None, accepts, help, group=_LIMITS, metavar=metavar, flag=flag)


@dataclass(frozen=True, kw_only=True)
class Limits(SettingsRecord):
    """What a candidate may cost: with more it is not trained.

    Each `max_COST` makes COST an objective too; `flatsearch.networks.cost` measures them.
    """

    max_parameters: int | None = _limit(COUNTED, "parameters, e.g. 200k", "N", "--max-params")
    max_flops: int | None = _limit(COUNTED, "floating-point operations of one image, e.g. 30M", "N")
    max_memory: int | None = _limit(COUNTED, "bytes of one image's activations, e.g. 2M", "BYTES")
    max_latency: float | None = _limit(_TIMED, "time for one image, e.g. 2ms", "TIME")
    max_batch_latency: float | None = _limit(_TIMED, "time for 64 images, e.g. 50ms", "TIME")
    max_onnx_latency: float | None = _limit(
        _TIMED, "time for one image as ONNX in onnxruntime on the CPU, e.g. 1ms", "TIME"
    )
    max_onnx_memory: int | None = _limit(
        COUNTED, "bytes of weights and one image's activations as ONNX, e.g. 2M", "BYTES"
    )

    @property
    def limits(self) -> dict[str, float]:
        """Limits on a candidate's cost, by the names of the objectives."""
        limits = {name: getattr(self, name) for name in Limits.settings()}
        return {name.removeprefix("max_"): v for name, v in limits.items() if v is not None}


# What a candidate costs, known before it is trained.
COSTS = tuple(name.removeprefix("max_") for name in Limits.settings())
# What can be optimised, and which way.
OBJECTIVES: dict[str, Direction] = {
    "accuracy": "maximize",
    "balanced_accuracy": "maximize",
    "flatness": "minimize",
    "noise_loss": "minimize",
    "noise_loss_all": "minimize",
    **dict.fromkeys(COSTS, "minimize"),
}
