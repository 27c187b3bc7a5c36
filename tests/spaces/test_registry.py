"""Search spaces by name, by module and by file."""

from __future__ import annotations

import pickle
import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import pytest

from flatsearch import SearchSpace, SpaceError, load_space, space_names
from flatsearch.spaces import registry
from search_spaces.resnet_small import ResNetSmall

if TYPE_CHECKING:
    from pathlib import Path

CODE = '''
class Good:
    """A space."""

    def suggest(self, trial): ...

    def build(self, architecture, in_channels=3, num_classes=10): ...


class NoBuild:
    def suggest(self, trial): ...


class NoSuggest:
    suggest = None

    def build(self, architecture): ...


class NeedsArgument(Good):
    def __init__(self, width): ...


class Raises(Good):
    def __init__(self):
        raise OSError("no licence")


ready = Good()
ready.label = "made in the file"
number = 3
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of spaces that is a module of the working folder, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "spaces_of_mine.py"
    path.write_text(CODE)
    yield path
    sys.modules.pop("spaces_of_mine", None)


def register(monkeypatch: pytest.MonkeyPatch, **values: str | list[str]) -> None:
    points = [
        EntryPoint(name, value, registry.ENTRY_POINT_GROUP)
        for name, listed in values.items()
        for value in ([listed] if isinstance(listed, str) else listed)
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "flatsearch.search_spaces"
        return points

    monkeypatch.setattr(registry, "entry_points", entry_points)


def message(reference: str) -> str:
    with pytest.raises(SpaceError) as caught:
        load_space(reference)
    return str(caught.value)


def test_the_space_that_comes_along() -> None:
    assert "resnet_small" in space_names()
    assert isinstance(load_space("resnet_small"), ResNetSmall)


def test_by_module() -> None:
    assert isinstance(load_space("search_spaces.resnet_small:ResNetSmall"), ResNetSmall)


@pytest.mark.parametrize(
    "reference", ["spaces_of_mine:{}", "spaces_of_mine.py:{}", "./spaces_of_mine.py:{}"]
)
def test_by_file_and_module(file: Path, reference: str) -> None:
    space = load_space(reference.format("Good"))
    assert type(space).__name__ == "Good"
    assert isinstance(space, SearchSpace)
    assert load_space(reference.format("ready")).label == "made in the file"
    for name, parts in {
        "NoBuild": ["NoBuild has no method 'build'"],
        "NoSuggest": ["NoSuggest has no method 'suggest'"],
        "NeedsArgument": ["NeedsArgument() failed", "width"],
        "Raises": ["Raises() failed: OSError: no licence"],
        "number": ["int has no method 'suggest'"],
        "Absent": ["has no attribute 'Absent'", "spaces_of_mine"],
        "": ["has no attribute ''"],
    }.items():
        text = message(reference.format(name))
        assert all(part in text for part in parts), text


def test_by_absolute_path(file: Path) -> None:
    assert type(load_space(f"{file}:Good")).__name__ == "Good"


def test_spaces_from_files_can_be_pickled(file: Path) -> None:
    space = load_space(f"{file}:Good")
    assert type(pickle.loads(pickle.dumps(space))) is type(space)


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(CODE + f"ready.label = {folder!r}\n")
    first, second = (load_space(f"{tmp_path / folder}/same.py:ready") for folder in ("a", "b"))
    assert (first.label, second.label) == ("a", "b")
    assert type(first).__module__ != type(second).__module__


def test_a_file_does_not_shadow_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(CODE)
    import json

    load_space(f"{tmp_path}/json.py:Good")
    assert sys.modules["json"] is json


def test_an_edited_file_is_read_again(file: Path) -> None:
    load_space(f"{file}:ready")
    file.write_text(CODE + "ready.label = 'edited, and of another length'\n")
    space = load_space(f"{file}:ready")
    assert space.label == "edited, and of another length"
    assert type(pickle.loads(pickle.dumps(space))) is type(space)


def test_missing_file(tmp_path: Path) -> None:
    assert "nope.py' does not exist" in message(f"{tmp_path}/nope.py:Good")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def broken(:\n", "SyntaxError"),
        ("raise RuntimeError('half way')", "RuntimeError: half way"),
    ],
)
def test_files_that_fail(tmp_path: Path, code: str, reason: str) -> None:
    path = tmp_path / "fails.py"
    path.write_text(code)
    before = set(sys.modules)
    text = message(f"{path}:Good")
    assert str(path) in text
    assert reason in text
    assert not {name for name in set(sys.modules) - before if "fails" in name}


def test_missing_module() -> None:
    text = message("no_such_module.spaces:Good")
    assert "importing 'no_such_module.spaces' failed: ModuleNotFoundError" in text
    assert "has no attribute 'Nope'" in message("search_spaces.resnet_small:Nope")


def test_unknown_names_list_the_known_and_the_nearest() -> None:
    text = message("resnet-smal")
    for part in ("unknown search space 'resnet-smal'", "did you mean 'resnet_small'", "known: "):
        assert part in text
    assert "./file.py:Class" in text
    assert "did you mean" not in message("zzz")


def test_entry_points(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, mine="spaces_of_mine:Good", broken="no_such_module:X", half="json:Nope")
    assert space_names() == ["broken", "half", "mine"]
    assert type(load_space("mine")).__module__ == "spaces_of_mine"
    assert "known: broken, half, mine" in message("resnet_small")
    assert "'broken': importing 'no_such_module' failed" in message("broken")
    assert "module 'json' has no attribute 'Nope'" in message("half")


def test_a_name_registered_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, mine=["one:Space", "two:Space"], other="search_spaces.resnet_small:X")
    expected = r"'mine' is registered twice: by one:Space and by two:Space; uninstall one"
    for call in (space_names, lambda: load_space("mine"), lambda: load_space("other")):
        with pytest.raises(SpaceError, match=expected):
            call()


def test_one_distribution_listed_twice_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "search_spaces.resnet_small:ResNetSmall"
    register(monkeypatch, mine=[value, value])
    assert space_names() == ["mine"]
    assert isinstance(load_space("mine"), ResNetSmall)
