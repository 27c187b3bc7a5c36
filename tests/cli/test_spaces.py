"""`flatsearch spaces`."""

from __future__ import annotations

import json

from tests.fakes import call


def test_the_list() -> None:
    assert "resnet_small" in call("spaces").out
    assert "resnet_small" in json.loads(call("spaces", "--json").out)["spaces"]


def test_one_in_words() -> None:
    out = call("spaces", "./my_space.py:MySpace").out
    assert "MySpace: Networks of one layer." in out
    assert "  width            2 to 8\n" in out
    assert "architectures: 700\n" in out
    assert "example: slope " in out
    assert "  conv 3x3" in out
    assert "bytes of activations" in out


def test_one_as_json() -> None:
    card = json.loads(call("spaces", "./my_space.py:MySpace", "--json").out)
    assert card["parameters"] == {"slope": "0 to 99", "width": "2 to 8"}
    assert card["architectures"] == 700
    assert card["smallest"]["parameters"] == 2 * 28 + 2 * 10 + 10
