"""Settings and options of a run: each is written once, and everything else is made from it.

`settings.run` has what makes the trials of a study comparable, `settings.objectives` what can be
optimised and limited, `settings.options` where and for how long a run searches, `settings.choices`
the names of samplers and pruners, `settings.fields` and `settings.values` what both are made of.
"""

from flatsearch.settings.choices import (
    DEFAULT_PRUNER,
    PRUNE_ON,
    PRUNER_FOR_GOOD,
    PRUNERS,
    SAMPLERS,
)
from flatsearch.settings.fields import REQUIRED, Setting, SettingsRecord, same, setting
from flatsearch.settings.objectives import COSTS, OBJECTIVES, Direction
from flatsearch.settings.options import (
    DEFAULT_ARTIFACTS,
    DEFAULT_FAILURES,
    DEFAULT_STORAGE,
    DEFAULT_TRIALS,
    STORAGE_VARIABLE,
    RunOptions,
    file_name,
    how_to_prune_under,
    settings_table,
)
from flatsearch.settings.run import RunSettings

__all__ = [
    "COSTS",
    "DEFAULT_ARTIFACTS",
    "DEFAULT_FAILURES",
    "DEFAULT_PRUNER",
    "DEFAULT_STORAGE",
    "DEFAULT_TRIALS",
    "OBJECTIVES",
    "PRUNERS",
    "PRUNER_FOR_GOOD",
    "PRUNE_ON",
    "REQUIRED",
    "SAMPLERS",
    "STORAGE_VARIABLE",
    "Direction",
    "RunOptions",
    "RunSettings",
    "Setting",
    "SettingsRecord",
    "file_name",
    "how_to_prune_under",
    "same",
    "setting",
    "settings_table",
]
