"""From a search to a class name, on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fakes import call

if TYPE_CHECKING:
    from pathlib import Path


def test_four_commands_from_a_search_to_a_class_name(learnt: Path) -> None:
    trained = call("train", "--epochs", "12")  # after the first command, `flatsearch run`
    assert "test accuracy 0." in trained.out
    assert "the knee of the front" in trained.err
    assert "epoch 12: training loss" in trained.err
    assert "after its final training" in call("export", "--out", "model.onnx").out
    # Without the study, the space, and what the search and the training have left behind.
    for path in ("flatsearch.db", "my_space.py"):
        (learnt / path).unlink()
    assert call("predict", "model.onnx", "five.png").out.startswith("five.png: 5 (")
