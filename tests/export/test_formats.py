"""Exported models compute what the trained one does, and are used without study and space."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
import torch
from PIL import Image

import flatsearch
from flatsearch import (
    Architecture,
    ModelCard,
    RunSettings,
    SpaceError,
    UsageError,
    load_space,
    save_model,
)
from flatsearch.errors import DataError, FlatsearchError
from flatsearch.export.formats import FORMATS, export_model, random_images
from flatsearch.networks import onnx
from flatsearch.networks.onnx import to_onnx
from flatsearch.training.trainer import train
from tests.fakes import Smallest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from flatsearch.data.splits import ImageData

EXACT = [kind for kind in FORMATS if kind != "onnx-int8"]
SPACE = """
from torch import nn
from flatsearch import Architecture, GapCnn

class Mine:
    def suggest(self, trial):
        return Architecture("mine", {"width": 6})

    def build(self, architecture, in_channels=3, num_classes=10):
        width = architecture["width"]
        layers = [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        return GapCnn(nn.Sequential(*layers), width, num_classes)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.fixture(scope="module")
def trained(digits: ImageData, folder: Path) -> tuple[nn.Module, ModelCard]:
    (folder / "mine.py").write_text(SPACE)
    space = load_space(f"{folder}/mine.py:Mine")
    torch.manual_seed(0)
    model = space.build(Architecture("mine", {"width": 6}), in_channels=1, num_classes=10)
    list(train(model, digits, RunSettings(epochs=2), seed=0))
    card = ModelCard.of(digits, f"{folder}/mine.py:Mine", Architecture("mine", {"width": 6}))
    return model.eval(), card


@pytest.fixture(scope="module")
def files(trained: tuple[nn.Module, ModelCard], folder: Path) -> dict[str, Path]:
    found = {kind: folder / f"model{FORMATS[kind]}" for kind in EXACT}
    for kind, path in found.items():
        assert export_model(*trained, kind, path) <= 1e-4
    save_model(*trained, folder / "model.pt")
    return {**found, "saved": folder / "model.pt"}


@pytest.mark.parametrize("kind", [*EXACT, "saved"])
def test_the_same_logits_on_a_hundred_images(
    trained: tuple[nn.Module, ModelCard], files: dict[str, Path], kind: str, digits: ImageData
) -> None:
    model, card = trained
    images = digits.test.images[:100]
    with torch.no_grad():
        wanted = model(card.normalise(images))
    classifier = flatsearch.load(files[kind])
    assert torch.allclose(classifier(images), wanted, atol=1e-4)
    assert torch.allclose(classifier(images[:1]), wanted[:1], atol=1e-4)  # any batch size
    assert torch.allclose(classifier(images.numpy()), wanted, atol=1e-4)
    assert classifier.card == card
    assert len(wanted.argmax(1).unique()) > 2  # not the same answer to everything
    names = [p.class_name for p in classifier.predict(images)]
    assert names == [card.class_names[i] for i in wanted.argmax(1)]


def test_neither_study_nor_space_is_needed(
    files: dict[str, Path], tmp_path: Path, trained: tuple[nn.Module, ModelCard]
) -> None:
    # In a process of its own, in which the search spaces cannot be imported.
    code = (
        "import sys, torch; sys.modules['search_spaces'] = None\n"
        "import flatsearch\n"
        "for file in sys.argv[1:]:\n"
        "    c = flatsearch.load(file)\n"
        "    assert not any('mine' in name for name in sys.modules)\n"
        "    print(c(torch.full((1, 1, 8, 8), 7.0)).tolist())"
    )
    command = [sys.executable, "-c", code, files["pt2"], files["onnx"]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    model, card = trained
    with torch.no_grad():
        wanted = model(card.normalise(torch.full((1, 1, 8, 8), 7.0)))
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert torch.allclose(torch.tensor(json.loads(line)), wanted, atol=1e-4)


def test_plain_pytorch_and_onnxruntime_suffice(
    files: dict[str, Path], trained: tuple[nn.Module, ModelCard]
) -> None:
    import onnxruntime

    model, card = trained
    program = torch.export.load(files["pt2"]).module()
    session = onnxruntime.InferenceSession(str(files["onnx"]))
    assert isinstance(session.get_inputs()[0].shape[0], str)  # a name: of any size
    for n in (1, 5):
        images = random_images(card, n)
        with torch.no_grad():
            wanted = model(card.normalise(images))
        assert torch.allclose(program(images), wanted, atol=1e-4)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        assert np.allclose(logits, wanted.numpy(), atol=1e-4)
    state = torch.load(files["state_dict"], weights_only=True)
    assert state.keys() == model.state_dict().keys()
    fields = json.loads(files["state_dict"].with_suffix(".json").read_text())["card"]
    assert json.loads(fields["architecture"])["values"] == {"width": 6}
    assert fields["class_names"] == list("0123456789")


@pytest.mark.parametrize("kind", ["state_dict", "saved"])
def test_a_space_that_is_gone(files: dict[str, Path], kind: str, folder: Path) -> None:
    (folder / "mine.py").rename(folder / "gone.py")
    try:
        with pytest.raises(
            SpaceError, match=r"needs its search space .*mine.py:Mine.* \(a .pt2 or"
        ):
            flatsearch.load(files[kind])
    finally:
        (folder / "gone.py").rename(folder / "mine.py")


def test_eight_bits(
    trained: tuple[nn.Module, ModelCard], digits: ImageData, tmp_path: Path
) -> None:
    """Integers do almost what the model does, for any number of images."""
    import onnx

    file = tmp_path / "m-int8.onnx"
    export_model(*trained, "onnx-int8", file, train=digits.train)
    kinds = {node.op_type for node in onnx.load(str(file)).graph.node}
    assert "QuantizeLinear" in kinds
    classifier = flatsearch.load(file)
    assert classifier.card == trained[1]
    images = digits.test.images
    assert torch.equal(classifier(images[:5])[:1], classifier(images[:1]))
    with torch.no_grad():
        wanted = trained[0](trained[1].normalise(images)).argmax(1)
    assert (classifier(images).argmax(1) == wanted).float().mean() > 0.9
    with pytest.raises(UsageError, match="calibrated on training images: give `train`"):
        export_model(*trained, "onnx-int8", tmp_path / "n-int8.onnx")


def test_image_files(files: dict[str, Path], digits: ImageData, tmp_path: Path) -> None:
    classifier = flatsearch.load(files["pt2"])
    pixels = digits.test.images[:3]
    for i, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
    names = [tmp_path / f"{i}.png" for i in range(3)]
    assert torch.equal(classifier.read(names), pixels)
    found = classifier.predict(names)
    assert [p.class_name for p in found] == [p.class_name for p in classifier.predict(pixels)]
    first = found[0]
    assert first.probability == max(first.probabilities.values())
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert next(iter(first.probabilities)) == first.class_name
    # A larger colour image is made gray and small, as in training.
    Image.new("RGB", (40, 24), (255, 255, 255)).save(tmp_path / "big.png")
    assert torch.equal(classifier.read([tmp_path / "big.png"]), torch.full((1, 1, 8, 8), 255))
    (tmp_path / "no.png").write_text("not an image")
    with pytest.raises(DataError, match=r"image '.*no.png' cannot be read"):
        classifier.predict([tmp_path / "no.png"])


def test_images_of_another_shape(files: dict[str, Path]) -> None:
    for kind in ("pt2", "onnx"):
        classifier = flatsearch.load(files[kind])
        with pytest.raises(
            UsageError, match=r"must have shape \(N, 1, 8, 8\) but have \(2, 3, 8, 8"
        ):
            classifier(torch.zeros(2, 3, 8, 8))
        assert classifier(torch.zeros(0, 1, 8, 8)).shape == (0, 10)


def test_a_model_of_floats_does_not_take_files_of_bytes(
    trained: tuple[nn.Module, ModelCard], tmp_path: Path
) -> None:
    model, card = trained
    floats = dataclasses.replace(card, pixels="float32", mean=(0.3,), std=(0.2,))
    export_model(model, floats, "pt2", tmp_path / "f.pt2")
    Image.new("L", (8, 8)).save(tmp_path / "five.png")
    with pytest.raises(DataError, match=r"five.png' has pixels of uint8, but 1 channel of float32"):
        flatsearch.load(tmp_path / "f.pt2").predict([tmp_path / "five.png"])


def test_nothing_is_overwritten_without_force(
    trained: tuple[nn.Module, ModelCard], tmp_path: Path
) -> None:
    for name in ("m.pth", "m.json"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(UsageError, match="exists; `force` overwrites it"):
            export_model(*trained, "state_dict", tmp_path / "m.pth")
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
    (tmp_path / "m.pth").write_text("old")
    export_model(*trained, "state_dict", tmp_path / "m.pth", force=True)
    assert flatsearch.load(tmp_path / "m.pth").card == trained[1]


def test_a_file_that_computes_something_else_is_not_kept(
    trained: tuple[nn.Module, ModelCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, card = trained

    def wrong(deployed: Any, card: ModelCard, path: Path) -> None:
        state = {name: value + 0.01 for name, value in model.state_dict().items()}
        torch.save(state, path)
        path.with_suffix(".json").write_text(card.to_json())

    monkeypatch.setattr("flatsearch.export.formats._write_state_dict", wrong)
    with pytest.raises(FlatsearchError, match="gives other logits than the model, by up to"):
        export_model(model, card, "state_dict", tmp_path / "m.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("onxx", "m.onnx", r"unknown format 'onxx' \(did you mean 'onnx'\?\)"),
        ("pt2", "no/m.pt2", "the folder '.*no' of the file to write does not exist"),
    ],
)
def test_refused(
    trained: tuple[nn.Module, ModelCard], tmp_path: Path, kind: str, name: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_model(*trained, kind, tmp_path / name)


@pytest.mark.parametrize("ending", [".pt2", ".onnx", ".pth", ".pt"])
def test_damaged_and_missing_files(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{ending}"
    with pytest.raises(UsageError, match="does not exist"):
        flatsearch.load(path)
    path.write_bytes(b"half a file")
    if ending == ".pth":
        with pytest.raises(UsageError, match=r"m.pth' needs 'm.json' beside it, which is missing"):
            flatsearch.load(path)
    with pytest.raises(UsageError) as caught:
        flatsearch.load(path)
    assert "\n" not in str(caught.value)
    path.with_suffix(".json").write_text('{"version": 99, "card": {}}')
    if ending == ".pth":
        with pytest.raises(UsageError, match="newer flatsearch"):
            flatsearch.load(path)


def test_a_program_of_someone_else(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Flatten(), (torch.zeros(2, 1, 8, 8),))
    torch.export.save(program, tmp_path / "theirs.pt2")
    with pytest.raises(UsageError, match="has no flatsearch metadata: it was not exported by it"):
        flatsearch.load(tmp_path / "theirs.pt2")


def test_onnx_without_its_packages(
    trained: tuple[nn.Module, ModelCard],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (
        lambda: export_model(*trained, "onnx", tmp_path / "m.onnx"),
        lambda: flatsearch.load(files["onnx"]),
    ):
        with pytest.raises(UsageError, match=r"pip install 'flatsearch\[onnx\]'"):
            call()


# Where no parameter is a range of integers; all kinds of operations.
SMALL = {
    "nasbench201": {
        "edge_0_1": "nor_conv_1x1",
        "edge_0_2": "none",
        "edge_1_2": "none",
        "edge_0_3": "skip_connect",
        "edge_1_3": "avg_pool_3x3",
        "edge_2_3": "none",
    },
    "torchvision_zoo": {"network": "resnet18"},
}


# One of the spaces for every kind of operation: what ONNX makes of each takes seconds.
AS_ONNX = {"convnext_small", "mobilenet_small"}


@pytest.mark.parametrize("name", flatsearch.space_names())
def test_every_space_can_be_exported(name: str, tmp_path: Path, digits: ImageData) -> None:
    space = load_space(name)
    study = optuna.create_study(sampler=Smallest(seed=0))
    study.enqueue_trial(SMALL.get(name, {}))
    architecture = space.suggest(study.ask())
    torch.manual_seed(0)
    model = space.build(architecture, in_channels=1, num_classes=10, image_size=8)
    card = ModelCard.of(digits, name, architecture)
    for kind in ("pt2", "onnx") if name in AS_ONNX else ("pt2",):
        assert export_model(model, card, kind, tmp_path / f"m{FORMATS[kind]}") <= 1e-4


def test_dark_images_are_exported_too(tmp_path: Path, digits: ImageData) -> None:
    # Their small deviation makes large inputs of bright pixels, and large logits.
    space = load_space("plain_cnn")
    architecture = space.suggest(optuna.create_study(sampler=Smallest(seed=2)).ask())
    torch.manual_seed(0)
    model = space.build(architecture, in_channels=1, num_classes=10, image_size=8).eval()
    card = ModelCard.of(digits, "plain_cnn", architecture)
    dark = dataclasses.replace(card, mean=(0.5,), std=(0.3,))
    with torch.no_grad():
        model.classifier.weight *= 1e3
    export_model(model, dark, "onnx", tmp_path / "dark.onnx")
    images = random_images(dark, 50)
    assert float(images.min()) >= 0
    assert torch.equal(images, images.round())


def test_the_table_of_operators_is_read_once() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    first, second = (to_onnx(net, torch.ones(2, 1, 2, 2)) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    (read,) = onnx._READ.values()
    assert read.cache_info().misses == 1  # type: ignore[attr-defined]
