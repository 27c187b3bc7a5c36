"""Options and small things that several commands share."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsearch.errors import UsageError
from flatsearch.settings import DEFAULT_ARTIFACTS, DEFAULT_STORAGE

if TYPE_CHECKING:
    import optuna
    from optuna.artifacts import FileSystemArtifactStore

__all__ = [
    "add_artifacts",
    "add_data",
    "add_device",
    "add_json",
    "add_storage",
    "add_timeout",
    "artifact_store",
    "artifacts_of",
    "count",
    "load_for_reading",
    "make_console",
    "milliseconds",
    "print_json",
    "refuse_missing_sqlite",
    "storage_option",
]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let the command print JSON."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Let the command be told where studies are."""
    parser.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="URL",
        help="Optuna storage (default: %(default)s, in the working folder)",
    )  # fmt: skip


def add_data(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Let the command be told which images."""
    parser.add_argument(
        "--data", default=default, required=default is None, metavar="DATA",
        help="digits, a torchvision name (cifar10, cifar100, fashion_mnist, kmnist, mnist, svhn),"
        " a folder of class folders of images, or an .npz file"
        + (" (default: %(default)s)" if default else ""),
    )  # fmt: skip
    parser.add_argument(
        "--data-root", default="data", metavar="DIR",
        help="where torchvision data sets are, or are downloaded to (default: %(default)s)",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Let the command be told where to compute."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:INDEX (default: %(default)s)"
    )


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Let the command end by itself."""
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS",
        help="start no new trial after this long; the running one ends at its next epoch, and does"
        " not count",
    )  # fmt: skip


def count(text: str) -> int:
    """Return a count with an optional unit.

    Args:
        text: Digits, and k, M or G.

    Returns:
        The count.

    Raises:
        ArgumentTypeError: If the text is something else.

    Example:
        >>> count("200k"), count("1.5M"), count("12")
        (200000, 1500000, 12)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be a number such as 200k or 1.5M but is {text!r}")
    return round(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]])


def milliseconds(text: str) -> float:
    """Return a time in milliseconds.

    Args:
        text: Digits, and us, ms (also where nothing is given) or s.

    Returns:
        Milliseconds.

    Raises:
        ArgumentTypeError: If the text is something else.

    Example:
        >>> milliseconds("2ms"), milliseconds("500us"), milliseconds("0.1s"), milliseconds("3")
        (2.0, 0.5, 100.0, 3.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be a time such as 2ms or 500us but is {text!r}")
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "": 1.0, "s": 1e3}[match[2]]


def print_json(fields: dict[str, Any]) -> None:
    """Print one JSON object."""
    from flatsearch.analysis.summary import finite

    print(json.dumps(finite(fields), allow_nan=False))


def make_console() -> Any:
    """Return the console of standard output; wide where that is no terminal."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console.width = 160
    return console


def artifact_store(name: str) -> FileSystemArtifactStore | None:
    """Return the store, whose folder is made when a run begins; None for "none"."""
    from optuna.artifacts import FileSystemArtifactStore

    if name == "none":
        return None
    folder = Path(name)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UsageError(f"--artifacts {name!r} is not a folder that can be written to")
    return FileSystemArtifactStore(folder)


def load_for_reading(options: argparse.Namespace) -> optuna.Study:
    """Return the study that a command's STUDY and --storage name."""
    import optuna

    from flatsearch.search.storage import open_storage
    from flatsearch.search.study import load_study

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    refuse_missing_sqlite(options.storage)
    return load_study(options.study, open_storage(options.storage))


def add_artifacts(parser: argparse.ArgumentParser) -> None:
    """Let the command be told where a search saved its models."""
    parser.add_argument(
        "--artifacts", metavar="DIR", help="where the search saved its models (default: as it was"
        " told)",
    )  # fmt: skip


def artifacts_of(options: argparse.Namespace, study: optuna.Study) -> str:
    """Return where a study's models are: as the command, or the search, was told."""
    from flatsearch.record import StudyRecord

    told = options.artifacts or (StudyRecord(study).run or {}).get("artifacts")
    return str(told or DEFAULT_ARTIFACTS)


def storage_option(options: argparse.Namespace) -> str:
    """Return what a suggested command needs to find the same storage."""
    return "" if options.storage == DEFAULT_STORAGE else f" --storage {options.storage}"


def refuse_missing_sqlite(url: str) -> None:
    """Opening a SQLite file that is not there would create an empty one."""
    file = url.removeprefix("sqlite:///")
    if file != url and not Path(file).exists():
        raise UsageError(f"storage {url!r} does not exist; give --storage, or run a search first")
