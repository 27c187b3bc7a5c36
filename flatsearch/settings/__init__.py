"""Settings and options of a run: each is written once, and everything else is made from it.

`settings.run` has what makes the trials of a study comparable, `settings.options` where and for how
long a run searches, `settings.fields` and `settings.values` what both are made of.
"""

from flatsearch.settings.fields import REQUIRED, Setting, SettingsRecord, same, setting
from flatsearch.settings.options import (
    DEFAULT_ARTIFACTS,
    DEFAULT_FAILURES,
    DEFAULT_PRUNER,
    DEFAULT_STORAGE,
    DEFAULT_TRIALS,
    PRUNE_ON,
    PRUNERS,
    SAMPLERS,
    RunOptions,
    settings_table,
)
from flatsearch.settings.run import COSTS, OBJECTIVES, Direction, RunSettings

__all__ = [
    "COSTS",
    "DEFAULT_ARTIFACTS",
    "DEFAULT_FAILURES",
    "DEFAULT_PRUNER",
    "DEFAULT_STORAGE",
    "DEFAULT_TRIALS",
    "OBJECTIVES",
    "PRUNERS",
    "PRUNE_ON",
    "REQUIRED",
    "SAMPLERS",
    "Direction",
    "RunOptions",
    "RunSettings",
    "Setting",
    "SettingsRecord",
    "same",
    "setting",
    "settings_table",
]
