from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest

from flatsearch import Architecture, UsageError, record
from flatsearch.analysis.selection import choose, saved_model
from flatsearch.analysis.summary import StudySummary, summarise
from flatsearch.search.duplicates import take_over

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def summary_of(*points: tuple[float, ...], pruned: bool = False) -> StudySummary:
    study = optuna.create_study(
        directions=["maximize", "minimize"][: len(points[0])], study_name="s"
    )
    study.set_metric_names(["accuracy", "flatness"][: len(points[0])])
    for point in points:
        trial = study.ask()
        record.write_trial(trial, architecture=Architecture("toy", {"width": trial.number}))
        study.tell(trial, list(point))
    if pruned:
        study.tell(study.ask(), state=optuna.trial.TrialState.PRUNED)
    return summarise(study)


def test_the_best_of_a_front_is_its_knee() -> None:
    # Scaled to [0, 1]: (1, 0), (0.8, 0.9), (0, 1); the middle one is nearest to (1, 1).
    summary = summary_of((0.9, 10.0), (0.88, 1.9), (0.8, 1.0), (0.7, 5.0))
    choice = choose(summary)
    assert choice.trial.number == 1
    assert choice.reason.startswith("the knee of the front of 3: nearest to the best accuracy and")
    assert choose(summary, prefer="accuracy").trial.number == 0
    assert choose(summary, prefer="flatness").trial.number == 2
    assert choose(summary, prefer="flatness").reason == "the best flatness on the front of 3"


def test_of_two_equally_near_points_the_first_objective_decides() -> None:
    assert choose(summary_of((0.8, 1.0), (0.9, 2.0))).trial.number == 1


def test_one_objective() -> None:
    choice = choose(summary_of((0.5,), (0.9,), (0.7,)))
    assert (choice.trial.number, choice.reason) == (1, "the best accuracy")


def test_a_number() -> None:
    choice = choose(summary_of((0.5,), (0.9,)), "0")
    assert (choice.trial.number, choice.reason) == (0, "as asked for")


def test_a_result_that_was_taken_over_is_the_earlier_trials() -> None:
    study = optuna.create_study(direction="maximize")
    first = study.ask()
    record.write_trial(first, architecture=Architecture("toy", {"width": 1}))
    study.tell(first, 0.5)
    second = study.ask()
    take_over(second, study.trials[0])
    study.tell(second, 0.5)
    assert choose(summarise(study), "1").trial.number == 0


@pytest.mark.parametrize(
    ("which", "prefer", "message"),
    [
        ("7", None, "there is no trial '7' in study 's'; it has 0 to 2"),
        ("-1", None, "there is no trial '-1'"),
        ("2", None, "trial 2 has no architecture on record"),
        ("best", "acuracy", r"unknown objective to prefer 'acuracy' \(did you mean 'accuracy'\?\)"),
        ("0", "accuracy", "`prefer` is for the best trial, not for trial 0"),
    ],
)
def test_refused(which: str, prefer: str | None, message: str) -> None:
    summary = summary_of((0.5, 1.0), (0.9, 2.0), pruned=True)
    with pytest.raises(UsageError, match=message):
        choose(summary, which, prefer)


def test_nothing_to_choose() -> None:
    study = optuna.create_study(study_name="empty")
    with pytest.raises(UsageError, match="study 'empty' has no trial to choose"):
        choose(summarise(study))


def test_a_trial_that_is_running_or_was_pruned() -> None:
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    record.write_trial(trial, architecture=Architecture("toy", {"width": 1}))
    with pytest.raises(UsageError, match="trial 0 is still running"):
        choose(summarise(study), "0")
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert choose(summarise(study), "0").reason == "as asked for, though it ended as pruned"


def study_with_a_model(artifact: str | None) -> optuna.Study:
    study = optuna.create_study(direction="maximize", study_name="s")
    trial = study.ask()
    record.write_trial(trial, architecture=Architecture("toy", {"width": 1}), artifact=artifact)
    study.tell(trial, 0.5)
    return study


def test_the_model_of_the_final_training_comes_first(tmp_path: Path) -> None:
    study = study_with_a_model("found")
    choice = choose(summarise(study))
    (tmp_path / "found").touch()
    model = saved_model(study, choice, tmp_path)
    assert (model.file, model.name) == (tmp_path / "found", "s-trial-0")
    assert model.what.endswith("as the search left it; 'flatsearch train' makes a better one")
    assert model.architecture == Architecture("toy", {"width": 1}).to_json()
    final = tmp_path / "final.pt"
    record.write_study(study, tests=[record.FinalTest(0, 0.9, str(final))])
    model = saved_model(study, choice, tmp_path)
    assert model.what.endswith(f"left it: the final training's {str(final)!r} is missing")
    final.touch()
    model = saved_model(study, choice, tmp_path)
    assert model.file == final
    assert model.what.endswith(", after its final training")


def test_no_model_to_be_found(tmp_path: Path) -> None:
    study = study_with_a_model("gone")
    with pytest.raises(UsageError, match=r"gone', is missing; give `artifacts`, or train it"):
        saved_model(study, choose(summarise(study)), tmp_path)
    study = study_with_a_model(None)
    with pytest.raises(UsageError, match="trial 0 has no saved model: train it with 'flatsearch"):
        saved_model(study, choose(summarise(study)), tmp_path)
    record.write_study(study, tests=[record.FinalTest(0, 0.9, "x.pt")])
    with pytest.raises(UsageError, match=r"\(that of its final training, 'x.pt', is missing\)"):
        saved_model(study, choose(summarise(study)), tmp_path)
