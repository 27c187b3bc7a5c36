"""What is stored of a study."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.exceptions import ExperimentalWarning

from flatsearch.errors import SettingsError, UsageError
from flatsearch.record.facts import Fact, Record, write
from flatsearch.settings import RunSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import optuna

    from flatsearch.data.splits import ImageData

__all__ = ["HASHED", "FinalTest", "LeastAccuracy", "StudyRecord", "name_objectives", "write_study"]


class LeastAccuracy(NamedTuple):
    """What a trial must have learnt to be on a front of several objectives.

    Networks that know little are flat for that reason; see `docs/fronts.md`.

    Attributes:
        guess: The validation accuracy that is clearly more than guessing.
        share: How much of what the best trial has beyond that a trial must have.
        metric: Which accuracy it is.
    """

    guess: float
    share: float = 0.9
    metric: str = "accuracy"

    def beside(self, best: float) -> float:
        """Return the least accuracy where the best trial has `best`.

        Example:
            >>> round(LeastAccuracy(0.1, 0.9).beside(0.6), 4)
            0.55
        """
        return self.guess + self.share * max(0.0, best - self.guess)


class FinalTest(NamedTuple):
    """A look at the test split.

    Attributes:
        trial: The number of the trial whose final network was tested.
        accuracy: Its test accuracy.
        file: The file of the network.
    """

    trial: int
    accuracy: float
    file: str


def _tests(stored: list[tuple[int, float, str]]) -> tuple[FinalTest, ...]:
    return tuple(FinalTest(*test) for test in stored)


# Settings that are known by a hash, which nobody reads, and what is said where it is another one.
HASHED = {
    "space_file": "the search space's file has been changed since",
    "data_fingerprint": "the images are others",
}


class StudyRecord(Record):
    """What is stored of a study.

    Args:
        study: Any study of Optuna.

    Attributes:
        settings: What all trials share; None for a study that was not made by flatsearch.
        run: How the study is being run, which a worker that joins has to know; None before.
        validation_images: The number of images that validation accuracies are of; None where that
            was not stored, as by earlier versions.
        least: What a trial must have learnt to be on the front; None where accuracy is the only
            objective or the setting `min_accuracy` says it, and in studies of earlier versions.
        noted: Numbers of the trials whose notes say that they are on the front.
        told: The number of the first trial that has not been told why it is not.
        told_least: What a trial had to have learnt when they were told.
        tests: Every look that was taken at the test split, oldest first.
    """

    settings = Fact[dict[str, Any] | None](stored=dict)
    run = Fact[dict[str, Any] | None](stored=dict)
    validation_images = Fact[int | None](stored=int)
    least = Fact[LeastAccuracy | None](
        encode=list, decode=lambda pair: LeastAccuracy(*pair), stored=list
    )
    noted = Fact[list[int]](lambda _: [], stored=list)
    told = Fact[int](lambda _: 0)
    told_least = Fact[float | None]()
    tests = Fact[tuple[FinalTest, ...]](lambda _: (), encode=list, decode=_tests, stored=list)

    def __init__(self, study: optuna.Study) -> None:
        super().__init__(f"study {study.study_name!r}", study.user_attrs)

    def run_settings(self) -> RunSettings:
        """Return the settings of every trial.

        Raises:
            UsageError: If the study has none, or they cannot be read.
        """
        if self.settings is None:
            raise UsageError(
                f"{self.owner} has no settings of flatsearch: it was made by something else, or by"
                " an older version"
            )
        return RunSettings.from_dict(self.settings)

    def check_data(self, data: ImageData) -> None:
        """Refuse images that are not those of the study.

        Args:
            data: The images.

        Raises:
            UsageError: If training or validation images differ.
        """
        stored = self.settings or {}
        wanted = stored.get("data_fingerprint")
        if wanted is not None and data.fingerprint() != wanted:
            raise UsageError(
                f"data {data.name!r} are not those of the study ({stored.get('data')!r}): other"
                " images or another split; give the same with `data` and `data_root`"
            )

    def check_settings(self, wanted: Mapping[str, Any]) -> None:
        """Refuse settings that are not those of the study, by which its trials are comparable.

        Args:
            wanted: What all trials are to share, as `settings`.

        Raises:
            SettingsError: If any differ; names them.
        """
        # A setting that is newer than the study had its default then.
        stored = {**RunSettings().to_dict(), **(self.settings or {})}
        # A training loop of the user's is there, or it is not.
        wanted = {"train": None, **wanted}
        alike = {name for name, known in RunSettings.settings().items() if not known.compared}
        different = [k for k in wanted if k not in alike and stored.get(k) != wanted[k]]
        # The same images may be somewhere else.
        if "data" in different and "data_fingerprint" not in different:
            different.remove("data")
        # The same name with other images is the clearer message than the fingerprint alone.
        if "data_fingerprint" in different and len(different) > 1:
            different.remove("data_fingerprint")
        if different:
            listing = ", ".join(
                HASHED.get(key) or f"{key}={_plain(stored.get(key))} (not {_plain(wanted[key])})"
                for key in different
            )
            raise SettingsError(
                f"{self.owner} exists with other settings: {listing};"
                " give the same settings to resume it, or choose another `study`"
            )

    @property
    def space(self) -> str:
        """The reference of the search space, as the run was given it; empty where unknown."""
        run, settings = self.run or {}, self.settings or {}
        return str(run.get("space") or settings.get("space") or "")

    def trained(self, number: int) -> str | None:
        """Return the file of a trial's latest final network, or None."""
        return next((test.file for test in reversed(self.tests) if test.trial == number), None)


def _plain(value: object) -> str:
    return ",".join(str(v) for v in value) if isinstance(value, list) else str(value)


def write_study(study: optuna.Study, **facts: Any) -> None:
    """Store facts of a study.

    Args:
        study: The study.
        **facts: Values of `StudyRecord`'s attributes by their names.
    """
    write(StudyRecord, study, facts)


def name_objectives(study: optuna.Study, names: Sequence[str]) -> None:
    """Name a study's objectives, unless they are; pruners and samplers find values by the names.

    Args:
        study: The study.
        names: One for each objective.
    """
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(names))
