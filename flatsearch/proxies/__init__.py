"""Signals that rank networks before or early in training, to compare flatness with.

Every signal is a `Proxy`: a function of `Evidence`, with what it needs and where it comes from.
They are written from their papers. Nothing in here knows of Optuna or of search spaces.
"""

from flatsearch.proxies.base import PROXIES, Evidence, Needs, Proxy, compute

__all__ = ["PROXIES", "Evidence", "Needs", "Proxy", "compute"]
