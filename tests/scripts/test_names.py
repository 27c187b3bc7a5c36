"""What scripts take from the package is there: a move of a module must not leave them behind."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))


# A name of the package in a text.
DOTTED = re.compile(r"(flatsearch|search_spaces)(\.[A-Za-z_]\w+){2,}")


def is_nothing(text: object) -> bool:
    """Return whether a text is a dotted name of the package that is of nothing."""
    if not isinstance(text, str) or not DOTTED.fullmatch(text):
        return False
    try:
        pkgutil.resolve_name(text)
    except (AttributeError, ImportError):
        return True
    return False


def missing(source: str) -> list[str]:
    """Return the names of the packages that a program uses and that do not exist."""
    tree, found, modules = ast.parse(source), [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in {"flatsearch", "search_spaces"}:
                    name = alias.asname or alias.name.split(".")[0]
                    modules[name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.split(".")[0] not in {"flatsearch", "search_spaces"}:
                continue
            for alias in node.names:
                value = taken(node.module, alias.name)
                if value is None:
                    found.append(f"{node.module}.{alias.name}")
                elif inspect.ismodule(value):
                    modules[alias.asname or alias.name] = value
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    found += filter(is_nothing, texts)
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    for node in attributes:
        module = modules.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if module and not hasattr(module, node.attr):
            found.append(f"{module.__name__}.{node.attr}")
    return found


def taken(module: str, name: str) -> object:
    """Return what an import statement takes from a module, None where there is nothing."""
    try:
        there = importlib.import_module(module)
        return getattr(there, name, None) or importlib.import_module(f"{module}.{name}")
    except ImportError:
        return None


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_that_scripts_use_exist(path: Path) -> None:
    assert missing(path.read_text()) == []


def test_missing_names_are_found() -> None:
    source = "from flatsearch.search import nothing, objective as o\no.FlatnessObjective\no.no"
    assert missing(source) == ["flatsearch.search.nothing", "flatsearch.search.objective.no"]
    assert missing("import flatsearch\nflatsearch.report\nflatsearch.absent") == [
        "flatsearch.absent"
    ]
    assert missing("'flatsearch.pareto.absent', 'flatsearch.errors.UsageError'") == [
        "flatsearch.pareto.absent"
    ]
