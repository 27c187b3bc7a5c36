"""The data in the figures, against studies made by hand."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState

from flatsearch import UsageError, record
from flatsearch.analysis.summary import summarise
from flatsearch.reports.figures import figures
from flatsearch.search.duplicates import take_over
from tests.cases import add, large_study, small_study, study_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def drawn(study: optuna.Study) -> dict[str, Figure]:
    return figures(summarise(study))


def points(figure: Figure) -> dict[str, list[tuple[Any, Any]]]:
    return {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data}


def test_the_front_and_what_is_not_on_it() -> None:
    figure = drawn(small_study())["front"]
    assert points(figure) == {
        "pruned, where they stopped": [(3.0, 0.2), (0.5, 0.25)],
        "left out by a constraint": [(0.2, 0.95)],
        "complete": [(50.0, 0.5)],
        "Pareto front": [(1.0, 0.6), (40.0, 0.9)],  # from flat to sharp, for the line
    }
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")
    assert figure.layout.xaxis.title.text == "flatness (smaller is better)"
    front = figure.data[-1]
    assert front.mode == "lines+markers"
    assert front.line.shape == "hv"
    assert front.text == (
        "trial 1: accuracy 0.600, flatness 1<br>3",
        "trial 0: accuracy 0.900, flatness 40<br>3",
    )
    assert figure.data[0].text[0].endswith("<br>stopped after epoch 1")


def test_a_flatness_that_is_negative_has_a_linear_axis() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.9, -1.0)])
    add(study, [(0.95, 100.0)])
    assert drawn(study)["front"].layout.xaxis.type == "linear"


def test_three_objectives_have_no_line() -> None:
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    study.tell(study.ask(), (0.9, 2.0, 3.0))
    study.tell(study.ask(), (0.8, 3.0, 1.0))
    figure = drawn(study)["front"]
    assert figure.data[-1].mode == "markers"
    assert figure.layout.title.text.endswith("(the front is of all 3 objectives)")


def test_one_objective_by_trial_with_the_best_so_far() -> None:
    study = study_of("accuracy")
    for accuracy in (0.5, 0.4, 0.7, 0.6):
        add(study, [(accuracy, 1.0)])
    trial = study.ask()
    record.write_step(trial, 0, {"accuracy": 0.1})
    study.tell(trial, state=TrialState.PRUNED)
    assert points(drawn(study)["front"]) == {
        "pruned, where they stopped": [(4, 0.1)],
        "complete": [(0, 0.5), (1, 0.4), (3, 0.6)],
        "best trial": [(2, 0.7)],
        "best so far": [(0, 0.5), (2, 0.7), (3, 0.7)],
    }


def test_curves_by_epoch_with_the_front_in_colour() -> None:
    figure = drawn(small_study())["epochs"]
    others, *rest = figure.data
    assert others.name == "other trials"
    assert others.x == (1, 2, None, 1, None, 1, None, 1, 2, None)
    assert others.y == (0.3, 0.5, None, 0.2, None, 0.25, None, 0.95, 0.95, None)
    assert [trace.name for trace in rest[:2]] == ["trial 0", "trial 1"]
    assert (rest[0].x, rest[0].y) == ((1, 2), (0.5, 0.9))
    flatness = [trace for trace in rest if trace.xaxis == "x2"]
    assert [trace.y for trace in flatness[1:]] == [(4.0, 40.0), (2.0, 1.0)]
    assert figure.layout.yaxis2.type == "log"
    assert not any(trace.showlegend for trace in flatness)  # a name once is enough


def test_many_curves_are_a_part_of_them_and_long_ones_too() -> None:
    study = study_of("accuracy", "flatness")
    for i in range(300):
        add(study, [(0.1, 1.0 + i)] * 20)
    others = drawn(study)["epochs"].data[0]
    assert others.x.count(None) == 150
    assert len(others.x) == 150 * 21


def test_the_gap_and_its_correlation() -> None:
    study = study_of("accuracy", "flatness")
    for i in range(12):
        add(study, [(0.5, 1.0 + i)], gap=0.01 * i)
    add(study, [(0.9, 1.0)], soft=True, gap=9.0)  # has no final values
    figure = drawn(study)["gap"]
    assert len(figure.data[0].x) == 12
    assert figure.data[0].y[3] == pytest.approx(0.03)
    said = "Kendall tau +1.00 [+1.00, +1.00], 12 trials"
    title = figure.layout.title.text
    assert title == f"flatness against training less validation accuracy: {said}"


def test_the_gap_with_few_trials() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0)])
    assert "gap" not in drawn(study)
    add(study, [(0.6, 2.0)])
    assert "too few trials (2)" in drawn(study)["gap"].layout.title.text


@pytest.mark.parametrize("count", [3, 40])
def test_layers_of_the_best(count: int) -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0)])
    trial = study.ask()
    record.write_trial(trial, layers={f"conv{i}": 1.5 * i for i in range(count)})
    study.tell(trial, (0.9, 2.0))
    figure = drawn(study)["layers"]
    (bars,) = figure.data
    assert figure.layout.title.text == "flatness of the convolutions of trial 1"
    names, numbers = (bars.y, bars.x) if count == 3 else (bars.hovertext, bars.y)
    assert names == tuple(f"conv{i}" for i in range(count))
    assert numbers == tuple(1.5 * i for i in range(count))


def test_the_budget_is_what_the_pruner_saved() -> None:
    study = small_study()
    record.write_study(study, settings={"epochs": 2})
    diverged = study.ask()
    record.write_step(diverged, 0, {"accuracy": 0.1})
    record.write_trial(diverged, diverged=True)  # it could not have gone on
    study.tell(diverged, state=TrialState.PRUNED)
    figure = drawn(study)["budget"]
    assert points(figure)["spent"] == list(zip(range(7), (2, 4, 6, 7, 8, 10, 11), strict=True))
    full = [y for _, y in points(figure)["without pruning"]]
    assert full == [2, 4, 6, 8, 10, 12, 13]
    assert figure.layout.title.text == "epochs of training: 11 of 13, 15% saved by pruning"


def test_what_a_study_has_no_data_for_is_left_out() -> None:
    assert drawn(study_of("accuracy", "flatness")) == {}
    theirs = optuna.create_study()
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    found = drawn(theirs)
    assert set(found) == {"front"}
    assert "<br>x 0." in found["front"].data[0].text[0]
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0)])
    assert set(drawn(study)) == {"front", "epochs"}


def test_copies_and_those_over_a_limit_are_not_drawn() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0)])
    copy = study.ask()
    take_over(copy, study.trials[0])
    study.tell(copy, (0.5, 1.0))
    large = study.ask()
    record.write_constraints(large, {"flatsearch:max_parameters": 1.0})
    study.tell(large, state=TrialState.PRUNED)
    assert points(drawn(study)["front"]) == {"Pareto front": [(1.0, 0.5)]}


def test_a_trial_that_diverged_is_not_drawn_as_pruned() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0)])
    add(study, [(0.2, 3.0)], state=TrialState.PRUNED)
    add(study, [(0.1, 9.0)], state=TrialState.PRUNED, diverged=True)
    assert points(drawn(study)["front"]) == {
        "Pareto front": [(1.0, 0.5)],
        "pruned, where they stopped": [(3.0, 0.2)],
        "diverged, before they did": [(9.0, 0.1)],
    }
    assert summarise(study).counts == {"COMPLETE": 1, "PRUNED": 1, "DIVERGED": 1}


def test_values_that_are_not_finite_are_gaps() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, math.nan), (0.6, 2.0)])
    add(study, [(0.4, math.inf), (0.7, 3.0)])
    figure = drawn(study)["epochs"]
    assert figure.data[-1].y == (None, 2.0)
    assert "NaN" not in figure.to_json()


def test_what_users_name_is_not_markup() -> None:
    study = study_of("accuracy", "flatness")
    add(study, [(0.5, 1.0)], words="<b>&")
    assert drawn(study)["front"].data[0].text[0].endswith("<br>&lt;b&gt;&amp;")


def test_without_plotly_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.graph_objects", None)
    with pytest.raises(UsageError, match=r"pip install 'flatsearch\[dashboard\]'"):
        drawn(small_study())


def test_two_thousand_trials_are_small() -> None:
    found = drawn(large_study(2000))
    assert set(found) == {"front", "epochs", "gap", "layers", "budget"}
    sizes = {name: len(figure.to_json()) for name, figure in found.items()}
    assert max(sizes.values()) < 90_000, sizes
    assert sum(sizes.values()) < 200_000, sizes
    # Plain numbers: what the dashboard's older plotly.js can read too.
    assert all("bdata" not in figure.to_json() for figure in found.values())
    shown = json.loads(found["front"].to_json())["data"]
    assert sum(len(trace["x"]) for trace in shown) == 2000
