"""Nothing in a file is run, and nothing is read or written outside of its folder."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import flatsearch
from flatsearch.export.programs import load_exported

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = Path(__file__).parents[1] / "record" / "before" / "model.pt2"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch.export.pt2_archive") is None,
    reason="the program is a later PyTorch's",
)
# Makes the file "ran".
CODE = "__import__('pathlib').Path('ran').touch()"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    return tmp_path / "inside"


def changed(change: Callable[[dict[str, Any]], Any] = lambda _: None, **parts: bytes) -> Path:
    """Write a program whose JSON is changed, or that has more parts."""
    with zipfile.ZipFile(PROGRAM) as given, zipfile.ZipFile("model.pt2", "w") as new:
        for name in given.namelist():
            content = given.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(content)
                change(program)
                content = json.dumps(program).encode()
            new.writestr(name, content)
        for name, content in parts.items():
            new.writestr(name, content)
    return Path("model.pt2")


def operator(target: str, *arguments: str) -> Callable[[dict[str, Any]], None]:
    """Return a change that adds an operator with texts as arguments."""

    def change(program: dict[str, Any]) -> None:
        inputs = [{"name": "", "arg": {"as_string": text}, "kind": 1} for text in arguments]
        node = {"target": target, "inputs": inputs, "outputs": [], "metadata": {}}
        program["graph_module"]["graph"]["nodes"].append(node)

    return change


def texts(value: Any, old: str, new: str) -> Any:
    return json.loads(json.dumps(value).replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))


def replaced(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """Return a change of a text wherever it is."""
    return lambda program: program.update(texts(program, old, new))


SIZE = "Symbol('s34', positive=True, integer=True)"
ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a size": replaced(SIZE, f"{CODE} or {SIZE}"),
    "a size in a symbol": replaced(SIZE, f'Symbol("{CODE}")'),
    "a guard": lambda program: program.update(guards_code=[f"{CODE} is None"]),
    "an operator": operator("torch.os.system", "touch ran"),
    "an operator that loads": operator("torch.ops.load_library", "ran.so"),
    "an operator that writes": operator("torch.ops.aten.from_file.default", "ran"),
    "an operator of a class": operator("torch.ops.aten.__class__.mro"),
    "an argument": replaced("images", f"images={CODE}"),
    "a container": replaced("builtins.tuple", "collections.defaultdict"),
}


def test_a_program_is_read() -> None:
    program, card = load_exported(PROGRAM)
    assert card is not None
    images = torch.rand(3, 1, 8, 8)
    wanted = torch.export.load(PROGRAM).module()(images)
    assert torch.equal(program(images), wanted)
    assert torch.equal(load_exported(changed())[0](images), wanted)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_program_is_run(attack: str, folder: Path) -> None:
    file = changed(ATTACKS[attack])
    if attack == "a guard":  # is left out
        flatsearch.load(file)(torch.rand(2, 1, 8, 8))
    else:
        with pytest.raises(flatsearch.UsageError, match="holds more than a plain network"):
            flatsearch.load(file)
    assert list(folder.iterdir()) == [folder / "model.pt2"]


@pytest.mark.parametrize(
    "part",
    [
        "../ran", "/tmp/ran", "model/../../ran", "model/extra/../../ran", r"model\..\ran",
        "model/data/aotinductor/model/ran.so", "model/data/constants/opaque_obj_0",
        "model/models/model.json",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_parts_of_a_program_that_are_none(part: str, folder: Path) -> None:
    with pytest.raises(flatsearch.UsageError, match="holds more than a plain network"):
        flatsearch.load(changed(**{part: b"{}"}))
    assert [path.name for path in folder.parent.rglob("*")] == ["inside", "model.pt2"]


@pytest.mark.parametrize("place", ["weights", "../weights", "/weights"])
@pytest.mark.parametrize("inside", [False, True])
def test_an_onnx_file_reads_no_other(place: str, folder: Path, *, inside: bool) -> None:
    onnx = pytest.importorskip("onnx")
    for path in (folder / "weights", folder.parent / "weights"):
        path.write_bytes(bytes(4))
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.UINT8, dims=[4])
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place)
    byte = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [4])]
    kept: dict[str, Any] = {"initializer": [weights]}
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    if inside:
        kept, node = {}, onnx.helper.make_node("Constant", [], ["y"], value=weights)
    graph = onnx.helper.make_graph([node], "g", [], byte, **kept)
    Path("model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(flatsearch.UsageError, match="has weights in other files"):
        flatsearch.load("model.onnx")
