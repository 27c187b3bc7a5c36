"""A folder that lives as long as a run, for the images that its workers share.

A run that is killed leaves its folder, as large as the data; the next run on the machine removes
it. Whether its run still lives is told by a lock that ends with the process.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["folder_of_run"]

_PREFIX, _LOCK = "flatsearch-", "lock"


@contextlib.contextmanager
def folder_of_run() -> Iterator[Path]:
    """Yield a new folder, which is removed in the end; remove those that killed runs have left."""
    if fcntl is not None:
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
            _remove_if_left(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        lock = Path(name) / _LOCK
        with lock.with_suffix(".new").open("wb") as file:
            if fcntl is not None:
                _lock(file)
                Path(file.name).rename(lock)  # locked before anybody can find it
            yield lock.parent


def _lock(file: BinaryIO) -> bool:
    """Lock a file for as long as it is open; return whether nobody else has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_if_left(lock: Path) -> None:
    with contextlib.suppress(OSError), lock.open("rb") as file:  # it is somebody else's, or gone
        if _lock(file):
            shutil.rmtree(lock.parent)
