"""What a study stores of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatsearch import record
from flatsearch.errors import UsageError
from flatsearch.settings import RunSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import optuna


__all__ = [
    "read_noted",
    "read_run",
    "read_settings",
    "read_tests",
    "read_trained",
    "settings_of",
    "space_of",
    "write_noted",
    "write_run",
    "write_settings",
    "write_test",
]

_SETTINGS = "flatsearch:settings"
_RUN = "flatsearch:run"
_TESTS = "flatsearch:tests"
_NOTED = "flatsearch:noted"


def write_settings(study: optuna.Study, settings: Mapping[str, Any]) -> None:
    """Store what every trial of the study shares."""
    study.set_user_attr(_SETTINGS, dict(settings))


def read_settings(study: optuna.Study) -> dict[str, Any] | None:
    """Return what `write_settings` stored; None for a study that is not ours."""
    settings = study.user_attrs.get(_SETTINGS)
    return settings if isinstance(settings, dict) else None


def write_run(study: optuna.Study, run: Mapping[str, Any]) -> None:
    """Store how the study is being run: what a worker has to know that joins."""
    study.set_user_attr(_RUN, dict(run))


def read_run(study: optuna.Study) -> dict[str, Any] | None:
    """Return what `write_run` stored last; None if nothing was."""
    run = study.user_attrs.get(_RUN)
    return run if isinstance(run, dict) else None


def write_noted(study: optuna.Study, numbers: Iterable[int]) -> None:
    """Store which trials' notes say that they are on the front."""
    study.set_user_attr(_NOTED, list(numbers))


def read_noted(study: optuna.Study) -> list[int]:
    """Return what `write_noted` stored last."""
    return list(study.user_attrs.get(_NOTED, []))


def write_test(study: optuna.Study, number: int, accuracy: float, file: str) -> None:
    """Store that a trial's final network was tested, and where it is; nothing is forgotten."""
    tests = [*study.user_attrs.get(_TESTS, []), [number, accuracy, file]]
    study.set_user_attr(_TESTS, tests)


def read_tests(study: optuna.Study) -> tuple[tuple[int, float], ...]:
    """Return the looks that were taken at the test split, as (trial, accuracy), oldest first."""
    return tuple((int(n), float(a)) for n, a, _ in study.user_attrs.get(_TESTS, []))


def read_trained(study: optuna.Study, number: int) -> str | None:
    """Return the file of a trial's latest final network, or None."""
    files = [file for n, _, file in study.user_attrs.get(_TESTS, []) if n == number]
    return files[-1] if files else None


def settings_of(study: optuna.Study) -> tuple[RunSettings, dict[str, Any]]:
    """Return the settings that a study's trials share, and everything stored with them.

    Raises:
        UsageError: If the study has none, or they cannot be read.
    """
    stored = record.read_settings(study)
    if stored is None:
        raise UsageError(
            f"study {study.study_name!r} has no settings of flatsearch: it was made by something"
            " else, or by an older version"
        )
    return RunSettings.from_dict(stored), stored


def space_of(study: optuna.Study) -> str:
    """Return the reference of a study's search space, as the run was given it."""
    run, stored = record.read_run(study) or {}, record.read_settings(study) or {}
    return str(run.get("space") or stored.get("space") or "")
