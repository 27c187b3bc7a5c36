"""What the terminal shows is whole on 80 columns."""

from __future__ import annotations

import dataclasses
import io

import optuna
import pytest
import torch
from optuna.trial import TrialState
from rich.console import Console
from torch import nn

from flatsearch import Architecture, GapCnn, RunSettings, record, relative_flatness
from flatsearch.analysis.summary import summarise
from flatsearch.record.promotion import Promotion
from flatsearch.reports.progress import Progress
from flatsearch.reports.tables import all_trials, best_trials, confusions
from flatsearch.reports.terminal import print_final, print_flatness, print_summary
from tests.cases import add, final_training, study_of


@pytest.mark.parametrize("classes", [3, 12])
@pytest.mark.parametrize("width", [80, 200])
def test_a_final_training_is_not_cut(classes: int, width: int) -> None:
    out = io.StringIO()
    print_final(final_training(classes), Console(file=out, width=width))
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for number in (
        "0.9512",
        "0.1234",
        "0.0456",
        "123 ± 57",
        "0.0123 ± 0.0046",
        "trial-1-seed-0.pt",
    ):
        assert number in text
    assert ("most frequent confusions" in text) == (classes == 12 and width == 80)


def test_classes_whose_names_begin_alike_are_told_apart() -> None:
    final = dataclasses.replace(final_training(3), class_names=("golden_cat", "golden_cow", "eel"))
    assert confusions(final).heads == ("", "1", "2", "3", "")
    assert [row[0] for row in confusions(final).rows] == ["1 golden_cat", "2 golden_cow", "3 eel"]
    assert confusions(final, longest=20).heads[1:4] == final.class_names


def test_a_measurement_is_not_cut() -> None:
    features = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    model = nn.Sequential()
    model.add_module("a_long_name_that_needs_its_room", GapCnn(features, 2, 3))
    data = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    result = relative_flatness(model.eval(), data, layers="all")
    out = io.StringIO()
    print_flatness(result, Console(file=out, width=80))
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_a_trial_that_failed_without_a_reason_was_not_ended_by_the_pruner() -> None:
    study = study_of("accuracy")
    for state in (TrialState.FAIL, TrialState.PRUNED):
        study.tell(study.ask(), state=state)
    remarks = [row[-1] for row in all_trials(summarise(study)).rows]
    assert remarks == ["fail: no reason is on record", "pruned: by the pruner"]


def test_which_trial_goes_on_with_which() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 4.0)], words="3 " * 40)
    add(study, [(0.6, 4.0)])
    assert best_trials(summarise(study), 5).heads[1] == "accuracy"
    trial = study.ask()
    goes_on = Promotion(1, 1, 8)
    record.write_trial(trial, promotion=goes_on, metrics={"accuracy": 0.9, "flatness": 3.0})
    study.tell(trial, (0.9, 3.0))
    table = best_trials(summarise(study), 5)
    assert table.heads[:2] == ("trial", "begun as")
    assert [row[:2] for row in table.rows] == [("2", "1"), ("0", "")]
    shown = {}
    for width in (40, 80):
        out = io.StringIO()
        print_summary(summarise(study), Console(file=out, width=width))
        shown[width] = [line.split() for line in out.getvalue().splitlines()]
    heads = ["trial", "begun", "as", "accuracy", "flatness", "front", "architecture"]
    assert heads in shown[80]
    assert ["begun", "as", "1"] in shown[40]


def test_a_parked_trial_says_so_once() -> None:
    study = study_of("accuracy", "flatness")
    for widths in (None, [8, 16], [4]):
        trial = study.ask()
        record.write_trial(
            trial,
            parked=1,
            stopped="parked after epoch 1 of 8",
            architecture=widths and Architecture("plain_cnn", {"widths": widths}),
        )
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    nothing, first, second = all_trials(summarise(study)).rows
    assert nothing[-1] == "parked after epoch 1 of 8"
    assert first[-1] == "8-16 (parked after epoch 1 of 8)"
    assert second[-1] == "4 (parked after epoch 1 of 8)"


def test_a_line_is_broken_between_words_on_a_terminal_only() -> None:
    words = "one line of several words, longer than the terminal is wide"
    for terminal, lines in ((True, 3), (False, 1)):
        out = io.StringIO()
        console = Console(file=out, width=24, force_terminal=terminal)
        Progress(console, RunSettings()).say(words)
        said = out.getvalue().splitlines()
        assert (len(said), " ".join(line.strip() for line in said)) == (lines, words)
