"""Damaged files: some of those that were no clear error once; the script has a thousand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"
NUMBERS = (13, 26, 30, 38, 66, 202, 213, 243, 258, 274, 326, *range(16, 22))


@pytest.fixture
def corruptions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import corruptions

    monkeypatch.delitem(sys.modules, "corruptions")
    return corruptions


def test_damaged_files_are_read_or_refused_by_name(
    corruptions: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = corruptions.NAMES
    corruptions.write_files(tmp_path, names[:-1])  # to write ONNX takes seconds
    tried = {}
    with capfd.disabled():
        for number in NUMBERS:
            kind = names[number % len(names)]
            tried[number, kind] = corruptions.tried(tmp_path, kind, number)
    assert {place: faults for place, (_, faults) in tried.items() if faults} == {}
    assert {found for found, _ in tried.values()} == {"read", "refused"}
