"""Fixtures of the tests of a search, which train as little as they can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flatsearch.data.splits import ImageData


@pytest.fixture(scope="session")
def digits(few_digits: ImageData) -> ImageData:
    return few_digits
