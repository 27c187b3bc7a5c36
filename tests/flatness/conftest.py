"""Every test of the measure's numbers measures through a meter that is called again, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flatsearch.flatness.meter import FlatnessMeter

if TYPE_CHECKING:
    from flatsearch.flatness.accumulator import Accumulator


def same(first: Accumulator, second: Accumulator) -> bool:
    """Return whether two computations gave the same numbers of every sample, NaN included."""
    a, b = first.samples(), second.samples()
    return list(a) == list(b) and all(
        torch.equal(getattr(a[name], part).nan_to_num(-7), getattr(b[name], part).nan_to_num(-7))
        for name in a
        for part in ("numbers", "errors")
    )


@pytest.fixture(autouse=True)
def through_the_meter(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let `relative_flatness` return what the second call of a meter gives; count its proofs."""
    accumulate, proofs = FlatnessMeter.accumulate, list[int]()

    def twice(meter: FlatnessMeter, data: Any, *, keep: bool = True) -> Accumulator:
        if keep or isinstance(data, Iterator):
            return accumulate(meter, data, keep=keep)
        first = accumulate(meter, data, keep=True)
        again = accumulate(meter, data, keep=True)
        proofs.append(meter.proofs)
        assert same(first, again)
        return again

    monkeypatch.setattr(FlatnessMeter, "accumulate", twice)
    return proofs
