"""Architectures as values, and models checked when they are built."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from flatsearch import Architecture, GapCnn, SearchSpace, SpaceError
from flatsearch.spaces.space import build_model

if TYPE_CHECKING:
    from collections.abc import Callable

VALUES = {"widths": [8, 16], "kernel": 3, "act": "relu", "rate": 0.5, "norm": True, "extra": None}
JSON = (
    '{"space":"toy","values":{"act":"relu","extra":null,"kernel":3,"norm":true,"rate":0.5,'
    '"widths":[8,16]}}'
)


def toy(**changes: Any) -> Architecture:
    return Architecture("toy", {**VALUES, **changes})


def test_canonical_json() -> None:
    assert toy().to_json() == JSON
    assert Architecture("toy", dict(reversed(VALUES.items()))).to_json() == JSON
    assert Architecture.from_json(JSON) == toy()
    assert Architecture.from_json(JSON.replace(",", " ,\n ")).to_json() == JSON


def test_lists_become_tuples() -> None:
    assert toy()["widths"] == (8, 16)
    assert toy(widths=(8, 16)) == toy(widths=[8, 16])
    assert isinstance(toy(widths=(8, 16))["widths"], tuple)
    assert isinstance(Architecture.from_json(JSON)["widths"], tuple)
    assert [toy()[name] for name in ("kernel", "act", "rate", "norm", "extra")] == [
        3,
        "relu",
        0.5,
        True,
        None,
    ]
    with pytest.raises(KeyError):
        toy()["depth"]


def test_equality_and_hash() -> None:
    same, other = Architecture("toy", dict(reversed(VALUES.items()))), toy(kernel=5)
    assert toy() == same
    assert hash(toy()) == hash(same)
    assert len({toy(), same, other}) == 2
    assert toy() != other
    assert toy() != Architecture("other", VALUES)
    assert toy() != JSON
    assert toy(widths=[8, 16]) != toy(widths=[16, 8])
    assert toy().key == same.key != other.key
    assert len(toy().key) == 12
    assert int(toy().key, 16) >= 0


@pytest.mark.parametrize("name", ["space", "values", "_json", "anything"])
def test_attributes_cannot_be_set(name: str) -> None:
    architecture = toy()
    with pytest.raises(AttributeError, match=name):
        setattr(architecture, name, "changed")
    assert architecture == toy()


def test_the_callers_values_are_copied() -> None:
    values: dict[str, Any] = {"widths": [8, 16]}
    architecture = Architecture("toy", values)
    values["widths"].append(32)
    values["kernel"] = 3
    assert architecture == Architecture("toy", {"widths": [8, 16]})
    assert dict(architecture.values) == {"widths": (8, 16)}


@pytest.mark.parametrize(
    "duplicate", [lambda a: pickle.loads(pickle.dumps(a)), copy.copy, copy.deepcopy]
)
def test_pickle_and_copies(duplicate: Callable[[Architecture], Architecture]) -> None:
    again = duplicate(toy())
    assert again == toy()
    assert again.key == toy().key
    assert again["widths"] == (8, 16)
    with pytest.raises(AttributeError):
        again.space = "changed"


def test_repr_names_space_and_values() -> None:
    assert (
        repr(Architecture("toy", {"b": [1, 2], "a": "x"})) == "Architecture(toy: a='x', b=(1, 2))"
    )


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        [1, float("nan")],
        {1, 2},
        object(),
        1j,
        b"bytes",
        nn.ReLU,
        np.int64(3),
        np.arange(3),
        torch.ones(2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(SpaceError, match="space 'toy': values must be JSON scalars or lists"):
        toy(kernel=value)


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "3", "null", "{}", '{"space":"toy"}', '{"values":{}}']
)
def test_from_json_refuses_other_text(text: str) -> None:
    with pytest.raises(SpaceError, match="not an architecture"):
        Architecture.from_json(text)


# --- build_model ---


class Space:
    """Builds what it is given."""

    def __init__(self, make: Callable[[int, int], Any]) -> None:
        self.make = make

    def suggest(self, trial: object) -> Architecture:
        return toy()

    def build(self, architecture: Architecture, in_channels: int = 3, num_classes: int = 10) -> Any:
        return self.make(in_channels, num_classes)


class SizedSpace:
    """Remembers what it was asked for."""

    def suggest(self, trial: object) -> Architecture:
        return toy()

    def build(
        self,
        architecture: Architecture,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> nn.Module:
        self.asked = (architecture, in_channels, num_classes, image_size)
        return gap(in_channels, num_classes)


def gap(inputs: int, classes: int) -> nn.Module:
    return GapCnn(nn.Sequential(nn.Conv2d(inputs, 4, 3), nn.BatchNorm2d(4)), 4, classes)


def build(space: SearchSpace, **sizes: int) -> nn.Module:
    return build_model(
        space, toy(), **{"in_channels": 2, "num_classes": 5, "image_size": 8, **sizes}
    )


def raising(*_: int) -> nn.Module:
    raise ValueError("seven is too many")


def too_small(inputs: int, classes: int) -> nn.Module:
    return GapCnn(nn.Conv2d(inputs, 4, 9), 4, classes)


def test_the_model_is_built_for_the_data() -> None:
    space = SizedSpace()
    model = build(space)
    assert space.asked == (toy(), 2, 5, 8)
    assert model.training
    assert model(torch.zeros(3, 2, 8, 8)).shape == (3, 5)
    assert isinstance(space, SearchSpace)


def test_image_size_may_be_left_out() -> None:
    model = build(Space(gap), in_channels=3, num_classes=7, image_size=16)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)


def test_a_model_in_eval_mode_comes_back_in_training_mode() -> None:
    model = build(Space(lambda *sizes: gap(*sizes).eval()))
    assert all(module.training for module in model.modules())


def test_checking_leaves_the_fresh_model_as_it_was() -> None:
    model = build(Space(gap))
    norm = model.features[1]
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (raising, "Space.build failed: ValueError: seven is too many"),
        (lambda *_: "net", "Space.build must return a torch.nn.Module but returned 'net'"),
        (lambda *_: nn.ReLU, "Space.build must return a torch.nn.Module"),
        (lambda *_: None, "returned None"),
        (
            lambda inputs, classes: gap(inputs, classes + 1),
            "logits of shape (N, 5) but two images gave (2, 6)",
        ),
        (lambda inputs, _: nn.Conv2d(inputs, 5, 3), "two images gave (2, 5, 6, 6)"),
        (
            lambda *_: gap(3, 5),
            "Space.build returned a model that fails on images of shape (2, 8, 8): RuntimeError",
        ),
        (too_small, "Space.build returned a model that fails on images of shape (2, 8, 8)"),
        (lambda *_: nn.Module(), "Space.build returned a model that fails on images"),
    ],
)
def test_errors_name_class_and_method(make: Callable[[int, int], Any], message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        build(Space(make))
    assert message in str(caught.value)
    assert "Space.build" in str(caught.value)


def test_the_cause_is_kept_for_debugging() -> None:
    with pytest.raises(SpaceError) as caught:
        build(Space(raising))
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_build_without_the_needed_arguments_is_named() -> None:
    class Narrow(Space):
        def build(self, architecture: Architecture) -> nn.Module:  # type: ignore[override]
            return gap(2, 5)

    with pytest.raises(SpaceError, match=r"Narrow\.build failed: TypeError"):
        build(Narrow(gap))


def test_what_a_space_is() -> None:
    assert isinstance(Space(gap), SearchSpace)
    assert not isinstance(nn.ReLU(), SearchSpace)
