"""The options of a run: where, how long and by which sampler and pruner it searches."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flatsearch.errors import COUNT
from flatsearch.settings.choices import (
    DEFAULT_PRUNER,
    PRUNE_ON,
    PRUNER_FOR_GOOD,
    PRUNERS,
    SAMPLERS,
)
from flatsearch.settings.fields import REQUIRED, SettingsRecord, setting
from flatsearch.settings.objectives import COUNTED
from flatsearch.settings.run import BUDGET, SEARCH, RunSettings
from flatsearch.settings.values import Choice, Name, Quantity, Text

__all__ = [
    "DEFAULT_ARTIFACTS",
    "DEFAULT_FAILURES",
    "DEFAULT_STORAGE",
    "DEFAULT_TRIALS",
    "STORAGE_VARIABLE",
    "RunOptions",
    "file_name",
    "how_to_prune_under",
    "settings_table",
]

DEFAULT_STORAGE = "sqlite:///flatsearch.db"
# The variable of the environment that may hold the storage.
STORAGE_VARIABLE = "FLATSEARCH_STORAGE"
DEFAULT_ARTIFACTS = "flatsearch-artifacts"
# A study is filled up to this many finished trials where no number is given.
DEFAULT_TRIALS = 20
# This many failed trials in a row mean that something is wrong with more than a candidate.
DEFAULT_FAILURES = 3
# Samplers that learn nothing from a trial in Optuna's state PRUNED.
_SOFT_SAMPLERS = ("nsga2", "gp")
_WHERE = "where"
# Bytes of a file's name that a text may begin; systems of files take 255 in all.
_LONGEST = 100
_TIMES = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def file_name(text: str) -> str:
    """Return a text as it may begin the name of a file.

    Example:
        >>> file_name("cats & dogs/2024"), file_name("..")
        ('cats_dogs_2024', '_')
    """
    name = word(text).lstrip(".") or "_"
    if len(name.encode()) <= _LONGEST:
        return name
    tail = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name.encode()[:_LONGEST].decode(errors='ignore')}-{tail}"


def word(text: str) -> str:
    """Return a text as one word of a shell's line, without quotes.

    Example:
        >>> word("cats & dogs/2024")
        'cats_dogs_2024'
    """
    return re.sub(r"[^\w.]+", "_", text)


@dataclass(frozen=True, kw_only=True)
class RunOptions(SettingsRecord):
    """What a run is told beside its settings: its trials stay comparable whatever these are.

    Raises:
        SettingsError: If a value is out of range.
    """

    space: str = setting(
        REQUIRED,
        Text(),
        "the search space: a name (see 'flatsearch spaces'), pkg.mod:Class or ./file.py:Class",
        joined=True,
        group=SEARCH,
    )
    data: str = setting(
        "digits",
        Text(),
        "images: digits, a name of torchvision's (cifar10, ...), a folder of class folders,"
        " a table (labels.csv:path,label), an .npz file, x.npy,y.npy, or hf:NAME",
        joined=True,
        group=SEARCH,
    )
    sampler: str = setting(
        "tpe", Choice("sampler", SAMPLERS), "what proposes candidates", joined=True, group=SEARCH
    )
    pruner: str | None = setting(
        None,
        Choice("pruner", PRUNERS),
        "what ends trials early",
        unset=f"what the study was last run with, else {DEFAULT_PRUNER}, without artifacts"
        f" {PRUNER_FOR_GOOD}",
        more="promote parks every trial after one epoch, and at the end of the run (under a"
        " timeout: at once) goes on with the best eighth, with several objectives the best quarter,"
        " ranked by validation loss and number of parameters; with accuracy and flatness under a"
        " timeout with the best third, and of more than five epochs to the end with a third of"
        " those. flatness ends a trial"
        " that will hardly be among the best, as predicted from its first epochs, with weights and"
        " signs learnt from this study's own finished trials. median, asha and hyperband are"
        " Optuna's, and work with any number of objectives",
        joined=True,
        group=SEARCH,
    )
    prune_on: str | None = setting(
        None,
        Choice("metric to prune on", PRUNE_ON),
        "what median, asha and hyperband judge by",
        unset="the objective, or pareto_rank with several",
        joined=True,
        group=SEARCH,
        metavar="METRIC",
    )
    prune_mode: str = setting(
        "auto",
        Choice("prune mode", ("auto", "hard", "soft")),
        "what a pruned trial is",
        more="hard: Optuna's PRUNED; soft: complete, with a violated constraint, for samplers that"
        f" ignore pruned trials; auto: soft for {' and '.join(_SOFT_SAMPLERS)}",
        joined=True,
        group=SEARCH,
        metavar="MODE",
    )
    trials: int | None = setting(
        None,
        COUNT,
        "finish N more trials",
        unset=f"fill the study up to {DEFAULT_TRIALS} finished trials",
        group=BUDGET,
        metavar="N",
    )
    timeout: float | None = setting(
        None,
        Quantity(units=_TIMES, like="a time such as 30m (s, m, h), or seconds"),
        "start no new trial after this long; the running one ends at its next epoch, and does not"
        " count",
        group=BUDGET,
        metavar="TIME",
    )
    max_failures: int = setting(
        DEFAULT_FAILURES,
        COUNT,
        "failed trials in a row that end the run",
        joined=True,
        group=BUDGET,
        metavar="N",
    )
    study: str | None = setting(
        None, Name(), "the study's name", unset="SPACE-DATA", group=_WHERE, metavar="NAME"
    )
    storage: str = setting(
        DEFAULT_STORAGE,
        Text(),
        "the Optuna storage",
        more=f"The variable {STORAGE_VARIABLE} may hold it, which keeps a password out of lists of"
        " processes",
        group=_WHERE,
        metavar="URL",
        environment=STORAGE_VARIABLE,
    )
    artifacts: str = setting(
        DEFAULT_ARTIFACTS,
        Text(),
        "where trained models are saved, or 'none'",
        joined=True,
        group=_WHERE,
        metavar="DIR",
    )
    data_root: str = setting(
        "data",
        Text(),
        "where torchvision data sets are, or are downloaded to",
        joined=True,
        group=_WHERE,
        metavar="DIR",
    )
    data_memory: int | None = setting(
        None,
        COUNTED,
        "the most memory for images, e.g. 8G; those of larger data sets are kept in a file in"
        " DATA_ROOT/stored, and read batch by batch, with the same results",
        unset="half of the free memory",
        group=_WHERE,
        metavar="BYTES",
    )
    device: str = setting(
        "auto", Text(), "where to compute: auto, cpu, cuda or cuda:INDEX", group=_WHERE
    )
    workers: int = setting(
        1,
        COUNT,
        "processes on this machine, one trial each at a time; GPUs are used in turn",
        more="Other machines join with 'flatsearch worker'",
        group=_WHERE,
        metavar="W",
    )

    @property
    def study_name(self) -> str:
        """The study's name: SPACE-DATA, without folders and endings, where none is given.

        Example:
            >>> RunOptions(space="./my_space.py:MySpace", data="/home/me/photos/").study_name
            'MySpace-photos'
        """
        parts = (self.space.partition(",")[0].rpartition(":")[2], Path(self.data).stem or self.data)
        return self.study or "-".join(map(word, parts))

    @property
    def how_to_prune(self) -> Literal["hard", "soft"]:
        """The prune mode, without "auto"."""
        if self.prune_mode == "auto":
            return how_to_prune_under(self.sampler)
        return "soft" if self.prune_mode == "soft" else "hard"

    def for_workers(self) -> dict[str, Any]:
        """Return what is stored with the study, for workers that join, as JSON types."""
        joined = {name for name, known in self.settings().items() if known.joined}
        return {name: value for name, value in self.to_dict().items() if name in joined}


def how_to_prune_under(sampler: str) -> Literal["hard", "soft"]:
    """Return the prune mode by which a sampler, given by its name, learns from pruned trials."""
    return "soft" if sampler in _SOFT_SAMPLERS else "hard"


def settings_table() -> str:
    """Return every setting and option of a run as a table in Markdown.

    Example:
        >>> print(settings_table().splitlines()[2])
        | `space` | `--space` | text | | The search space: a name (see 'flatsearch spaces'), ...
    """
    rows = [("setting", "option", "accepts", "default", "what it is"), ("---",) * 5]
    for name, known in {**RunOptions.settings(), **RunSettings.settings()}.items():
        sentences = ". ".join(filter(None, [known.help[:1].upper() + known.help[1:], known.more]))
        absent = {None: "none", False: "false"}.get(known.default, "")
        default = known.default_text or absent
        option = f"`{known.option(name)}`"
        rows.append((f"`{name}`", option, str(known.accepts), default, f"{sentences}."))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
