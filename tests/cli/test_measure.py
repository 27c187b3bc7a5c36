"""`flatsearch measure`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from flatsearch import load_data, relative_flatness
from tests.fakes import call

if TYPE_CHECKING:
    from flatsearch.data.splits import ImageData

SMALL = ("--data", "digits", "--image-size", "32", "--samples")


def measured(*arguments: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(call("measure", *arguments, "--json").out)
    return fields


def refused(message: str, *arguments: str) -> None:
    assert message in call("measure", *arguments, code=2).err


def test_a_torchvision_model() -> None:
    out = call("measure", "torchvision:resnet18", *SMALL, "8").out
    assert "layer4.1.conv2" in out
    assert "hessian, 8 samples" in out
    assert "weights are random" in out
    # Of 32x32 pixels its last map is one position, of 64x64 four, which are flattened.
    refused("error: layer", "torchvision:vgg11", "--data=digits", "--image-size=64", "--samples=8")


def test_every_layer() -> None:
    out = call("measure", "torchvision:squeezenet1_1", *SMALL, "4", "--layers", "all").out
    assert "features.3.squeeze" in out
    assert "\u2588" * 24 in out  # the largest layer's bar
    assert "all of them" in out
    assert "noise loss" in out
    assert out.count("±") == 26 + 1 + 26 + 1 + 1  # twice a row, and in the explanation


def test_the_head_and_normalised_inputs() -> None:
    plain = measured("torchvision:resnet18", *SMALL, "4", "--layers", "head")
    normalised = measured("torchvision:resnet18", *SMALL, "4", "--layers=fc", "--normalize")
    assert list(plain["layers"]) == list(normalised["layers"]) == ["fc"]
    assert (plain["normalize"], normalised["normalize"]) == (None, "input")
    assert plain["relative_flatness"] != normalised["relative_flatness"]


def test_one_sample_has_no_standard_error() -> None:
    assert measured("torchvision:resnet18", *SMALL, "1")["standard_error"] is None


def test_a_state_dictionary() -> None:
    torch.manual_seed(1)
    model = torchvision.models.resnet18(num_classes=10)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, "weights.pth")
    weights = ("--weights", "weights.pth", *SMALL, "8")
    x, y = load_data("digits", image_size=32, probe_size=8).probe.tensors()
    expected = relative_flatness(model, (x.expand(-1, 3, -1, -1), y)).relative_flatness
    found = measured("torchvision:resnet18", *weights)["relative_flatness"]
    assert found == pytest.approx(expected, rel=1e-4)
    refused("holds other weights than those of resnet34", "torchvision:resnet34", *weights)
    refused("torchvision:NAME --weights FILE", "weights.pth", *SMALL, "8")
    refused("--weights is for torchvision:NAME", "weights.pth", *weights)


class Model(nn.Module):
    """String padding, groups, and a kernel that is also used as a function."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding="same")
        self.twice = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, bias=False)
        self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(F.relu(self.stem(x)))
        x = F.relu(F.conv2d(x, self.twice.weight))
        return self.fc(F.relu(self.norm(self.last(x)), inplace=True).mean((2, 3)))


def export(model: nn.Module, file: str, *, any_batch: bool = True) -> None:
    dynamic = ({0: torch.export.Dim("n")},) if any_batch else None
    x = torch.randn(2, 1, 8, 8)
    torch.export.save(torch.export.export(model.eval(), (x,), dynamic_shapes=dynamic), file)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, str]:
    torch.manual_seed(0)
    model, file = Model(), str(tmp_path_factory.mktemp("exported") / "model.pt2")
    export(model, file)
    return model, file


def test_an_exported_program(exported: tuple[Model, str]) -> None:
    model, file = exported
    data = load_data("digits", probe_size=8).probe.tensors()
    options = (file, "--data", "digits", "--samples", "8", "--preprocessing", "standardised")
    found = measured(*options, "--layers", "last")
    expected = relative_flatness(model, data)
    assert list(found["layers"]) == ["last"]
    assert found["kind"] == expected.kind == "hessian"
    assert found["relative_flatness"] == pytest.approx(expected.relative_flatness, rel=1e-4)
    found = measured(*options, "--layers", "stem,fc")
    expected = relative_flatness(model, data, layers=["stem", "fc"])
    assert list(found["layers"]) == ["stem", "fc"]
    assert found["relative_flatness"] == pytest.approx(expected.relative_flatness, rel=1e-4)


class Bright(nn.Module):
    """Knows from raw pixels whether an image is brighter than some level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)
        self.fc = nn.Linear(1, 2)
        self.fc.weight.data = torch.tensor([[-1.0], [1.0]])
        self.fc.bias.data = torch.tensor([level, -level])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


def test_how_images_of_others_are_prepared(digits: ImageData) -> None:
    """It is stated, tried, and never assumed."""
    pixels = digits.train.images
    brightness = pixels.float().mean((1, 2, 3))
    level = float(brightness.median())
    np.savez("d.npz", x=pixels.numpy(), y=(brightness > level).numpy())
    export(Bright(level), "model.pt2")
    options = ("model.pt2", "--data", "d.npz", "--samples", "64", "--layers", "conv")
    refused("does not say how its images are prepared: give --preprocessing; accuracy on", *options)
    refused("raw 100.0%, unit ", *options)
    right = measured(*options, "--preprocessing", "raw")
    assert right["accuracy"] == 1.0
    assert right["note"] == "images: pixels as stored"
    wrong = measured(*options, "--preprocessing", "unit")
    assert wrong["accuracy"] < 0.9
    assert "another preprocessing suits the model better: " in wrong["note"]
    assert wrong["note"].startswith("images: pixels from 0 to 1; ")


def test_other_splits(digits: ImageData, exported: tuple[Model, str]) -> None:
    options = (exported[1], "--data=digits", "--samples=8", "--preprocessing=unit")
    values = {s: measured(*options, "--split", s) for s in ("train", "validation", "test")}
    assert len({found["loss"] for found in values.values()}) == 3
    x, y = digits.test.images, digits.test.targets
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(y), generator=generator)[:8].sort().values
    with torch.no_grad():
        loaded = torch.export.load(exported[1]).module()
        expected = F.cross_entropy(loaded(x[index] / 255), y[index])
    assert values["test"]["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert "on test images, not on those" in call("measure", *options, "--split", "test").out


def test_layers_that_are_not_covered(exported: tuple[Model, str]) -> None:
    options = (exported[1], "--data=digits", "--samples=8", "--layers=all", "--preprocessing=raw")
    refused("layer 'twice': its kernel is used 2 times in one pass", *options)
    refused("--skip-unsupported measures the others", *options)
    out = call("measure", *options, "--skip-unsupported").out
    assert "left out: layer 'twice': its kernel is used 2 times in one pass" in out
    found = measured(*options, "--skip-unsupported")
    assert list(found["layers"]) == ["stem", "last"]
    assert list(found["skipped"]) == ["twice"]


def test_exported_programs_that_cannot_be_measured() -> None:
    Path("damaged.pt2").write_bytes(b"PK nothing")
    export(Model(), "fixed.pt2", any_batch=False)
    export(Model(classes=3), "few.pt2")
    for file, message in (
        ("nothing.pt2", "does not exist"),
        ("damaged.pt2", "is not a program saved by torch.export.save"),
        ("fixed.pt2", "takes batches of exactly 2"),
        ("few.pt2", "has 3 classes, but the data have 10"),
    ):
        refused(message, file, "--data", "digits", "--samples", "8")
