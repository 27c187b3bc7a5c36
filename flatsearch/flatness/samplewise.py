"""Whether the logits of a sample depend on that sample alone, from the images on.

`proof` sees the operations behind the measured convolutions. What comes in front of them is not
recorded, so it is tried: a sample's logits have to be the same in another batch. That holds for the
weights and the number of images that it was tried with. Where the same graph is recorded from the
images on, once, it proves it for any weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from flatsearch.errors import UnsupportedModelError
from flatsearch.flatness.forward import call, disagree
from flatsearch.flatness.proof import keep_samples
from flatsearch.flatness.watch import Calls, is_differentiable

if TYPE_CHECKING:
    from flatsearch.flatness.forward import Network
    from flatsearch.flatness.watch import Arguments, Named

__all__ = [
    "CHANGING",
    "MIXED",
    "changes",
    "contrasting",
    "is_samplewise",
    "refuse_mixed_samples",
    "two_alone",
]

MIXED = (
    "the model mixes samples: the logits of one depend on others of its batch, or are computed in"
    " the place of another"
)
CHANGING = "the model gives different logits for the same images"
_PROBED = 64
# They say something of a tensor that is no number in it.
_METADATA = {
    "__get__",
    "__len__",
    "dim",
    "is_complex",
    "is_contiguous",
    "is_floating_point",
    "numel",
    "size",
    "stride",
}


class _Cuts(Calls):
    """Sees whether anything is computed from the images that autograd does not follow."""

    cut = False

    def call(self, function: Any, args: Arguments, kwargs: Named) -> Any:
        """Return what the function returns."""
        result = super().call(function, args, kwargs)
        if getattr(function, "__name__", "") not in _METADATA and _depends((args, kwargs)):
            self.cut = self.cut or not _depends(result)
        elif function == Tensor.data.__get__ and _depends(args):  # type: ignore[attr-defined]
            self.cut = True
        return result


def _depends(value: object) -> bool:
    return any(map(is_differentiable, tree_leaves(value)))


def contrasting(x: Tensor) -> Tensor:
    """Return the two with most contrast of the first images: blank ones would prove nothing."""
    return x[_places(x)]


def _places(x: Tensor) -> Tensor:
    return x[:_PROBED].flatten(1).std(1, correction=0).topk(min(2, len(x))).indices


def two_alone(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of two images of a batch, and their logits in one of their own."""
    places = _places(x)
    with network.recording(), torch.no_grad():
        return places, call(network.model, x[places])


def is_samplewise(network: Network, x: Tensor) -> bool:
    """Return whether the recorded operations prove that samples do not mix, for any weights.

    Args:
        network: What is run.
        x: Some images.

    Returns:
        False where it is not proved.
    """
    images = contrasting(x).detach()
    if len(images) < 2:
        return False
    return _proves(network, images) and _proves(network, images.detach()[[1, 0, 0]])


def _proves(network: Network, images: Tensor) -> bool:
    images = images.requires_grad_()
    with network.recording(), _Cuts() as seen:
        logits = call(network.model, images)
    return not seen.cut and keep_samples(logits, get_gradient_edge(images).node)


def changes(network: Network, x: Tensor, passes: int) -> bool:
    """Return whether the logits of some images are others in another pass."""
    x = x[:_PROBED]
    with network.recording(), torch.no_grad():
        logits = call(network.model, x)
        return any(bool(disagree(call(network.model, x), logits)) for _ in range(passes))


def refuse_mixed_samples(network: Network, x: Tensor, logits: Tensor | None = None) -> None:
    """Check that a sample's logits are the same in another batch, with the others elsewhere.

    Args:
        network: What is run.
        x: Some images; those with contrast where the logits are not given.
        logits: Their logits.

    Raises:
        UnsupportedModelError: If they are not.
    """
    with network.recording(), torch.no_grad():
        if logits is None:
            x = contrasting(x)
            logits = call(network.model, x)
        places = [len(x) - 1, 0, 0]
        others = call(network.model, x[places])
        if bool(disagree(others, logits[places])):
            raise UnsupportedModelError(CHANGING if changes(network, x, passes=8) else MIXED)
