"""Exact relative flatness of convolution kernels.

Read in this order: ``measure`` (the public function and its result), ``locate`` (which
layers are measured and the proof that the derivation applies), ``tail`` (derivatives of
the pooled features with respect to the convolution's output) and ``contraction`` (the
closed form itself). Nothing in here knows of Optuna or of search spaces.
"""

from flatsearch.flatness.measure import FlatnessResult, LayerFlatness, relative_flatness

__all__ = ["FlatnessResult", "LayerFlatness", "relative_flatness"]
