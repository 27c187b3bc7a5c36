"""Fixtures shared by all tests."""

from __future__ import annotations

import optuna
import pytest
import torch

from flatsearch.data import ImageData, load_data

torch.set_num_threads(1)  # the same numbers on every machine
optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits")
