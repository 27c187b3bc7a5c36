"""flatsearch: architecture search with Optuna and an exact relative-flatness measure.

Names are imported when they are first used, so that `import flatsearch` costs nothing and the
command line can answer `--help` without loading PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatsearch.analysis.comparison import Comparison, compare
    from flatsearch.analysis.frames import epochs_frame, study_frame
    from flatsearch.analysis.summary import StudySummary, summarise
    from flatsearch.data import ImageData, load_data
    from flatsearch.errors import (
        DataError,
        DivergedError,
        FlatsearchError,
        NonFiniteError,
        SettingsError,
        SpaceError,
        StorageError,
        UnsupportedModelError,
        UsageError,
    )
    from flatsearch.export.card import ModelCard
    from flatsearch.export.checkpoint import load_model, save_model
    from flatsearch.export.classifier import Classifier, load
    from flatsearch.export.formats import export_model
    from flatsearch.flatness import (
        FlatnessMeter,
        FlatnessResult,
        LayerFlatness,
        relative_flatness,
    )
    from flatsearch.networks.cost import count_flops, count_parameters
    from flatsearch.networks.gap_cnn import GapCnn
    from flatsearch.pruners.combined import AnyPruner
    from flatsearch.pruners.flatness import FlatnessPruner
    from flatsearch.pruners.halving import HalvingPromoter
    from flatsearch.pruners.metric import MetricPruner
    from flatsearch.pruners.one_rung import OneRungPromoter
    from flatsearch.pruners.pareto import ParetoPruner
    from flatsearch.pruners.reporting import mark_pruned, report, should_prune
    from flatsearch.record.constraints import constraint_values
    from flatsearch.retrain.estimator import FlatSearchClassifier
    from flatsearch.search.objective import FlatnessObjective
    from flatsearch.search.parking import finish
    from flatsearch.search.promotion_sampler import PromotionSampler
    from flatsearch.search.resumable import Resumable, ResumableObjective
    from flatsearch.settings import RunSettings
    from flatsearch.spaces.registry import load_space, space_names
    from flatsearch.spaces.space import Architecture, SearchSpace

__version__ = "0.1.0"

__all__ = [
    "AnyPruner",
    "Architecture",
    "Classifier",
    "Comparison",
    "DataError",
    "DivergedError",
    "FlatSearchClassifier",
    "FlatnessMeter",
    "FlatnessObjective",
    "FlatnessPruner",
    "FlatnessResult",
    "FlatsearchError",
    "GapCnn",
    "HalvingPromoter",
    "ImageData",
    "LayerFlatness",
    "MetricPruner",
    "ModelCard",
    "NonFiniteError",
    "OneRungPromoter",
    "ParetoPruner",
    "PromotionSampler",
    "Resumable",
    "ResumableObjective",
    "RunSettings",
    "SearchSpace",
    "SettingsError",
    "SpaceError",
    "StorageError",
    "StudySummary",
    "UnsupportedModelError",
    "UsageError",
    "compare",
    "constraint_values",
    "count_flops",
    "count_parameters",
    "epochs_frame",
    "export_model",
    "finish",
    "load",
    "load_data",
    "load_model",
    "load_space",
    "mark_pruned",
    "relative_flatness",
    "report",
    "save_model",
    "should_prune",
    "space_names",
    "study_frame",
    "summarise",
]

_ERRORS = {name for name in __all__ if name.endswith("Error")}
_HOME = {
    "analysis.comparison": {"Comparison", "compare"},
    "analysis.frames": {"epochs_frame", "study_frame"},
    "analysis.summary": {"StudySummary", "summarise"},
    "data": {"ImageData", "load_data"},
    "errors": _ERRORS,
    "export.card": {"ModelCard"},
    "export.checkpoint": {"load_model", "save_model"},
    "export.classifier": {"Classifier", "load"},
    "export.formats": {"export_model"},
    "flatness": {"FlatnessMeter", "FlatnessResult", "LayerFlatness", "relative_flatness"},
    "networks.cost": {"count_flops", "count_parameters"},
    "networks.gap_cnn": {"GapCnn"},
    "pruners.combined": {"AnyPruner"},
    "pruners.flatness": {"FlatnessPruner"},
    "pruners.halving": {"HalvingPromoter"},
    "pruners.metric": {"MetricPruner"},
    "pruners.one_rung": {"OneRungPromoter"},
    "pruners.pareto": {"ParetoPruner"},
    "pruners.reporting": {"mark_pruned", "report", "should_prune"},
    "record.constraints": {"constraint_values"},
    "retrain.estimator": {"FlatSearchClassifier"},
    "search.objective": {"FlatnessObjective"},
    "search.parking": {"finish"},
    "search.promotion_sampler": {"PromotionSampler"},
    "search.resumable": {"Resumable", "ResumableObjective"},
    "settings": {"RunSettings"},
    "spaces.registry": {"load_space", "space_names"},
    "spaces.space": {"Architecture", "SearchSpace"},
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'flatsearch' has no attribute {name!r}")
    value = getattr(import_module(f"flatsearch.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
