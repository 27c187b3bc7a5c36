"""Arrays of which a conversion would lose something without a word, and labels that are missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatsearch.errors import DataError

__all__ = ["is_missing", "plain"]


def plain(given: Any, what: str) -> Any:
    """Return what was given, a tensor detached and on the CPU, if its values can be read.

    Args:
        given: A tensor, an array, or what NumPy makes one of.
        what: What messages call it.

    Returns:
        The tensor or array.

    Raises:
        DataError: If values are masked, complex or none, or it is sparse or quantised.
    """
    odd = ""
    if isinstance(given, Tensor):
        if given.layout != torch.strided or given.is_nested:
            odd = f"have the layout {given.layout}; give `.to_dense()`"
        elif given.is_quantized or given.is_meta or given.is_complex():
            kind = "quantised" if given.is_quantized else given.dtype
            odd = f"must be numbers but are {'without values' if given.is_meta else kind}"
        else:
            given = given.detach().cpu()
    elif isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        count = int(np.ma.getmaskarray(given).sum())
        odd = f"have {count} of {given.size} values masked; leave those out, or fill them"
    elif type(given).__module__.startswith("scipy.sparse"):
        odd = "are a sparse matrix; give `.toarray()`"
    if odd:
        raise DataError(f"{what} {odd}")
    return given


def is_missing(label: Any) -> bool:
    """Return whether a cell of a table is empty: no text, None, NaN or pandas' NA."""
    if isinstance(label, (str, bytes)):
        return not label.strip()
    if label is None or type(label).__name__ in {"NAType", "NaTType", "MaskedConstant"}:
        return True
    return isinstance(label, (float, np.floating)) and math.isnan(label)
