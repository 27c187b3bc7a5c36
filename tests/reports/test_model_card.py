"""The model card for people: what it says, and that the Hub can read it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from flatsearch import Architecture, ModelCard, save_model
from flatsearch.reports.model_card import Origin, card_file, model_card
from flatsearch.training.evaluation import Scores
from tests.fakes import Tiny

if TYPE_CHECKING:
    from pathlib import Path

    import torch

CARD = ModelCard(
    "tiny",
    Architecture("tiny", {"width": 2, "slope": 0.5}).to_json(),
    1,
    2,
    8,
    'my "photos": 2',
    ("cat", "a|b"),
    (7.0,),
    (3.0,),
)
SCORES = Scores(0.9, 0.3, 0.05, ((19, 1), (1, 4)), 25)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    network = Tiny().build(Architecture.from_json(CARD.architecture), 1, 2).eval()
    file = tmp_path / "seed-0.pt"
    save_model(network, dataclasses.replace(CARD, space="tests.fakes:Tiny"), file)
    seed = {"file": str(file), "seed": 0, "test": asdict(SCORES), "flatness": 2.5}
    final = {"epochs": 40, "earlier": [[1, 0.8]], "data": "data photos: 9 training"}
    seeds = [{**seed, "flatness_error": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps({**final, "seeds": seeds}))
    return file, network


def test_what_a_final_training_tells(model: tuple[Path, torch.nn.Module]) -> None:
    file, network = model
    text = model_card(file, "onnx", network, CARD, Origin(file))
    for said in (
        "Tells 2 classes of images apart: cat, a\\|b.",
        "photos: 9 training",
        "Accuracy on 25 test images, which nothing was trained on or chosen by:"
        " 0.900 (95% interval",
        "| cat | 20 | 0.950 | a\\|b (1) |",
        "| parameters | ",
        "Trained anew for 40 epochs, seed 0; relative flatness of one convolution 2.5",
        "The test images had been looked at 2 times by then.",
        "25 test images are few: its accuracy is known within",
        "Fewer than 10 test images each: a\\|b.",
        "the normalisation (less 7, over 3) is done inside of the file",
    ):
        assert said in text
    # Where the images are does not go out.
    (file.parent / "photos").mkdir()
    there = dataclasses.replace(CARD, data=str(file.parent / "photos"))
    text = model_card(file, "pt2", network, there, Origin(file))
    assert str(file.parent) not in text
    assert '"dataset": {"type": "photos"' in text
    # A file of 8 bits has an accuracy of its own, which is the card's.
    scores = dataclasses.replace(SCORES, accuracy=0.8)
    text = model_card(file, "onnx-int8", network, CARD, Origin(file, scores=(scores, "test")))
    assert "This file on 25 test images: 0.800" in text
    assert "The float model on 25 test images" in text
    assert '"value": 0.8}' in text


def test_the_hub_reads_it(model: tuple[Path, torch.nn.Module]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    file, network = model
    text = model_card(file, "onnx", network, CARD, Origin(file))
    data = hub.ModelCard(text).data
    assert data.library_name == "flatsearch"
    assert data.pipeline_tag == "image-classification"
    assert {"image-classification", "onnx"} <= set(data.tags)
    assert data.metrics == ["accuracy"]
    (result,) = data.eval_results
    assert (result.metric_value, result.dataset_name) == (0.9, CARD.data)


def test_nothing_is_said_of_what_is_not_known(model: tuple[Path, torch.nn.Module]) -> None:
    file, network = model
    (file.parent / "results.json").unlink()
    text = model_card(file, "pt2", network, CARD, Origin(file))
    assert "model-index" not in text
    assert "## Accuracy\n\nNot on record.\n" in text


def test_no_readme_of_another_is_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "m.pt2"
    assert card_file(file).name == "README.md"
    (tmp_path / "README.md").write_text("# my own\n")
    assert card_file(file).name == "m.pt2.md"
    (tmp_path / "README.md").write_text("---\n---\n\n# m.pt2 (flatsearch)\n")
    assert card_file(file).name == "README.md"
    assert card_file(tmp_path / "m.onnx").name == "m.onnx.md"
