"""`relative_flatness`: the public function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsearch.flatness.meter import FlatnessMeter, Normalize
from flatsearch.flatness.result import FlatnessResult, LayerFlatness

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from flatsearch.flatness.batches import Data

__all__ = ["FlatnessResult", "LayerFlatness", "relative_flatness"]


def relative_flatness(
    model: nn.Module,
    data: Data,
    layers: str | Sequence[str] = "last",
    normalize: Normalize | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    classes: int | None = None,
    skip_unsupported: bool = False,
) -> FlatnessResult:
    """Compute the exact relative flatness of a classifier's convolution kernels.

    For a kernel W (C filters w_c of fan-in d), with H the Hessian of the mean cross-entropy in W,

        kappa = sum_cc' <w_c, w_c'> Tr(H_cc')

    exactly, without random probes, and beside it the trace and `noise_loss`: by how much the loss
    is expected to rise when every filter is disturbed by noise of a relative size. Where the
    features after global pooling treat the convolution's channels separately (batch norm, residual
    sums, activations, pooling) it is one contraction beside the forward pass, second derivatives of
    smooth activations included. Any other convolution takes K - 1 backward passes, which serve all
    layers together, and gives the Hessian where the rest of the network is piecewise linear, the
    Gauss-Newton matrix elsewhere. Which of it holds is proved from the recorded operations of every
    batch.

    Relative flatness: Petzka et al., "Relative Flatness and Generalization", NeurIPS 2021,
    arXiv 2001.00939, definition 3; its exact closed form for the kernels of convolutional networks:
    Taleghani, Mohammadi and Marchetti, arXiv 2603.09016. The forms used here are derived in
    `contraction`, `noise_loss` in `result`.

    Args:
        model: Any convolutional network that maps inputs to logits (N, K) with global pooling
            before the classifier. Measured in eval mode; its mode, weights and gradients are left
            alone. The loss is the plain mean cross-entropy, whatever it was trained with.
        data: A pair (inputs, integer targets) of tensors, or an iterable of such batches.
            Moved to the model's device batch by batch.
        layers: "last" for the last convolution executed, "main" for the last one of the longest
            path, gates and shortcuts aside, see `main_path`; "all" for every one, a name, or
            several names, of convolutions or of the linear classifier; "head" for the latter.
        normalize: None for the measure as defined; "input" for kernels on inputs of unit standard
            deviation per channel, which makes it invariant to a rescaling of the layer before,
            for one more forward pass.
        dtype: torch.float32 or torch.float64; the model's own where None, and float32 for
            half-precision models. float32 is computed without TF32, and layers whose numbers lose
            more than three digits to cancellation are measured again in float64, if `data` can be
            read again; see `rounding`.
        batch_size: The most samples at a time; where None, as many as suit the device and fit into
            the free memory, whatever the size of the batches in `data`. The result does not
            depend on it.
        classes: The most backward passes per batch. Convolutions that take one per class are
            estimated from that many where there are more: without bias, and with standard errors
            that contain it; see `FlatnessResult.classes`. None for exact values.
        skip_unsupported: Whether layers that the derivation does not cover are left out and listed
            in `result.skipped`, where others are measured.

    Returns:
        The measure with its standard error, the loss and the accuracy.

    Raises:
        UnsupportedModelError: If the derivation does not cover the model; names the layer.
        NonFiniteError: If the logits are NaN or infinite.
        ValueError: If the data are empty or malformed, or an argument is out of range.
        TypeError: If the model is no module, or the inputs are no dense floating-point tensors.

    Example:
        Two classes, one 1x1 filter w = 2 on one pixel of value 1, classifier v = (1, -1):
        the features are g = 2, p = sigmoid(4), H = p (1 - p) (v_1 - v_2)^2 x^2 and
        kappa = w^2 H = 16 p (1 - p).

        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(1, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(2), net[2].bias.zero_()
        ...     _ = net[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> r = relative_flatness(net, (torch.ones(1, 1, 1, 1), torch.tensor([0])))
        >>> p = torch.sigmoid(torch.tensor(4.0))
        >>> abs(r.relative_flatness - float(16 * p * (1 - p))) < 1e-6
        True

        One filter of one weight: nu is kappa, and noise of 50% costs 0.5^2 / 2 of it.

        >>> abs(r.noise_loss(sigma=0.5) - float(2 * p * (1 - p))) < 1e-6
        True
    """
    meter = FlatnessMeter(
        model,
        layers,
        normalize,
        dtype,
        batch_size,
        classes,
        skip_unsupported=skip_unsupported,
    )
    return meter.accumulate(data, keep=False).result(normalize)
