"""Fixtures shared by all tests."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from playwright.sync_api import Browser

    from flatsearch.data.splits import ImageData, Split

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start


def pytest_configure(config: pytest.Config) -> None:
    """Set up a process that runs tests; one that hands them out to others need not wait for it."""
    if config.getoption("dist", "no") != "no":
        return
    import optuna
    import sqlalchemy
    import torch

    torch.set_num_threads(1)  # the same numbers on every machine
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", _never_wait_for_the_disk)
    _read_migrations_once()


def _never_wait_for_the_disk(connection: object, _: object) -> None:
    """What a test writes need not survive the machine."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")


def _read_migrations_once() -> None:
    """Most of the time that it takes to open a database is spent on reading Optuna's migrations."""
    from alembic.script import ScriptDirectory

    read, known = ScriptDirectory.from_config, {}

    def from_config(config: Config) -> ScriptDirectory:
        place = config.get_main_option("script_location")
        if place not in known:
            known[place] = read(config)
        return known[place]

    ScriptDirectory.from_config = from_config


def pytest_collection_finish() -> None:
    """What has been imported stays: no later search for garbage looks at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def digits() -> ImageData:
    from flatsearch.data.loading import load_data

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
