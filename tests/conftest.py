"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import optuna
import pytest
import torch

from flatsearch.data.loading import load_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from flatsearch.data.splits import ImageData

torch.set_num_threads(1)  # the same numbers on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real browser; tests with it are skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: neither chromium nor google-chrome is on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()
