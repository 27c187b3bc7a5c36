"""Fixtures shared by all tests."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING

import optuna
import pytest
import sqlalchemy
import torch

from flatsearch.data.loading import load_data

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from flatsearch.data.splits import ImageData, Split

torch.set_num_threads(1)  # the same numbers on every machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
optuna.logging.set_verbosity(optuna.logging.ERROR)


def pytest_collection_finish() -> None:
    """What has been imported stays: no later search for garbage looks at it."""
    gc.collect()
    gc.freeze()


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _never_wait_for_the_disk(connection: object, _: object) -> None:
    """What a test writes need not survive the machine."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="session")
def few_digits(digits: ImageData) -> ImageData:
    """Two batches to train on, for tests of what happens around the training."""

    def some(split: Split, count: int) -> Split:
        return dataclasses.replace(
            split, images=split.images[:count], targets=split.targets[:count]
        )

    return dataclasses.replace(digits, train=some(digits.train, 128), probe=some(digits.probe, 32))


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
