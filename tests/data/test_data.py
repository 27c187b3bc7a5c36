"""Images by name, folder, file and array: what is read, how it is split, what is refused."""

from __future__ import annotations

import hashlib
import pickle
import struct
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from flatsearch import DataError, SettingsError
from flatsearch.data.loading import load_data
from flatsearch.data.named import data_names
from flatsearch.data.splits import Augmentation, ImageData, Split

if TYPE_CHECKING:
    from pathlib import Path

SPLITS = ("train", "validation", "test")


def pixels(n: int = 60, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *(shape or (8, 8))), dtype=np.uint8)


def labels(n: int = 60, classes: int = 3) -> np.ndarray:
    return np.arange(n) % classes


def tagged(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Images whose every pixel is their index; half of class 0, 30% of 1, 20% of 2."""
    images = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None], (n, 4, 4))
    return images.copy(), np.repeat([0, 1, 2], [n // 2, 3 * n // 10, n // 5])


def tags(split: Split) -> list[int]:
    return split.images[:, 0, 0, 0].int().tolist()


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


# --- digits and arrays ---


def test_digits(digits: ImageData) -> None:
    assert [len(getattr(digits, split)) for split in SPLITS] == [1149, 288, 360]
    assert digits.class_names == tuple("0123456789")
    assert (digits.in_channels, digits.image_size, digits.num_classes) == (1, 8, 10)
    assert (digits.name, digits.note, digits.may_flip) == ("digits", "", False)
    assert digits.train.images.dtype == torch.uint8
    # Nothing is lost: the splits together are scikit-learn's images, 0..16 stretched to 0..255.
    together = torch.cat([getattr(digits, split).images for split in SPLITS])
    original = np.round(load_digits().images * 255 / 16)
    assert int(together.max()) == 255
    assert sorted(together.flatten(1).tolist()) == sorted(original.reshape(1797, -1).tolist())


def test_resizing_is_said(digits: ImageData) -> None:
    larger = load_data("digits", image_size=16)
    assert larger.image_size == 16
    assert larger.note == "resized to 16x16 from 8x8"
    assert torch.equal(larger.train.targets, digits.train.targets)


def test_large_images_are_cropped_to_a_square_and_shrunk() -> None:
    images = np.zeros((60, 80, 100), dtype=np.uint8)
    images[:, :, 10:90] = 200  # the centred square
    data = load_data((images, labels()))
    assert data.image_size == 64
    assert data.note == "resized to 64x64, middle squares, from 80x100"
    assert bool((data.train.images == 200).all())


@pytest.mark.parametrize(
    ("images", "shape", "dtype"),
    [
        (pixels(), (1, 8, 8), torch.uint8),
        (pixels(60, 8, 8, 1), (1, 8, 8), torch.uint8),
        (pixels(60, 8, 8, 3), (3, 8, 8), torch.uint8),
        (pixels(60, 3, 8, 8), (3, 8, 8), torch.uint8),
        (pixels(60, 1, 8, 8), (1, 8, 8), torch.uint8),
        (pixels(60, 2, 8, 8), (2, 8, 8), torch.uint8),
        (pixels(60, 8, 8, 4), (4, 8, 8), torch.uint8),
        (pixels(60, 8, 8, 13), (13, 8, 8), torch.uint8),
        (pixels(60, 13, 8, 8), (13, 8, 8), torch.uint8),
        (pixels() / 255, (1, 8, 8), torch.float32),
        (pixels().astype(np.float16), (1, 8, 8), torch.float32),
        (pixels().astype(np.int64), (1, 8, 8), torch.float32),
        (torch.from_numpy(pixels(60, 3, 8, 8)), (3, 8, 8), torch.uint8),
    ],
)
def test_layouts_and_types(images: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    data = load_data((images, labels()))
    assert tuple(data.train.images.shape[1:]) == shape
    assert data.train.images.dtype == dtype
    # Channels are moved, not reinterpreted: as many images with the same pixels in a channel.
    together = torch.cat([getattr(data, split).images for split in SPLITS]).float()
    array = torch.as_tensor(images).float()
    if array.ndim == 4 and array.shape[3] in {1, 3, 4, 13}:
        array = array.permute(0, 3, 1, 2)
    expected = array.reshape(60, shape[0], -1)[:, -1].tolist()
    assert sorted(together.flatten(2)[:, -1].tolist()) == sorted(expected)
    assert data.may_flip


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (labels() + 5, ("5", "6", "7")),
        (labels()[:, None], ("0", "1", "2")),
        (np.array(["dog", "ant", "cat"])[labels()], ("ant", "cat", "dog")),
        (np.array([7.0, -1.0, 3.0])[labels()], ("-1", "3", "7")),
        (torch.from_numpy(labels()).to(torch.int16), ("0", "1", "2")),
        (labels() == 0, ("False", "True")),
    ],
)
def test_labels_of_any_type_become_indices(given: Any, names: tuple[str, ...]) -> None:
    images = np.broadcast_to(np.arange(60, dtype=np.float32)[:, None, None], (60, 4, 4)).copy()
    data = load_data((images, given))
    assert data.class_names == names
    assert data.train.targets.dtype == torch.int64
    flat = np.asarray(given).squeeze()
    if flat.dtype.kind == "f":  # whole numbers, however they are stored
        flat = flat.astype(int)
    for split in (data.train, data.validation, data.test):
        found = [names[target] for target in split.targets.tolist()]
        assert found == [str(flat[tag]) for tag in tags(split)]


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (pixels(), labels(59), "60 images but 59 labels"),
        (pixels(), np.eye(3)[labels()], "labels must be one number or string"),
        (pixels(60, 8, 9, 5), labels(), "which of (60, 8, 9, 5) are the channels cannot be told"),
        (np.zeros((60, 8)), labels(), "but have (60, 8)"),
        (np.zeros((0, 8, 8)), labels(0), "but have (0, 8, 8)"),
        (np.full((60, 8, 8), np.nan), labels(), "NaN or infinite"),
        (pixels(), labels() * 0, "at least 2 classes"),
        (pixels(6), labels(6), "too few for a test split"),
        (pixels(60), np.arange(60) == 7, "too few for a test split"),
    ],
)
def test_arrays_refused(images: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data((images, targets))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_training_images(tmp_path: Path) -> None:
    x, y = pixels(3), labels(3, 2)
    few = {"x_train": x, "y_train": y, "x_val": x, "y_val": y, "x_test": x, "y_test": y}
    with pytest.raises(DataError, match="at least 4 training images: 3 left"):
        load_data(npz(tmp_path, **few))


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(DataError) as caught:
        load_data("digit")
    for part in ("unknown data 'digit'", "did you mean 'digits'", *data_names(), ".npz"):
        assert part in str(caught.value)


# --- splits ---


def test_splits_are_disjoint_complete_and_stratified() -> None:
    data = load_data(tagged(), validation_fraction=0.25)
    parts = [tags(getattr(data, split)) for split in SPLITS]
    assert sorted(tag for part in parts for tag in part) == list(range(200))
    counts = [getattr(data, split).targets.bincount().tolist() for split in SPLITS]
    assert counts == [[60, 36, 24], [20, 12, 8], [20, 12, 8]]
    truth = tagged()[1]
    for split in SPLITS:
        part = getattr(data, split)
        assert part.targets.tolist() == truth[tags(part)].tolist()


@pytest.mark.parametrize(("fraction", "count"), [(0.05, 8), (0.5, 80), (0.8, 128)])
def test_validation_fraction(fraction: float, count: int) -> None:
    data = load_data(tagged(), validation_fraction=fraction)
    assert (len(data.validation), len(data.test)) == (count, 40)
    assert len(data.train) == 160 - count


def test_splits_are_seeded() -> None:
    first, second, other = (load_data(tagged(), seed=seed) for seed in (0, 0, 1))
    for split in (*SPLITS, "probe"):
        assert tags(getattr(first, split)) == tags(getattr(second, split))
    for split in ("train", "validation", "probe"):
        assert tags(getattr(first, split)) != tags(getattr(other, split))
    # What one run tests on, no run of another seed may have trained on.
    assert tags(first.test) == tags(other.test)


def test_probe_is_a_part_of_the_training_data() -> None:
    data = load_data(tagged(), probe_size=50)
    assert len(data.probe) == len(set(tags(data.probe))) == 50
    assert set(tags(data.probe)) < set(tags(data.train))
    assert not set(tags(data.probe)) & {*tags(data.validation), *tags(data.test)}
    assert data.probe.targets.tolist() == tagged()[1][tags(data.probe)].tolist()
    assert tags(data.probe) != tags(data.train)[:50]
    assert torch.equal(data.probe.mean, data.train.mean)
    everything = load_data(tagged(), probe_size=10_000).probe
    assert len(everything) == len(load_data(tagged()).train)


def test_statistics_are_of_the_training_split(tmp_path: Path) -> None:
    train = pixels(50, 3, 8, 8)
    train[:, 1] //= 4
    data = load_data(
        npz(
            tmp_path,
            x_train=train,
            y_train=labels(50),
            x_val=np.full((10, 3, 8, 8), 255, np.uint8),
            y_val=labels(10),
            x_test=np.zeros((10, 3, 8, 8), np.uint8),
            y_test=labels(10),
        )
    )
    np.testing.assert_allclose(data.train.mean.flatten(), train.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(data.train.std.flatten(), train.std((0, 2, 3)), rtol=1e-6)
    for split in (data.validation, data.test, data.probe):
        assert torch.equal(split.mean, data.train.mean)
        assert torch.equal(split.std, data.train.std)
    inputs, targets = data.train.tensors()
    assert inputs.dtype == torch.float32
    assert torch.equal(targets, data.train.targets)
    assert torch.allclose(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(inputs.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_a_constant_channel_is_only_centred() -> None:
    images = pixels(60, 3, 8, 8).astype(np.float32)
    images[:, 2] = 0.1
    data = load_data((images, labels()))
    assert float(data.train.std[0, 2]) == 1.0
    assert bool((data.train.tensors()[0][:, 2].abs() < 1e-6).all())


def test_drawn_statistics_leave_out_validation_and_test() -> None:
    images, targets = tagged()
    data = load_data((images, targets))
    assert float(data.train.mean) == pytest.approx(np.mean(tags(data.train)), rel=1e-6)
    assert float(data.train.mean) != pytest.approx(images.mean(), rel=1e-6)


def test_own_splits_are_kept(tmp_path: Path) -> None:
    images, _ = tagged(100)
    data = load_data(
        npz(
            tmp_path,
            train_images=images[:70],
            train_labels=labels(70),
            val_images=images[70:90],
            val_labels=labels(20),
            test_images=images[90:],
            test_labels=labels(10),
        )
    )
    assert tags(data.train) == list(range(70))
    assert tags(data.validation) == list(range(70, 90))
    assert tags(data.test) == list(range(90, 100))


def test_the_test_split_reaches_nothing_else(tmp_path: Path) -> None:
    common = {"x_train": pixels(), "y_train": labels()}
    first = load_data(npz(tmp_path, **common, x_test=pixels(20), y_test=labels(20)))
    other = load_data(npz(tmp_path, **common, x_test=pixels(9, seed=5), y_test=labels(9) * 0))
    assert len(other.test) == 9
    assert first.fingerprint() == other.fingerprint()
    assert torch.equal(first.probe.images, other.probe.images)
    assert torch.equal(first.train.mean, other.train.mean)


def test_fingerprint(tmp_path: Path) -> None:
    images, targets = pixels(), labels()
    fingerprint = load_data((images, targets)).fingerprint()
    assert len(fingerprint) == 12
    assert int(fingerprint, 16) >= 0
    assert load_data((images.copy(), targets)).fingerprint() == fingerprint
    assert load_data(npz(tmp_path, x=images, y=targets)).fingerprint() == fingerprint
    assert load_data((images, targets), seed=1).fingerprint() != fingerprint
    assert load_data((images, targets), validation_fraction=0.3).fingerprint() != fingerprint
    data = load_data((images, targets))
    for split in ("train", "validation"):
        for field in ("images", "targets"):
            changed = load_data((images, targets))
            getattr(getattr(changed, split), field).view(-1)[-1] += 1
            assert changed.fingerprint() != data.fingerprint(), (split, field)


def test_the_device_is_respected() -> None:
    data = load_data((pixels(), labels()), device="meta")
    for split in (*SPLITS, "probe"):
        part = getattr(data, split)
        assert {t.device.type for t in (part.images, part.targets, part.mean, part.std)} == {"meta"}


def test_batches() -> None:
    split = load_data(tagged()).train
    inputs, targets = split.tensors()
    x, y = (torch.cat(part) for part in zip(*split.batches(30), strict=True))
    assert torch.equal(x, inputs)
    assert torch.equal(y, targets)
    assert [len(y) for _, y in split.batches(30)] == [30, 30, 30, 30, 8]

    def shuffled(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        pairs = zip(*split.batches(30, generator=generator), strict=True)
        x, y = (torch.cat(part) for part in pairs)
        return x, y

    x, y = shuffled(0)
    order = [inputs[:, 0, 0, 0].tolist().index(value) for value in x[:, 0, 0, 0].tolist()]
    assert sorted(order) == list(range(128))
    assert order != list(range(128))
    assert torch.equal(y, targets[order])
    assert torch.equal(shuffled(0)[0], x)
    assert not torch.equal(shuffled(1)[0], x)


# --- augmentation ---


def augmented(augment: Augmentation, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augment(x, torch.Generator().manual_seed(seed))


def test_crops_are_windows_of_the_padded_image() -> None:
    x = torch.randn(40, 2, 6, 6)
    before = x.clone()
    out = augmented(Augmentation(padding=2, flip=False), x)
    assert out.shape == x.shape
    assert torch.equal(x, before)
    padded = torch.nn.functional.pad(x, [2] * 4)
    seen = set()
    for image, wide in zip(out, padded, strict=True):
        found = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(image, wide[:, i : i + 6, j : j + 6])
        ]
        assert len(found) == 1  # no mirror image among them
        seen.add(found[0])
    assert {i for i, _ in seen} == {j for _, j in seen} == set(range(5))
    assert any(i < j for i, j in seen)  # rows and columns move on their own
    assert any(i > j for i, j in seen)


def test_flips_half_and_nothing_else() -> None:
    x = torch.randn(200, 1, 4, 4)
    out = augmented(Augmentation(padding=0, flip=True), x)
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 60 < int(mirrored.sum()) < 140
    assert torch.equal(augmented(Augmentation(padding=0, flip=False), x), x)


def test_augmentation_is_seeded() -> None:
    x, augment = torch.randn(20, 1, 8, 8), Augmentation(padding=1, flip=True)
    assert torch.equal(augmented(augment, x), augmented(augment, x))
    assert not torch.equal(augmented(augment, x), augmented(augment, x, seed=1))


def test_augmentation_follows_the_data(digits: ImageData) -> None:
    photos = load_data((pixels(60, 3, 32, 32), labels()))
    assert digits.augmentation("auto") == Augmentation(padding=1, flip=False)
    assert photos.augmentation("auto") == Augmentation(padding=4, flip=True)
    assert photos.augmentation("crop") == Augmentation(padding=4, flip=False)
    assert digits.augmentation("crop+flip") == Augmentation(padding=1, flip=True)
    assert photos.augmentation("none") is None


# --- folders ---


def picture(value: int, mode: str = "L", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, value if mode == "L" else (value, 0, 0))


def folder(root: Path, count: int = 12, *, suffix: str = "png", **options: Any) -> Path:
    """Classes cat and dog; each image is of one gray level."""
    for kind, base in (("dog", 0), ("cat", 100)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture(base + index, **options).save(root / kind / f"{index:02}.{suffix}")
    return root


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_folder(tmp_path: Path, suffix: str) -> None:
    data = load_data(folder(tmp_path, suffix=suffix))
    assert data.class_names == ("cat", "dog")
    assert (data.in_channels, data.image_size, data.note) == (1, 8, "")
    assert data.name == str(tmp_path)
    seen = []
    for split in (data.train, data.validation, data.test):
        levels = tags(split)
        assert split.targets.tolist() == [0 if level >= 100 else 1 for level in levels]
        seen += levels
    assert sorted(seen) == [*range(12), *range(100, 112)]


def test_folder_of_splits(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        folder(tmp_path / split, count)
    data = load_data(str(tmp_path))
    assert [tags(getattr(data, split)) for split in SPLITS] == [
        [*range(100, 100 + n), *range(n)] for n in (6, 3, 2)
    ]
    assert data.validation.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_folder_with_a_training_part_only(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    data = load_data(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert sum(len(getattr(data, split)) for split in SPLITS) == 24


def test_one_coloured_image_makes_all_rgb(tmp_path: Path) -> None:
    picture(50, "RGB").save(folder(tmp_path) / "cat" / "00.png")
    data = load_data(tmp_path)
    images = torch.cat([getattr(data, split).images for split in SPLITS])
    assert data.in_channels == 3
    red = images[(images[:, 1] == 0).flatten(1).all(1) & (images[:, 0] == 50).flatten(1).all(1)]
    assert len(red) == 1
    gray = images[(images[:, 0] == images[:, 2]).flatten(1).all(1)]
    assert len(gray) == 23


def test_mixed_sizes_become_their_median(tmp_path: Path) -> None:
    picture(100, size=(20, 10)).save(folder(tmp_path) / "cat" / "00.png")
    picture(101, size=(100, 80)).save(tmp_path / "cat" / "01.png")
    data = load_data(tmp_path)
    assert data.image_size == 8
    expected = "resized to 8x8, middle squares, from 3 sizes between 8x8 and 80x100"
    assert data.note == expected
    together = torch.cat([getattr(data, split).images for split in SPLITS])
    assert bool((together == together[:, :, :1, :1]).all())  # one level each, still
    assert load_data(tmp_path, image_size=12).image_size == 12


def test_large_and_oblong_files(tmp_path: Path) -> None:
    wide = folder(tmp_path / "wide", size=(20, 10))
    assert load_data(wide).image_size == 10
    assert load_data(wide).note == "resized to 10x10, middle squares, from 10x20"
    assert load_data(folder(tmp_path / "large", 5, size=(70, 70))).image_size == 64


def test_val_images_take_the_size_of_the_training_images(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "val", size=(24, 16))
    data = load_data(tmp_path)
    assert data.validation.images.shape[1:] == data.train.images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("keep", [0, 30, 400])
def test_a_corrupt_image_is_named(tmp_path: Path, keep: int) -> None:
    file = folder(tmp_path) / "cat" / "broken.png"
    Image.fromarray(pixels(1, 40, 40)[0]).save(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cat/broken\.png' cannot be read"):
        load_data(tmp_path)


def test_folders_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    flat = tmp_path / "flat"
    flat.mkdir()
    picture(1).save(flat / "a.png")
    for path in ("empty", "hollow", "flat"):
        with pytest.raises(DataError, match=rf"{path}' must hold one folder of images per class"):
            load_data(tmp_path / path)
    (folder(tmp_path / "lone") / "dog").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="at least 2 classes"):
        load_data(tmp_path / "lone")
    with pytest.raises(DataError, match="absent' does not exist"):
        load_data(tmp_path / "absent")


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_must_agree_between_splits(tmp_path: Path, split: str) -> None:
    folder(tmp_path / "train")
    (folder(tmp_path / split) / "dog").rename(tmp_path / split / "fox")
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    assert "has classes cat, fox but the training folder has cat, dog" in str(caught.value)
    assert str(tmp_path / split) in str(caught.value)


# --- .npz ---


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels"),
        ("x_train", "y_train"),
        ("images", "labels"),
        ("x", "y"),
        ("X", "y"),
    ],
)
def test_npz_names(tmp_path: Path, names: tuple[str, str]) -> None:
    path = npz(tmp_path, **dict(zip(names, (pixels(), labels()), strict=True)))
    data = load_data(path)
    assert data.fingerprint() == load_data((pixels(), labels())).fingerprint()
    assert data.name == str(path)


def test_npz_test_images_are_not_training_images(tmp_path: Path) -> None:
    path = npz(tmp_path, images=pixels(), labels=labels(), x_test=pixels(9), y_test=labels(9))
    data = load_data(path)
    assert len(data.train) + len(data.validation) == 60
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(pixels(9)))
    path = npz(tmp_path, images=pixels(), labels=labels(), x_test=pixels(9), y_tst=labels(9))
    assert "left out: arrays x_test, y_tst" in str(load_data(path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": pixels(), "y": labels(9)}, "60 images but 9 labels"),
        ({"x": pixels()}, "must hold arrays named"),
        ({"data": pixels(), "target": labels()}, "it holds data, target"),
        ({"x_test": pixels(), "y_test": labels()}, "it holds x_test, y_test"),
        ({}, "it holds none"),
        ({"x": pixels(), "y": np.array([{}] * 60)}, "cannot be read as an .npz file"),
        (
            {"x_train": pixels(), "y_train": labels(), "x_test": pixels(), "y_test": labels() + 1},
            "test labels [3] are not in the training",
        ),
        (
            {"x_train": pixels(), "y_train": labels(), "x_val": pixels(), "y_val": labels(8)},
            "60 images but 8 labels",
        ),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = npz(tmp_path, **arrays)
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_not_an_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    for name in ("text.npz", "absent.npz"):
        with pytest.raises(DataError, match=rf"{name}' cannot be read as an \.npz file"):
            load_data(tmp_path / name)


# --- torchvision's names, on small files laid out as torchvision expects them ---


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("name", "where", "may_flip"),
    [
        ("fashion_mnist", "FashionMNIST", True),
        ("FashionMNIST", "FashionMNIST", True),
        ("fashion-mnist", "FashionMNIST", True),
        ("mnist", "MNIST", False),
        ("KMNIST", "KMNIST", False),
    ],
)
def test_mnist_like(tmp_path: Path, name: str, where: str, may_flip: bool) -> None:
    raw = tmp_path / where / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 50), ("t10k", 20)):
        images = pixels(count, 28, 28, seed=count)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels(count, 10)))
    data = load_data(name, root=tmp_path)
    assert data.may_flip is may_flip
    assert data.name == where.lower().replace("fashion", "fashion_")
    assert data.class_names == tuple(getattr(torchvision.datasets, where).classes)
    assert (len(data.train), len(data.validation)) == (40, 10)
    assert data.validation.targets.bincount().tolist() == [1] * 10
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(pixels(20, 28, 28, seed=20)))
    assert data.test.targets.tolist() == labels(20, 10).tolist()


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    names = [f"class{i}" for i in range(10)]
    test = pixels(10, 3, 32, 32, seed=9)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        written = pickle.dumps(content)
        (base / name).write_bytes(written)
        return [name, hashlib.md5(written).hexdigest()]

    train = [
        write(
            f"data_batch_{i}",
            {"data": pixels(20, 3072, seed=i), "labels": labels(20, 10).tolist()},
        )
        for i in range(1, 6)
    ]
    held = write("test_batch", {"data": test.reshape(10, -1), "labels": labels(10, 10).tolist()})
    meta = write("batches.meta", {"label_names": names})
    cls = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cls, "train_list", train)
    monkeypatch.setattr(cls, "test_list", [held])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": meta[1]})
    data = load_data("cifar10", root=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, 10)
    assert (data.in_channels, data.image_size, data.may_flip) == (3, 32, True)
    assert data.class_names == tuple(names)
    assert torch.equal(data.test.images, torch.from_numpy(test))


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    listed = {}
    for split, count in (("train", 50), ("test", 20)):
        file = tmp_path / f"{split}_32x32.mat"
        images = pixels(count, 32, 32, 3, seed=count)
        digit = labels(count, 10)[:, None]
        savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": np.where(digit == 0, 10, digit)})
        listed[split] = ["nowhere", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    data = load_data("svhn", root=tmp_path)
    assert data.class_names == tuple("0123456789")
    assert not data.may_flip
    assert data.test.targets.tolist() == labels(20, 10).tolist()
    expected = torch.from_numpy(pixels(20, 32, 32, 3, seed=20)).permute(0, 3, 1, 2)
    assert torch.equal(data.test.images, expected)


@pytest.mark.parametrize("name", [name for name in data_names() if name != "digits"])
def test_absent_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DataError) as caught:
        load_data(name, root=tmp_path)
    message = str(caught.value)
    assert f"data {name!r} is not under {str(tmp_path)!r} and could not be downloaded" in message
    assert "no network" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 garbage", b"plain text"], ids=["empty", "zip", "text"]
)
def test_damaged_npz_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz' cannot be read as an \.npz file"):
        load_data(tmp_path / "bad.npz")


def test_an_npy_file_with_the_wrong_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(DataError, match="cannot be read"):
        load_data(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("test_images", "what"),
    [
        (np.zeros((9, 3, 8, 8), np.uint8), r"test images are \(3, 8, 8\)"),
        (np.zeros((9, 8, 8), np.float32), r"test images are .*float32"),
    ],
)
def test_splits_of_another_kind_are_refused(
    tmp_path: Path, test_images: np.ndarray[Any, Any], what: str
) -> None:
    train = {"x_train": np.zeros((60, 8, 8), np.uint8), "y_train": np.arange(60) % 3}
    np.savez(tmp_path / "d.npz", x_test=test_images, y_test=np.arange(9) % 3, **train)
    with pytest.raises(DataError, match=what):
        load_data(tmp_path / "d.npz")


def test_one_held_out_image(tmp_path: Path) -> None:
    train = {"x_train": np.zeros((60, 8, 8), np.uint8), "y_train": np.arange(60) % 3}
    np.savez(
        tmp_path / "d.npz", x_test=np.zeros((1, 8, 8), np.uint8), y_test=np.array([2]), **train
    )
    assert load_data(tmp_path / "d.npz").test.targets.tolist() == [2]


def test_arrays_of_any_layout_in_memory() -> None:
    images = (np.arange(60 * 64).reshape(60, 8, 8) % 251).astype(np.uint8)
    targets = np.arange(60) % 3
    expected = load_data((images, targets)).fingerprint()
    big_endian = images.astype(">f4")
    assert load_data((big_endian, targets)).train.images.dtype == torch.float32
    assert load_data((images[:, ::-1][:, ::-1], targets)).fingerprint() == expected
    assert load_data([images, targets]).fingerprint() == expected  # type: ignore[arg-type]
    with pytest.raises(DataError, match="images must be numbers"):
        load_data((images.astype(str), targets))
    with pytest.raises(DataError, match="a pair"):
        load_data((images, targets, targets))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.5}, "`validation_fraction` must be above 0 and below 1"),
        ({"probe_size": 0}, "`probe_size` must be at least 1"),
        ({"image_size": -3}, "`image_size` must be at least 4"),
        ({"seed": 2**32}, "`seed` must be at least 0 and below"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_data("digits", **options)
