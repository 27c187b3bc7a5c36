"""The examples: a package, installed as a third party would install it, and scripts."""

from __future__ import annotations

import ast
import functools
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest

from tests.fakes import Smallest, call, draw_nothing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flatsearch.data.splits import ImageData

PACKAGE = Path(__file__).parent.parent / "examples" / "depthwise_space"
TESTS = "test_depthwise_space.py"


@pytest.fixture(autouse=True)
def empty_folder(
    tmp_path: Path, few_digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The working folder; what is trained there is small, and on few images."""
    monkeypatch.chdir(tmp_path)
    draw_nothing(monkeypatch)

    def load(name: str, **_: object) -> ImageData:
        assert name == "digits"
        return few_digits

    for module in ("flatsearch", "flatsearch.search.objective", "flatsearch.search.session"):
        monkeypatch.setattr(f"{module}.load_data", load)
    # Few images teach less than a place on the front takes.
    monkeypatch.setattr("flatsearch.data.splits.ImageData.guessing_accuracy", lambda _: 0.0)
    small = functools.partial(optuna.create_study, sampler=Smallest(seed=0))
    monkeypatch.setattr(optuna, "create_study", small)
    verbosity = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    pip += ["--no-build-isolation", "--target", str(place)]  # with the setuptools that is here
    source = place.parent / "source"
    source.mkdir(exist_ok=True)
    for file in PACKAGE.glob("*.*"):  # pip leaves build folders behind where it builds
        (source / file.name).write_text(file.read_text())
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    return place


@pytest.fixture
def installed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(place)


@pytest.mark.usefixtures("installed")
def test_it_is_found_by_its_name_and_searched() -> None:
    assert "depthwise" in call("spaces").out
    assert "kernel           3, 5" in call("spaces", "depthwise").out
    options = ("--trials", "1", "--epochs", "1", "--device", "cpu")
    assert "depthwise-digits: 1 complete" in call("run", "--space", "depthwise", *options).out


@pytest.mark.usefixtures("installed")
def test_its_own_tests_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / TESTS).write_text((PACKAGE / TESTS).read_text())
    assert pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", TESTS]) == 0
    assert "8 passed" in capsys.readouterr().out


SCRIPTS = sorted((PACKAGE.parent).glob("*.py"))
# What each has to print.
SAYS = {
    "measure_torchvision": "layer4.1.conv2",
    "own_objective": " pruned\n",
    "own_training": "accuracy",
    "park_and_promote": " trained to the end; best loss ",
    "own_space": '"space":"wide"',
    "ten_lines": '"space":"plain_cnn"',
    "use_exported": "%), true ",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(script), run_name="__main__")
    assert SAYS[script.stem] in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def displayed(cell: str, names: dict[str, object]) -> object:
    """Run a cell as a notebook does; return the value of its last line."""
    *body, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], ast.Expr(ast.Constant(None))
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs() -> None:
    cells = json.loads((PACKAGE.parent / "notebook.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    shown = [value for cell in code if (value := displayed(cell, names)) is not None]
    pages = [value._repr_html_() for value in shown if hasattr(value, "_repr_html_")]
    for said in ("study no-name", "<td>front</td>", "plain_cnn: ", "conv 3x3", "relative flatness"):
        assert any(said in page.replace("<th>front</th>", "<td>front</td>") for page in pages), said
    assert 0 <= shown[-1] <= 1
