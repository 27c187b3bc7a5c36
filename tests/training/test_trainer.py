"""Brief training: what it yields, what it leaves behind, when it stops."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsearch import DivergedError, GapCnn, RunSettings
from flatsearch.data.splits import ImageData, Split
from flatsearch.training.evaluation import evaluate, score, validate
from flatsearch.training.trainer import EpochResult, Trainer, class_weights, train

if TYPE_CHECKING:
    from collections.abc import Iterator


def settings(**changes: Any) -> RunSettings:
    return RunSettings(**{"epochs": 2, "augment": "none", "batch_size": 32, **changes})


def data(n: int = 96, *, scale: float = 1.0) -> ImageData:
    """Two classes: the bright half of an image is above or below."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 2
    x[y == 0, :, :4] += 1.0
    x[y == 1, :, 4:] += 1.0
    split = Split(x * scale, y, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    return ImageData("bars", ("above", "below"), split, split, split, split, may_flip=True)


def net(classes: int = 2, seed: int = 0) -> GapCnn:
    torch.manual_seed(seed)
    features = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    )
    return GapCnn(features, 16, classes)


class Recorder(nn.Module):
    """Keeps the images it was trained on, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.batches: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches.append(x.clone())
        return self.net(x)


def numbers(results: Iterator[EpochResult]) -> list[tuple[float, ...]]:
    return [dataclasses.astuple(result)[:-1] for result in results]  # all but the time


# --- evaluate ---


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_evaluate_is_the_mean_over_the_split(batch_size: int) -> None:
    model, split = net().train(), data(20).train
    loss, accuracy = evaluate(model, split, batch_size)
    assert not model.training
    with torch.no_grad():
        logits = model(split.images)
    assert loss == pytest.approx(float(F.cross_entropy(logits, split.targets)), rel=1e-5)
    assert accuracy == float((logits.argmax(1) == split.targets).float().mean())


def test_the_balanced_accuracy_counts_every_class_that_there_is_as_much() -> None:
    model, split = net(classes=4).eval(), data(20).train
    for targets in (split.targets, (torch.arange(20) > 15).long()):
        uneven = dataclasses.replace(split, targets=targets)  # of four classes two are there
        found = validate(model, uneven, 7).balanced_accuracy
        assert found == pytest.approx(score(model, uneven).balanced_accuracy, abs=1e-12)
        right = (model(split.images).argmax(1) == targets).double()
        means = [float(right[targets == k].mean()) for k in (0, 1)]
        assert found == pytest.approx(sum(means) / 2)


def test_evaluate_does_not_change_the_model() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    assert evaluate(model, data(20).train) == evaluate(model, data(20).train)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_evaluate_a_perfect_and_a_blind_model() -> None:
    split = data(20).train

    class Fixed(nn.Module):
        def __init__(self, right: float) -> None:
            super().__init__()
            self.right = right

        def forward(self, x: Tensor) -> Tensor:
            return self.right * F.one_hot(split.targets, 2).float()

    assert evaluate(Fixed(1e3), split) == (0.0, 1.0)
    assert evaluate(Fixed(-1e3), split) == (1e3, 0.0)
    assert evaluate(Fixed(0.0), split) == pytest.approx((math.log(2), 0.5))


# --- train ---


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_one_result_per_epoch(epochs: int) -> None:
    results = list(train(net(), data(), settings(epochs=epochs, batch_size=16), seed=0))
    assert [result.epoch for result in results] == list(range(1, epochs + 1))
    for result in results:
        assert all(math.isfinite(value) for value in dataclasses.astuple(result))
        assert 0 <= result.accuracy <= 1
        assert 0 <= result.train_accuracy <= 1
        assert result.seconds > 0


def test_nothing_is_trained_before_it_is_asked_for() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    epochs = train(model, data(), settings(), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    next(epochs)
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])
    kept = copy.deepcopy(model.state_dict())
    epochs.close()  # as a pruned trial does
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_after_each_epoch_the_model_is_in_eval_mode_and_as_reported() -> None:
    model, digits = net(), data()
    for result in train(model, digits, settings(epochs=3), seed=0):
        assert not any(module.training for module in model.modules())
        assert evaluate(model, digits.validation) == (result.loss, result.accuracy)


def test_the_users_mode_between_epochs_does_not_matter() -> None:
    # Whoever measures in between may leave either mode behind.
    plain = numbers(train(net(), data(), settings(epochs=3), seed=0))
    model, mixed = net(), []
    for result in train(model, data(), settings(epochs=3), seed=0):
        mixed.append(dataclasses.astuple(result)[:-1])
        model.train(result.epoch % 2 == 0)
    assert mixed == plain


@pytest.mark.parametrize("augment", ["none", "crop+flip"])
def test_same_seed_same_numbers(augment: str) -> None:
    chosen = settings(augment=augment)
    first, second = net(), net()
    results = numbers(train(first, data(), chosen, seed=3))
    torch.manual_seed(99)  # the global generator has no part in it
    assert numbers(train(second, data(), chosen, seed=3)) == results
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert numbers(train(net(), data(), chosen, seed=4)) != results


def test_the_global_generator_is_left_alone() -> None:
    model, state = net(), torch.get_rng_state()
    list(train(model, data(), settings(augment="crop+flip"), seed=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_image_once_per_epoch_in_a_new_order() -> None:
    model, bars = Recorder(), data(40)
    orders = []
    for _ in train(model, bars, settings(batch_size=16), seed=0):
        assert [len(batch) for batch in model.batches] == [16, 16, 8]
        x = torch.cat(model.batches)
        orders.append([
            int((bars.train.images == image).flatten(1).all(1).nonzero()) for image in x
        ])
        assert sorted(orders[-1]) == list(range(40))
        model.batches.clear()
    assert orders[0] != orders[1]
    assert list(range(40)) not in orders


def test_augmentation_changes_the_training_images_only() -> None:
    model, bars = Recorder(), data(40)
    for result in train(model, bars, settings(augment="crop"), seed=0):
        x = torch.cat(model.batches)
        known = (x[:, None] == bars.train.images[None]).flatten(2).all(2).any(1)
        assert 0 < int(known.sum()) < 20  # one crop in nine is the image itself
        assert evaluate(model, bars.validation) == (result.loss, result.accuracy)
        model.batches.clear()


def test_a_last_batch_of_one_image_is_skipped() -> None:
    # On maps of one pixel, batch norm refuses to train on a single image.
    class OnePixel(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.net = GapCnn(nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4)), 4, 2)

    model = OnePixel()
    assert len(list(train(model, data(33), settings(batch_size=16), seed=0))) == 2
    assert [len(batch) for batch in model.batches] == [16, 16] * 2


def test_a_last_batch_of_two_images_is_kept() -> None:
    model = Recorder()
    list(train(model, data(34), settings(batch_size=16, epochs=2), seed=0))
    assert [len(batch) for batch in model.batches] == [16, 16, 2] * 2


def test_batches_larger_than_the_data() -> None:
    model = Recorder()
    list(train(model, data(20), settings(batch_size=1000, epochs=2), seed=0))
    assert [len(batch) for batch in model.batches] == [20, 20]


def test_rare_classes_count_as_much_as_frequent_ones() -> None:
    images = data()
    targets = (torch.arange(96) % 6 == 0).long()  # 80 and 16
    train = dataclasses.replace(images.train, targets=targets)
    images = dataclasses.replace(images, train=train)
    assert class_weights(images).tolist() == pytest.approx([96 / 160, 96 / 32])
    model = net()
    x, y = images.train.tensors()
    balanced = settings(
        class_weights="balanced", lr=1e-9, batch_size=96, augment="none", precision="float32"
    )
    trainer = Trainer(copy.deepcopy(model), images, balanced, seed=0)
    losses = F.cross_entropy(model.train()(x), y, reduction="none")
    each = [float(losses[y == k].mean().detach()) for k in (0, 1)]
    assert trainer.epoch()[0] == pytest.approx(sum(each) / 2, rel=1e-4)


def test_digits_are_learned(digits: ImageData) -> None:
    few = list(train(net(10), digits, settings(epochs=6, augment="auto"), seed=0))
    assert few[-1].accuracy > 0.5  # chance is 0.1
    assert few[-1].loss < few[0].loss
    assert few[-1].train_accuracy > 0.4
    assert few[-1].train_loss < math.log(10)


def test_only_training_images_teach() -> None:
    bars = data()
    inverted = dataclasses.replace(
        bars.validation, targets=1 - bars.validation.targets, images=bars.validation.images
    )
    result = list(train(net(), dataclasses.replace(bars, validation=inverted), settings(), seed=0))
    plain = list(train(net(), bars, settings(), seed=0))
    assert [r.train_loss for r in result] == [r.train_loss for r in plain]
    assert result[-1].accuracy == pytest.approx(1 - plain[-1].accuracy)


def test_the_settings_matter() -> None:
    plain = numbers(train(net(), data(), settings(), seed=0))
    for change in ({"lr": 0.01}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"batch_size": 16}):
        assert numbers(train(net(), data(), settings(**change), seed=0)) != plain, change


@pytest.mark.parametrize("n", [32, 33])
def test_the_learning_rate_rises_and_falls_once(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def recorded(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    list(train(net(), data(n), settings(lr=0.2, batch_size=4), seed=0))
    assert len(rates) == 16
    peak = rates.index(max(rates))
    assert 0 < peak < 8
    assert rates[peak] <= 0.2
    assert rates[peak] == pytest.approx(0.2, rel=0.05)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.02 * 0.2


def test_an_absurd_learning_rate_diverges() -> None:
    with pytest.raises(DivergedError, match=r"training diverged in epoch \d: training loss"):
        list(train(net(), data(), settings(lr=1e30, epochs=5), seed=0))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_nan_images_diverge_in_the_first_epoch(split: str) -> None:
    bars = data()
    broken = dataclasses.replace(bars.train, images=bars.train.images.clone())
    broken.images[5, 0, 0, 0] = math.nan
    with pytest.raises(DivergedError, match="in epoch 1"):
        next(train(net(), dataclasses.replace(bars, **{split: broken}), settings(), seed=0))


def test_infinite_logits_diverge() -> None:
    with pytest.raises(DivergedError, match="in epoch 1"):
        next(train(net(), data(scale=1e38), settings(), seed=0))


@pytest.mark.parametrize("epochs", range(1, 14))
def test_every_number_of_steps_has_a_schedule(epochs: int) -> None:
    # One batch per epoch: the schedule's phases are as short as they can be.
    results = list(train(net(), data(32), settings(epochs=epochs), seed=0))
    assert len(results) == epochs


@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_a_batch_in_parts_is_the_same_step(accumulate: int) -> None:
    # But for batch norm, which this network does not have.
    def plain() -> GapCnn:
        torch.manual_seed(0)
        return GapCnn(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh()), 8, 2)

    whole, parts = plain(), plain()
    first = numbers(train(whole, data(), settings(), seed=0))
    second = numbers(train(parts, data(), settings(), seed=0, accumulate=accumulate))
    assert torch.tensor(first).allclose(torch.tensor(second), atol=1e-4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_parts_are_smaller() -> None:
    model = Recorder()
    list(train(model, data(), settings(epochs=1), seed=0, accumulate=2))
    assert {len(batch) for batch in model.batches} == {16}
    model = Recorder()
    list(train(model, data(34), settings(epochs=1), seed=0, accumulate=2))
    assert [len(batch) for batch in model.batches] == [16, 16, 2]  # none of one image


def test_a_state_that_was_saved_with_a_tensor_as_rate() -> None:
    trainers = [Trainer(net(), data(), settings(), seed=0) for _ in range(3)]
    for trainer in trainers[:2]:
        trainer.epoch()
    state = copy.deepcopy(trainers[0].state_dict())
    for group in state["optimizer"]["param_groups"]:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    trainers[2]._model.load_state_dict(trainers[0]._model.state_dict())
    trainers[2].load_state_dict(state)
    assert isinstance(trainers[2]._optimizer.param_groups[0]["lr"], float)
    assert trainers[2].epoch() == trainers[1].epoch()
