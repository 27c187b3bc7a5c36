"""Exact relative flatness of convolution kernels.

Read in this order: `measure` (the public function), `meter` (the same, again and again), `result`
(the three numbers), `contraction` (the derivation and both ways through it), `softmax` (the square
root of the loss's Hessian in the logits), `tail` and `gauss_newton` (the derivatives it needs),
`proof` (what the recorded operations prove), `accumulator` (which formula therefore applies),
`layers` (which layers are measured), `convolutions` (what a convolution is, and that its kernel is
used as assumed), `patches` (those that are written as something else), `replica` (the copy of the
model that is run), `state` and `program` (whether it still is what was proved) and `truth` (whether
autograd is right). Nothing in here knows of Optuna or of search spaces.
"""

from flatsearch.flatness.measure import relative_flatness
from flatsearch.flatness.meter import FlatnessMeter
from flatsearch.flatness.result import FlatnessResult, LayerFlatness

__all__ = ["FlatnessMeter", "FlatnessResult", "LayerFlatness", "relative_flatness"]
