"""Views that are changed in place: the numbers are those of the same network without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatsearch
from flatsearch import UnsupportedModelError
from tests.flatness import oracle
from tests.flatness.nets import Apply, GapByMean, images

if TYPE_CHECKING:
    from collections.abc import Callable

    Change = Callable[[Tensor], Tensor]

SHAPE = (4, 6, 6)


def changed(view: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what squares a view of its operand, in place: it is curved and has no kink."""

    def change(x: Tensor) -> Tensor:
        view(x).square_()
        return x

    return change


def within(*place: object) -> Callable[[Tensor], Tensor]:
    """Return what squares some entries of its operand, with no change in place."""
    inside = torch.zeros(SHAPE, dtype=torch.bool)
    inside[place] = True
    return lambda x: torch.where(inside, x.square(), x)


def filled(x: Tensor) -> Tensor:
    result = x.new_zeros(len(x), 8, 6, 6)
    result[:, :4].copy_(x)
    result[:, 4:] = x.tanh()
    return result


# What is done in place, and what does the same.
CHANGES: dict[str, tuple[Change, Change]] = {
    "channels last": (changed(lambda x: x.permute(0, 2, 3, 1)), torch.square),
    "transposed": (changed(lambda x: x.transpose(1, 3)), torch.square),
    "positions in a row": (changed(lambda x: x.flatten(2).mT), torch.square),
    "groups": (changed(lambda x: x.unflatten(1, (2, 2))[:, 0]), within(slice(2))),
    "some channels": (changed(lambda x: x.narrow(1, 1, 2)), within(slice(1, 3))),
    "every second row": (
        changed(lambda x: x[:, :, ::2]),
        within(..., slice(None, None, 2), slice(None)),
    ),
    "a border": (changed(lambda x: x[..., 1:-1]), within(..., slice(1, -1))),
    "one channel": (changed(lambda x: x.select(1, 2)), within(2)),
    "windows": (changed(lambda x: x.unfold(2, 2, 2)), torch.square),
    "strides": (changed(lambda x: x.as_strided(x.shape, x.stride())), torch.square),
    "the view goes on": (
        lambda x: x.permute(0, 2, 3, 1).square_().permute(0, 3, 1, 2),
        torch.square,
    ),
    "reshaped in place": (
        lambda x: x.unsqueeze_(1).transpose_(3, 4).squeeze_(1).square_(),
        lambda x: x.mT.square(),
    ),
    "a buffer is filled": (filled, lambda x: torch.cat([x, x.tanh()], 1)),
    "some are replaced": (
        lambda x: x.index_copy_(1, torch.tensor([0]), x[:, 1:2].exp()),
        lambda x: torch.cat([x[:, 1:2].exp(), x[:, 1:]], 1),
    ),
}


def network(between: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return one with something in front of its last convolution, and something behind."""
    torch.manual_seed(0)
    channels = len(between(torch.zeros(1, *SHAPE))[0])
    middle, last = nn.Conv2d(2, 4, 3), nn.Conv2d(channels, 4, 3, padding=1)
    return nn.Sequential(
        middle, Apply(between), last, Apply(behind), GapByMean(), nn.LazyLinear(3)
    ).double()


@pytest.mark.parametrize("name", CHANGES)
def test_changed_in_place(name: str) -> None:
    in_place, plain = CHANGES[name]
    model, same = network(in_place, in_place), network(plain, plain)
    x, y = images(3)
    x = x.double()
    model(x)
    same(x)
    same.load_state_dict(model.state_dict())
    result = flatsearch.relative_flatness(model, (x, y), layers="all")
    assert (result.kind, list(result.layers)) == ("gauss-newton", ["0", "2"])
    for layer, measured in result.layers.items():
        trace, kappa = oracle.by_gauss_newton(same, x, layer)
        assert measured.hessian_trace == pytest.approx(trace, rel=1e-9)
        assert measured.relative_flatness == pytest.approx(kappa, rel=1e-9)


def flat(x: Tensor) -> Tensor:
    return F.relu_(x.permute(0, 2, 3, 1)).flatten(1)


def one(x: Tensor) -> Tensor:
    return F.relu_(x.flatten(2).mT)[:, 0]


def leaf(x: Tensor) -> Tensor:
    nn.Parameter(torch.ones(3)).mul_(2)
    return x


# Not what is changed in place is in the way.
REFUSED: dict[str, tuple[Change, str]] = {
    "flattened": (flat, "positions are flattened into a dense layer"),
    "one position": (one, "not followed by global pooling"),
    "without gradients": (torch.no_grad()(changed(lambda x: x[:, 0])), "derivatives are not those"),
    "one of several views": (
        changed(lambda x: x.chunk(2, 1)[0]),
        "the model cannot be recorded by autograd: Output 0 of Split",
    ),
    "a leaf": (leaf, "the model cannot be recorded by autograd: a leaf Variable"),
    "samples": (changed(lambda x: x[0]), "mixes samples"),
    "other samples": (
        lambda x: x.permute(0, 2, 3, 1).add_(x.mean()).permute(0, 3, 1, 2),
        "mixes samples",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_reason_is_true(name: str) -> None:
    change, message = REFUSED[name]
    pool = nn.Identity() if name in {"flattened", "one position"} else GapByMean()
    model = nn.Sequential(nn.Conv2d(2, 4, 3), Apply(change), pool, nn.LazyLinear(3))
    with torch.no_grad():
        model(images(3)[0])
    with pytest.raises(UnsupportedModelError) as caught:
        flatsearch.relative_flatness(model, images(3), layers="all")
    assert message in str(caught.value)
