"""What the documentation says of the code and of recorded results is what they are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "scripts/docs_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_up_to_date(tables: ModuleType, page: Path) -> None:
    text = page.read_text()
    assert tables.filled(text) == text, "run: python scripts/docs_tables.py"


def test_every_table_is_shown_somewhere(tables: ModuleType) -> None:
    shown = {name for page in PAGES for _, name in tables.BLOCK.findall(page.read_text())}
    assert shown == set(tables.TABLES)


def test_an_outdated_table_is_noticed(tables: ModuleType) -> None:
    old = "a\n<!-- table: spaces -->\n| wrong |\n<!-- end -->\nb"
    new = tables.filled(old)
    assert "wrong" not in new
    assert "`resnet_small`" in new
    assert (new[0], new[-1]) == ("a", "b")


def test_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([\w./-]+)", (ROOT / "README.md").read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
