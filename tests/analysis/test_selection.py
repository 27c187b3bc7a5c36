from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest

from flatsearch import Architecture, UsageError, record
from flatsearch.analysis.selection import choose, saved_model
from flatsearch.analysis.summary import StudySummary, summarise
from flatsearch.search.duplicates import take_over
from tests.cases import study_of

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


def trained(
    *trials: tuple[float, float, float | None],
    objectives: tuple[str, ...] = ("accuracy",),
    images: int | None = 400,
) -> StudySummary:
    """Return a study of trials with (accuracy, flatness, validation loss)."""
    study = study_of(*objectives)
    if images is not None:
        record.write_study(study, validation_images=images)
    for accuracy, flatness, loss in trials:
        trial = study.ask()
        metrics = {"accuracy": accuracy, "flatness": flatness}
        record.write_trial(trial, metrics=metrics if loss is None else {**metrics, "loss": loss})
        study.tell(trial, [metrics[name] for name in objectives])
    return summarise(study)


# With 400 images the standard error of an accuracy of 0.9 is 0.015.
NEAR = ((0.9, 1.0, 0.30), (0.886, 5.0, 0.20), (0.884, 0.5, 0.10))


def test_the_validation_loss_decides_within_one_standard_error() -> None:
    summary = trained(*NEAR)
    choice = choose(summary)
    assert choice.trial.number == 1
    assert choice.reason == (
        "of 2 within one standard error (0.015) of the best accuracy, the one with the lowest"
        " validation loss"
    )
    assert summary.front == (1,)
    assert summary.to_dict()["best"] == {"trial": 1, "reason": choice.reason}


@pytest.mark.parametrize(
    ("trials", "images", "number"),
    [
        (NEAR, None, 0),  # an earlier version did not store how many images there are
        (NEAR, 100, 2),  # fewer images, a larger error
        (NEAR, 40_000, 0),
        ((*NEAR, (0.9, 1.0, 0.25)), None, 3),  # equally good trials need no error
        (((0.9, 1.0, None), *NEAR[1:]), 400, 0),  # the best one has no loss
        (((0.9, 1.0, 0.3), (0.89, 1.0, None)), 400, 0),
        (((0.9, 1.0, 0.3), (0.89, 1.0, float("nan"))), 400, 0),
    ],
)
def test_what_the_loss_can_decide(
    trials: tuple[tuple[float, float, float | None], ...], images: int | None, number: int
) -> None:
    assert choose(trained(*trials, images=images)).trial.number == number


def test_with_accuracy_preferred_dominated_trials_count_too() -> None:
    summary = trained(*NEAR, objectives=("accuracy", "flatness"))
    assert summary.front == (0, 2)
    assert choose(summary, prefer="accuracy").trial.number == 1
    choice = choose(summary, prefer="flatness")
    assert (choice.trial.number, choice.reason) == (2, "the best flatness on the front of 2")


def test_the_loss_decides_between_knees() -> None:
    # On the front's scale an error of .02 is .2. From the best, trial 2 is at (.5, .3), the knee;
    # trial 1 is at (.4, .5), and nearer at (.2, .5); trial 3 is at (.9, .1), and not at (.7, .1).
    front = (0.9, 11.0, 0.1), (0.86, 6.0, 0.35), (0.85, 4.0, 0.4), (0.81, 2.0, 0.3), (0.8, 1.0, 0.2)
    objectives = ("accuracy", "flatness")
    choice = choose(trained(*front, objectives=objectives, images=320))
    assert choice.trial.number == 1
    assert choice.reason == (
        "the knee of the front of 5: nearest to the best accuracy and flatness at once; of 2 that"
        " one standard error (0.02) of the accuracy does not set apart, the one with the lowest"
        " validation loss"
    )
    assert choose(trained(*front, objectives=objectives, images=None)).trial.number == 2
