"""One bad trial is one bad trial: what cannot be read is left out, whatever is wrong with it."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest

import flatsearch
from flatsearch import FlatnessPruner, HalvingPromoter, ParetoPruner, UsageError
from flatsearch.analysis.selection import choose
from flatsearch.analysis.summary import summarise
from flatsearch.record import TrialRecord
from flatsearch.reports.html import write_page
from flatsearch.reports.markdown import study_note
from flatsearch.reports.terminal import print_summary
from flatsearch.search.trial_budget import finished_count
from tests.cases import add, large_study, small_study

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
GARBAGE = (True, "x", "[", 7, -1, 0.5, math.nan, [], [1, 2, 3], {}, {"a": None}, {"trial": "x"})


def copied(source: optuna.Study, number: int, key: str, garbage: object) -> optuna.Study:
    """Return a copy of a study, in which one attribute of one trial is another one."""
    study = optuna.create_study(directions=source.directions)
    study.set_metric_names(source.metric_names or [])
    for trial in source.get_trials(deepcopy=False):
        shown = copy.copy(trial)
        if trial.number == number:
            shown.user_attrs = {**trial.user_attrs, key: garbage}
        study.add_trial(shown)
    return study


def test_the_other_trials_are_read_as_before() -> None:
    rng = np.random.default_rng(0)
    source = large_study(12, epochs=3)
    before = {t["number"]: t for t in summarise(source, statistics=False).to_dict()["trials"]}
    pruners = (
        FlatnessPruner(),
        HalvingPromoter(epochs=3),
        ParetoPruner(optuna.pruners.NopPruner()),
    )
    damaged = 0
    for turn in range(100):
        number = int(rng.integers(len(before)))
        keys = [k for k in source.trials[number].user_attrs if k.startswith("flatsearch:")]
        key = str(rng.choice(keys))
        study = copied(source, number, key, GARBAGE[rng.integers(len(GARBAGE))])
        summary = summarise(study, statistics=turn % 10 == 0)
        after = {t["number"]: t for t in summary.to_dict()["trials"]}
        assert set(before) - set(after) == set(summary.unreadable)
        assert set(summary.unreadable) <= {number}
        assert all(after[n] == before[n] for n in after if n != number)
        for why in summary.unreadable.values():
            assert f"trial {number} is damaged" in why
            assert key in why
            damaged += 1
        study_note(summary)
        finished_count(study)
        study.pruner = pruners[turn % 3]
        trial = study.ask()
        for step in range(2):
            flatsearch.report(trial, step, accuracy=0.5, flatness=0.1)
            flatsearch.should_prune(trial)
    assert damaged > 50


def test_where_it_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    source = small_study()
    add(source, [(0.85, 45.0)])  # only trial 0 is better
    study = copied(source, 0, "flatsearch:metrics", {"accuracy": "lots"})
    summary = summarise(study)
    assert set(summarise(source).front) == {0, 1}
    assert set(summary.front) == {1, len(study.trials) - 1}
    said = (
        "the record of trial 0 is damaged, or of another version of flatsearch:"
        " 'flatsearch:metrics': could not convert string to float: 'lots'"
    )
    assert summary.unreadable == {0: said}
    assert f"{said}; it is left out" in caplog.text
    assert summary.counts["UNREADABLE"] == 1
    print_summary(summary, Console(width=160))
    assert "1 unreadable" in capsys.readouterr().out
    write_page(summary, tmp_path / "page.html")
    with pytest.raises(UsageError, match="trial 0 is damaged"):
        choose(summary, "0")


def test_results_that_are_none() -> None:
    trial = small_study().trials[0]
    trial.values = [math.nan, 1.0]
    read = TrialRecord(trial)
    assert "'values': [nan, 1.0] are no results" in read.damage
    assert not read.complete
