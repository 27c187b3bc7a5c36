"""Trained networks side by side."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from flatsearch import (
    Architecture,
    ModelCard,
    UsageError,
    compare,
    load_space,
    relative_flatness,
    save_model,
)
from flatsearch.analysis.paired import estimate, holm, paired, paired_hits

if TYPE_CHECKING:
    from pathlib import Path

    from flatsearch.analysis.comparison import Comparison
    from flatsearch.data.splits import ImageData


# The smallest network of plain_cnn.
SMALL = {"width": 8, "stages": 1, "convs_1": 1, "kernel": 3, "activation": "relu"}


def network(seed: int, *, classes: int = 10, smooth: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.SiLU() if smooth else nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(digits: ImageData) -> Comparison:
    """Three networks, of which the second computes the same as the first."""
    probe = dataclasses.replace(
        digits.probe, images=digits.probe.images[:40], targets=digits.probe.targets[:40]
    )
    models = {"a": network(0), "same": network(0), "b": network(1)}
    return compare(models, dataclasses.replace(digits, probe=probe), test=True)


def test_the_numbers_are_those_of_the_measure(found: Comparison, digits: ImageData) -> None:
    x, y = (tensor[:40] for tensor in digits.probe.tensors())
    net, row = network(1), found.models[2]
    r = relative_flatness(net, (x, y), layers="all")
    normalised = relative_flatness(net, (x, y), layers="all", normalize="input")
    assert (row.name, row.kind, found.n_images) == ("b", r.kind, 40)
    kappa, noise = row.estimates["relative_flatness"], row.estimates["noise_loss"]
    assert kappa.value == pytest.approx(r.relative_flatness)
    assert kappa.error == pytest.approx(r.standard_error)
    assert noise.value == pytest.approx(r.noise_loss())
    assert noise.error == pytest.approx(r.noise_loss_error())
    assert row.estimates["loss"].value == pytest.approx(r.loss)
    assert row.estimates["accuracy"].value == pytest.approx(r.accuracy)
    for name, layer in r.layers.items():
        scaled = row.layers[name]["relative_flatness_normalized"].value
        assert row.layers[name]["relative_flatness"].value == pytest.approx(layer.relative_flatness)
        assert scaled == pytest.approx(normalised.layers[name].relative_flatness)


def test_the_gap_is_between_test_and_training_images(found: Comparison, digits: ImageData) -> None:
    net, row = network(1), found.models[2].estimates
    with torch.no_grad():
        x, y = digits.test.tensors()
        logits = net(x)
    loss = float(F.cross_entropy(logits, y))
    assert found.n_test == len(y)
    assert row["test_loss"].value == pytest.approx(loss)
    assert row["loss_gap"].value == pytest.approx(loss - row["loss"].value, abs=1e-6)
    accuracy = float((logits.argmax(1) == y).double().mean())
    assert row["accuracy_gap"].value == pytest.approx(row["accuracy"].value - accuracy)


def test_equal_networks_do_not_differ_and_others_do(found: Comparison) -> None:
    tested = {(d.first, d.second, d.quantity): d for d in found.differences}
    assert len(tested) == 3 * 9
    for quantity in ("loss", "accuracy", "relative_flatness", "loss_gap"):
        same = tested["a", "same", quantity]
        assert (same.difference.value, same.p_value) == (0.0, 1.0)
    other = tested["a", "b", "relative_flatness"]
    models = {model.name: model.estimates["relative_flatness"] for model in found.models}
    assert other.difference.value == pytest.approx(models["a"].value - models["b"].value)
    assert other.p_value < 1e-6
    # Of the same images: less uncertain than if either network had seen images of its own.
    apart = np.hypot(models["a"].error, models["b"].error)
    assert 0 < other.difference.error < apart


def test_p_values_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=50), rng.normal(0.3, 1, size=50)
    difference, p = paired(first, second)
    expected = stats.ttest_rel(first, second)
    assert p == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx(expected.confidence_interval())
    hits = np.array([[1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0, 0]], float)
    assert paired_hits(*hits)[1] == pytest.approx(2 * 0.5**5)
    assert holm([0.2, 0.01, 0.01]) == pytest.approx([0.2, 0.03, 0.03])
    assert estimate(first).error == pytest.approx(stats.sem(first))


def test_kinds_are_not_mixed(digits: ImageData) -> None:
    x, y = (tensor[:8] for tensor in digits.probe.tensors())
    found = compare([network(0), network(0, smooth=True)], (x, y))
    assert [model.kind for model in found.models] == ["hessian", "gauss-newton"]
    assert {d.quantity for d in found.differences} == {"loss", "accuracy"}
    assert "model 1 gauss-newton" in found.notes[0]
    assert found.n_test is None


def test_refused(digits: ImageData, tmp_path: Path) -> None:
    pair = tuple(tensor[:8] for tensor in digits.probe.tensors())
    with pytest.raises(UsageError, match="different numbers of classes: 'a' 10, 'b' 12"):
        compare({"a": network(0), "b": network(0, classes=12)}, pair)
    with pytest.raises(UsageError, match="at least 2 images but there are 1"):
        compare([network(0)], (pair[0][:1], pair[1][:1]))
    with pytest.raises(UsageError, match="name at least one model"):
        compare([], pair)
    card = ModelCard.of(digits, "plain_cnn", Architecture("plain_cnn", {}))
    file = tmp_path / "m.pt"
    save_model(network(0), dataclasses.replace(card, image_size=16), file)
    with pytest.raises(UsageError, match="is given twice"):
        compare([file, file], digits)


def test_files_are_given_the_pixels_that_they_take(digits: ImageData, tmp_path: Path) -> None:
    architecture = load_space("plain_cnn").suggest(optuna.trial.FixedTrial(SMALL))
    model = load_space("plain_cnn").build(architecture, in_channels=1, num_classes=10)
    card = ModelCard.of(digits, "plain_cnn", architecture)
    save_model(model, card, tmp_path / "ours.pt")
    changed = dataclasses.replace(card, mean=(0.0,), std=(16.0,), data="letters")
    save_model(model, changed, tmp_path / "other.pt")
    names = [tmp_path / "ours.pt", tmp_path / "other.pt"]
    found = compare(names, digits, layers="last")
    ours, other = found.models
    (note,) = found.notes
    assert note.startswith(f"{names[1]} was trained on data 'letters', which may be other images")
    with torch.no_grad():
        x, y = digits.probe.tensors()
        loss = float(F.cross_entropy(model.eval()(x), y))
    assert ours.estimates["loss"].value == pytest.approx(loss)
    assert other.estimates["loss"].value != pytest.approx(ours.estimates["loss"].value)
    save_model(model, dataclasses.replace(card, image_size=16), tmp_path / "large.pt")
    message = "is for images of 1 channels, 16 pixels a side and 10 classes, but data 'digits' has"
    with pytest.raises(UsageError, match=message):
        compare([tmp_path / "large.pt"], digits)
