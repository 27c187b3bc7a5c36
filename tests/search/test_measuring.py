"""What is measured when: within its share of the training, and as the schedule says."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flatsearch import RunSettings
from flatsearch.search.measuring import LEAST, Schedule

if TYPE_CHECKING:
    from flatsearch import ImageData
    from flatsearch.data.splits import Split


def resized(data: ImageData, images: int, classes: int = 10) -> ImageData:
    """Return data of another size, for what only counts them."""

    def some(split: Split, count: int) -> Split:
        one = split.targets[:1].expand(count)
        return dataclasses.replace(
            split, images=split.images[:1].expand(count, 1, 8, 8), targets=one
        )

    names = tuple(map(str, range(classes)))
    train, validation = some(data.train, images), some(data.validation, images // 4)
    return dataclasses.replace(
        data,
        train=train,
        validation=validation,
        probe=some(data.probe, 256),
        class_names=names,
    )


@pytest.mark.parametrize("images", [1_000, 4_000, 40_000])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("settings", [{}, {"epochs": 1}, {"epochs": 40}, {"layers": "last"}])
def test_it_costs_no_more_than_its_share(
    digits: ImageData, images: int, classes: int, settings: dict[str, Any]
) -> None:
    run = RunSettings(**settings)
    schedule = Schedule.of(run, resized(digits, images, classes))
    within = 0 < schedule.share <= run.flatness_share
    # The least that pruners need may cost more, where there are few images.
    assert within or (schedule.images, schedule.epochs_of_all, images < 40_000) == (32, (), True)
    assert 32 <= schedule.images <= 256
    assert schedule.images_of_all == 0 or LEAST <= schedule.images_of_all <= 256
    assert all(map(run.measures_all, schedule.epochs_of_all))
    larger = Schedule.of(dataclasses.replace(run, flatness_share=10.0), resized(digits, images))
    assert larger.images == 256
    assert larger.epochs_of_all == tuple(filter(run.measures_all, range(1, run.epochs + 1)))


def test_the_first_epoch_comes_first_and_the_last_one_second(digits: ImageData) -> None:
    data = resized(digits, 1_000)
    chosen = [
        Schedule.of(RunSettings(epochs=12, flatness_share=share), data).epochs_of_all
        for share in (0.01, 0.1, 0.12, 0.135, 0.2)
    ]
    assert chosen[0] == ()
    assert [c[0] for c in chosen[1:]] == [1] * 4
    assert chosen == sorted(chosen, key=len)
    assert (1, 12) in chosen
    assert chosen[-1] == (1, 2, 3, 12)


def test_an_objective_is_measured_whatever_it_costs(digits: ImageData) -> None:
    run = RunSettings(objectives=("accuracy", "noise_loss_all"), epochs=3, flatness_share=0.001)
    schedule = Schedule.of(run, resized(digits, 1_000))
    assert schedule.epochs_of_all == (1, 2, 3)
    assert schedule.images_of_all == 128
    assert schedule.share > run.flatness_share


def test_few_images_are_all_measured(digits: ImageData) -> None:
    assert Schedule.of(RunSettings(epochs=1), digits).images == len(digits.probe)


def test_it_is_stored(digits: ImageData) -> None:
    stored = Schedule.of(RunSettings(), resized(digits, 4_000)).to_dict()
    assert stored["epochs_of_all"] == [1, 2, 8]
    assert set(stored) == {"images", "images_of_all", "epochs_of_all", "share"}
    assert torch.tensor(stored["share"]) <= 0.05
