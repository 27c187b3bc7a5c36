"""`flatsearch report`; its page is tested with the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest

from tests.fakes import call

if TYPE_CHECKING:
    from pathlib import Path


def test_a_users_space(tiny: Path) -> None:
    out = call("report").out
    assert "study MySpace-digits: 2 complete" in out
    assert "slope " in out
    assert "width " in out


def test_an_unknown_study(tiny: Path) -> None:
    assert "did you mean 'MySpace-digits'" in call("report", "MySpace-digit", code=2).err


@pytest.mark.parametrize("command", ["report", "train --trial 0", "export --trial 0"])
def test_a_record_of_an_older_version(command: str) -> None:
    study = optuna.create_study(study_name="old", storage="sqlite:///flatsearch.db")
    trial = study.ask()
    trial.set_user_attr("architecture", '{"space":"plain_cnn"}')  # without its values
    study.tell(trial, 0.5)
    said = call(*command.split(), code=0 if command == "report" else 2)
    what = "the record of trial 0 is damaged, or of another version of flatsearch: 'flatsearch:"
    if command == "report":
        assert said.out.startswith("\nstudy old: 1 unreadable")
    else:
        assert said.err.startswith(f"flatsearch {command.split()[0]}: error: {what}arch")
        assert "\n" not in said.err.strip()
