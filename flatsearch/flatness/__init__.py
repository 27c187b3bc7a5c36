"""Exact relative flatness of convolution kernels.

Read in this order: `measure` (the public function and its result), `locate` (which layers are
measured, and the proof that their kernels are used as assumed), `tail` and `graph` (derivatives
of the pooled features with respect to the convolution's output, and the proof that channels are
treated separately) and `contraction` (the closed form itself). Nothing in here knows of Optuna
or of search spaces.
"""

from flatsearch.flatness.measure import FlatnessResult, LayerFlatness, relative_flatness

__all__ = ["FlatnessResult", "LayerFlatness", "relative_flatness"]
