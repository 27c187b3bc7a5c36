"""A journal file: its lock, and whether it is one."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from pathlib import Path

from optuna.storages.journal import JournalFileSymlinkLock

from flatsearch.search.liveness import is_dead, this_process

__all__ = ["JournalLock", "damaged_line", "is_journal"]

# How every line begins that Optuna writes.
_BEGINS = b'{"op_code":'

# A worker of another machine that dies with the lock keeps the others for this long.
_LOCK_SECONDS = 30.0


def is_journal(file: Path) -> bool:
    """Return whether a file is a journal, or empty: of others the last line might be cut off."""
    with file.open("rb") as content:
        begins = content.read(len(_BEGINS))
    return _BEGINS.startswith(begins)  # a full disk may have left less of it


def damaged_line(file: Path) -> int | None:
    """Return the number of the first whole line that says nothing, if it is a journal."""
    with contextlib.suppress(OSError):
        return _damaged_line(file) if is_journal(file) else None
    return None


def _damaged_line(file: Path) -> int | None:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):  # of a full disk
                return None
            try:
                json.loads(line)["op_code"] + 0
            except (ValueError, TypeError, LookupError, RecursionError):
                return number
    return None


class JournalLock(JournalFileSymlinkLock):
    """Optuna's lock of a journal, by the same file; one that a dead process has left is broken.

    Whoever gets it cuts off half a line that a full disk has left at the end: what was written
    after that would be unreadable.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file

    def acquire(self) -> bool:
        """Wait for the lock, and take it."""
        lock, mine, pause = Path(f"{self._file}.lock"), f"{this_process()} {uuid.uuid4()}", 0.001
        holder, since = "", 0.0
        while True:
            try:
                lock.symlink_to(mine)
                break
            except FileExistsError:
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
            with contextlib.suppress(OSError):  # it was released
                if (found := str(lock.readlink())) != holder:
                    holder, since = found, time.monotonic()
                elif time.monotonic() - since > _LOCK_SECONDS or is_dead(holder.split()[0]):
                    _break(lock, holder)
        try:
            self._mend()
        except BaseException:
            self.release()
            raise
        return True

    def _mend(self) -> None:
        with self._file.open("rb+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)


def _break(lock: Path, holder: str) -> None:
    """Remove a lock, unless another process was faster and it is that one's by now."""
    broken = lock.with_name(f"{lock.name}{uuid.uuid4()}.rename")
    lock.rename(broken)
    if str(broken.readlink()) == holder:
        broken.unlink()
    else:
        broken.rename(lock)
