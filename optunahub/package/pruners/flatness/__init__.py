"""Pruning for studies with any number of objectives, on any reported metric."""

from flatsearch import (
    AnyPruner,
    FlatnessPruner,
    MetricPruner,
    ParetoPruner,
    mark_pruned,
    report,
    should_prune,
)

__all__ = [
    "AnyPruner",
    "FlatnessPruner",
    "MetricPruner",
    "ParetoPruner",
    "mark_pruned",
    "report",
    "should_prune",
]
