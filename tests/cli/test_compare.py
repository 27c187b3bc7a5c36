"""`flatsearch compare`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from flatsearch import load_model, save_model
from tests.fakes import call

DATA = ("--data", "digits", "--samples", "32", "--device", "cpu")


def models() -> list[str]:
    """Return the models that the search has saved, among its pictures."""
    files = Path("flatsearch-artifacts").iterdir()
    return [str(file) for file in files if file.read_bytes()[:2] == b"PK"]


def test_two_models(untouched: Path) -> None:
    out = call("compare", *models(), *DATA, "--test").out
    assert "Means of 32 training images" in out
    assert "Means of 360 test images" in out
    assert "p corrected for 9 comparisons by Holm's method" in out
    assert out.count("features.3") == 2
    assert "accuracy gap" in out


def test_json(untouched: Path) -> None:
    first, second = models()
    found = json.loads(call("compare", first, second, *DATA, "--layers", "last", "--json").out)
    assert [model["name"] for model in found["models"]] == [first, second]
    assert [list(model["layers"]) for model in found["models"]] == [["features.3"]] * 2
    assert (found["n_images"], found["n_test"], found["data"]) == (32, None, "digits")
    assert {d["quantity"] for d in found["differences"]} == {
        "loss", "accuracy", "relative_flatness", "relative_flatness_normalized", "noise_loss",
    }  # fmt: skip
    assert all(0 <= d["p_value"] <= 1 for d in found["differences"])


def test_wrong_use(untouched: Path, tmp_path: Path) -> None:
    def refused(message: str, *arguments: str) -> None:
        assert message in call("compare", *arguments, code=2).err.strip().splitlines()[-1]

    first, second = models()
    refused("is given twice", first, first, *DATA)
    refused("'gone.pt' does not exist", "gone.pt", *DATA)
    refused("--data must be given", first)
    refused("8 pixels a side and 10 classes, but data 'digits' has 1 channels, 16", first, second,
            *DATA, "--image-size", "16")  # fmt: skip
    np.savez(tmp_path / "two.npz", x_train=np.zeros((40, 8, 8), "uint8"), y_train=[0, 1] * 20)
    refused("takes 1 channels and 10 classes, but data", first, "--data", f"{tmp_path}/two.npz")
    model, card = load_model(second)
    save_model(model, dataclasses.replace(card, image_size=16), tmp_path / "large.pt")
    refused("the models take images of different sizes", first, f"{tmp_path}/large.pt", *DATA)
    refused("layer 'gone' is unknown", first, *DATA, "--layers", "gone")
