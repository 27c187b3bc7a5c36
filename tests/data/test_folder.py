"""Folders as people have them: understood as they are meant, or refused with what was seen."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from flatsearch import DataError, ImageData, load_data

if TYPE_CHECKING:
    from collections.abc import Iterator


def image(value: int, size: int = 8) -> Image.Image:
    """A picture of its own, with a pattern by which copies and constant ones are told apart."""
    pixels = np.random.default_rng(value).integers(0, 256, (size, size), dtype=np.uint8)
    return Image.fromarray(pixels)


class Maker:
    """Fills folders with different pictures."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = 0

    def __call__(self, *folders: str, count: int = 6, size: int = 8, ending: str = "png") -> Path:
        for folder in folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                self._made += 1
                image(self._made, size).save(self.root / folder / f"{self._made:03}.{ending}")
        return self.root


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def counts(data: ImageData) -> tuple[int, int, int]:
    """Training and validation images together if the latter were drawn."""
    train, validation, test = (len(s) for s in (data.train, data.validation, data.test))
    if "validation" in data.drawn:
        return train + validation, 0, test
    return train, validation, test


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "", "Testing"),
        ("train", "", "Test"),
        ("TRAIN", "VALID", "TEST"),
        ("training_set", "", "test_set"),
        ("seg_train", "", "seg_test"),
        ("images_train", "images_val", "images_test"),
        ("train_images", "dev", "eval"),
        ("data/train", "data/val", "data/test"),
        ("training_set/training_set", "", "test_set/test_set"),
    ],
)
def test_split_folders(make: Maker, names: tuple[str, str, str]) -> None:
    for name, count in zip(names, (6, 2, 3), strict=True):
        if name:
            make(f"{name}/cat", f"{name}/dog", count=count)
    data = load_data(make.root)
    assert data.class_names == ("cat", "dog")
    assert counts(data) == (12, 4 if names[1] else 0, 6)
    assert data.drawn == (() if names[1] else ("validation",))


@pytest.mark.parametrize(
    "names",
    [
        ("train", "bus"),
        ("train", "bus", "test"),
        ("valid", "invalid"),
        ("dev", "prod"),
        ("bullet_train", "steam_train"),
        ("bullet_train/old", "bullet_train/new", "bus/a"),
        ("training shoes", "boots"),
    ],
)
def test_classes_that_are_called_like_splits(make: Maker, names: tuple[str, ...]) -> None:
    data = load_data(make(*names))
    assert data.class_names == tuple(sorted({name.split("/")[0] for name in names}))
    assert data.drawn == ("validation", "test")
    if names[0] == "train":
        assert "'train' is a class, as it holds no class folders" in str(data)


def test_splits_within_the_classes(make: Maker) -> None:
    make("cat/train", "dog/train")
    make("cat/test", "dog/test", count=3)
    data = load_data(make.root)
    assert counts(data) == (12, 0, 6)
    assert "splits are the folders in the class folders" in str(data)
    make("bird")
    with pytest.raises(DataError, match=r"split folders in some class folders but not.* bird"):
        load_data(make.root)


@pytest.mark.parametrize("form", ["{split}_{name}", "{name}-{split}"])
def test_splits_in_the_names_of_class_folders(make: Maker, form: str) -> None:
    names = [form.format(split=s, name=n) for s in ("Train", "test") for n in ("cat", "dog")]
    data = load_data(make(*names))
    assert data.class_names == ("cat", "dog")
    assert counts(data) == (12, 0, 12)
    assert "splits are in the names of the class folders" in str(data)
    make("other")
    with pytest.raises(DataError, match="are a split and a class, but not other"):
        load_data(make.root)


def test_classes_that_begin_like_splits(make: Maker) -> None:
    assert load_data(make("train_station", "test_tube")).class_names == (
        "test_tube",
        "train_station",
    )


def test_masks_beside_images_are_left_out(make: Maker) -> None:
    root = make("cat", "dog", "mask", count=8)
    for file in list(root.glob("*/*.png")):
        image(0).save(file.with_name(f"{file.stem}_mask.png"))
        image(1).save(file.with_name(f"{file.stem}_mask_1.png"))
    image(500).save(root / "mask" / "a_mask.png")  # of nothing: a picture of a mask
    data = load_data(root)
    assert counts(data) == (20, 0, 5)
    assert "left out: 48 masks of the images beside them" in str(data)


def test_metadata_in_split_folders(make: Maker) -> None:
    root = make("train", "test", count=13)
    for split in ("train", "test"):
        names = sorted(file.name for file in (root / split).iterdir())
        rows = "".join(f"{name}, {'cd'[i % 2]}at\n" for i, name in enumerate(names[:-1]))
        (root / split / "metadata.csv").write_text(f"file_name,label\n{rows}")
    data = load_data(root)
    assert data.class_names == ("cat", "dat")
    assert counts(data) == (12, 0, 12)
    assert "labels are those of the metadata" in str(data)
    assert "left out: 2 images that no metadata names" in str(data)


def test_metadata_without_labels_are_left_out(make: Maker) -> None:
    root = make("train", "test", count=12)
    files = sorted((root / "train").iterdir())
    rows = "".join(f"{file.name},{i % 2}\n" for i, file in enumerate(files))
    (root / "train" / "metadata.csv").write_text(f"file_name,label\n{rows}")
    (root / "test" / "metadata.csv").write_text("file_name,id\n013.png,1\n")
    data = load_data(root)
    assert len(data.test) == 3  # drawn
    assert f"left out: {Path('test', 'metadata.csv')} and its images have no labels" in str(data)


def test_metadata_of_all_splits(make: Maker) -> None:
    root = make("train", "test", count=12)
    files = [file.relative_to(root) for file in sorted(root.glob("*/*.png"))]
    rows = "".join(f"{file},{i % 2}\n" for i, file in enumerate(files))
    (root / "metadata.csv").write_text(f"file_name,label\n{rows}")
    assert counts(load_data(root)) == (12, 0, 12)


def test_metadata_without_labels_leaves_the_folders_to_be_the_classes(make: Maker) -> None:
    root = make("cat", "dog")
    (root / "metadata.csv").write_text("file_name,text\ncat/001.png,a cat\n")
    assert load_data(root).class_names == ("cat", "dog")


def test_an_unlabelled_test_folder_is_left_out_and_said(make: Maker) -> None:
    make("train/cat", "train/dog", count=9)
    make("test")
    data = load_data(make.root)
    assert (data.class_names, data.drawn) == (("cat", "dog"), ("validation", "test"))
    assert "left out: 6 in test, which has no class folders" in str(data)


@pytest.mark.parametrize("only", ["images", "unknown"])
def test_a_split_of_one_folder_that_is_no_class_has_no_labels(make: Maker, only: str) -> None:
    make("train/cat/images", "train/dog/images", count=9)
    data = load_data(make(f"test/{only}"))
    assert (data.class_names, data.drawn) == (("cat", "dog"), ("validation", "test"))
    assert f"left out: 6 in test, whose only folder {only} is no class" in str(data)


def test_an_empty_split_is_said(make: Maker) -> None:
    folder = make("train/cat", "train/dog", "test/cat", "test/dog")
    (folder / "val" / "cat").mkdir(parents=True)
    data = load_data(folder)
    assert data.drawn == ("validation",)
    assert "no images in val" in str(data)


def test_a_split_without_images_of_a_class(make: Maker) -> None:
    data = load_data(make("train/cat", "train/cow", "train/dog", "test/cat", "test/dog"))
    assert data.test.targets.unique().tolist() == [0, 2]
    assert "no test images of cow" in str(data)


def test_arrays_beside_class_folders(make: Maker) -> None:
    np.save(make("cat", "dog") / "features.npy", np.zeros(3))
    assert "left out: 1 .npy" in str(load_data(make.root))


def test_a_lone_folder_is_what_it_holds(make: Maker) -> None:
    (make.root / "readme.txt").write_text("")
    data = load_data(make("archive/photos/cat", "archive/photos/dog"))
    assert data.class_names == ("cat", "dog")
    assert "left out: 1 .txt" in str(data)


def test_folders_in_class_folders(make: Maker) -> None:
    data = load_data(make("cat/siamese", "cat/persian", "dog/pug"))
    assert (data.class_names, sum(counts(data))) == (("cat", "dog"), 18)
    assert "images in folders of class folders belong to the class" in str(data)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "test"), "'train' (6 images): splits must be 'train', and"),
        (("train", "test"), "but test, train hold no class folders"),
        (("val/cat", "test/cat"), "has test, val but no train"),
        (("train/a", "train/b", "bus", "car"), "but other folders are beside them"),
        (("cat", "dog", "test/cat", "test/dog"), "has test but no train"),
        (("train/a", "Training/a"), "or two are of one split"),
        (("north/cat", "north/dog", "south/cat", "south/dog"), "which are the classes?"),
        (("2021/cat", "2021/dog", "2022/cat"), "in several of them cat: which are the classes?"),
        (("images", "masks"), "images and what is marked in them are no classes"),
        (("VOC/JPEGImages", "VOC/SegmentationClass"), "what is marked in them are no classes"),
        (("train/image", "train/gt", "test/image", "test/gt"), "are no classes"),
        (("train/cat", "train/dog", "test/cat", "test/cow"), "has classes cat, cow but"),
        ((".",), "must hold one folder of images per class but has 6 images (001.png"),
        ((".hidden/cat", ".hidden/dog"), "has no images; left out: 1 hidden or of the system"),
        (("cat",), "at least 2 classes"),
        (("train/cat", "test/cat"), "at least 2 classes"),
    ],
)
def test_refused_with_what_was_seen(make: Maker, folders: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(make(*folders))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_the_system_are_left_out(make: Maker) -> None:
    """AppleDouble files, previews, what editors and disks leave, with images' endings, too."""
    root = make("cat", "dog", "__MACOSX/cat", ".ipynb_checkpoints", "@eaDir", count=8)
    (root / "cat" / "._001.png").write_bytes(b"\x00\x05\x16\x07")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / "dog" / name).write_bytes(b"\x00")
    data = load_data(root)
    assert (data.class_names, sum(counts(data))) == (("cat", "dog"), 16)
    assert "left out: 7 hidden or of the system" in str(data)


def test_other_files_are_counted_and_said(make: Maker) -> None:
    root = make("cat", "dog")
    for name in ("notes.txt", "more.TXT", "clip.mp4", "LICENSE"):
        (root / "cat" / name).write_text("text")
    (root / "empty").mkdir()
    line = str(load_data(root))
    assert "left out: 2 .txt, 1 without an ending, 1 .mp4" in line
    assert "no images in empty" in line


def test_images_of_a_format_that_is_not_read(make: Maker) -> None:
    root = make("cat", "dog")
    for index in range(3):
        (root / "cat" / f"{index}.heic").write_bytes(b"photo")
    assert "left out: 3 .heic" in str(load_data(root))
    (root / "bird").mkdir()
    for name in ("a.HEIC", "a.dcm", "a.mp4"):
        (root / "bird" / name).write_bytes(b"photo")
        with pytest.raises(DataError, match=r"bird' holds 1 images of formats that are not read"):
            load_data(root)
        (root / "bird" / name).unlink()


def test_files_with_any_or_no_ending(make: Maker) -> None:
    root = make("cat", "dog", count=4)
    make("cat", ending="JPG")
    make("dog", ending="Jpeg")
    image(500).save(root / "cat" / "9f86d081884c7d65", format="png")
    image(501).save(root / "dog" / "scan.2", format="png")
    data = load_data(root)
    assert sum(counts(data)) == 22
    assert "left out" not in str(data)


def test_links(make: Maker) -> None:
    root = make("cat", "stored/dog")
    (root / "dog").symlink_to(root / "stored" / "dog", target_is_directory=True)
    (root / "stored" / "dog").rename(root.parent / "kept")
    (root / "stored").rmdir()
    (root / "dog").unlink()
    (root / "dog").symlink_to(root.parent / "kept", target_is_directory=True)
    (root / "cat" / "loop").symlink_to(root, target_is_directory=True)
    data = load_data(root)
    assert (data.class_names, sum(counts(data))) == (("cat", "dog"), 12)
    assert "left out: 1 links to a folder around them" in str(data)


def test_one_name_in_two_ways_of_unicode(make: Maker) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make(f"train/{composed}", "train/tea", f"test/{decomposed}", "test/tea")
    data = load_data(make.root)
    assert (data.class_names, counts(data)) == ((composed, "tea"), (12, 0, 12))
    make(f"train/{decomposed}")
    assert counts(load_data(make.root)) == (18, 0, 12)


def test_classes_that_differ_in_case_are_said(make: Maker) -> None:
    line = str(load_data(make("Cat", "cat", "dog")))
    assert "classes that differ in case only: Cat, cat" in line
    assert "3 classes (Cat, cat, dog) of 6 images" in line


def test_what_is_no_file(make: Maker) -> None:
    """Links to nothing and to themselves, and pipes, which would be waited for."""
    root = make("cat", "dog")
    (root / "cat" / "gone.png").symlink_to(root / "nothing.png")
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    os.mkfifo(root / "dog" / "pipe.png")
    assert "left out: 3 links to nothing, or no files" in str(load_data(root))


def test_strips(make: Maker) -> None:
    root = make("cat", "dog")
    Image.new("L", (80, 8), 7).save(root / "cat" / "strip.png")
    assert "1 over 3 times as long as wide, their middle squares read" in load_data(root).note
    for file in root.rglob("*.png"):
        Image.open(file).resize((4000, 1)).save(file)
    with pytest.raises(DataError, match="shorter side of the median image is 1, but must be at"):
        load_data(root)


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A folder that is read as somebody who is not the superuser, who may read everything."""
    load_data("digits")  # all that is imported late
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        superuser = os.geteuid() == 0
        if superuser:
            os.chown(name, 65534, -1)
            os.seteuid(65534)
        yield Path(name)
        Path(name).chmod(0o700)
        if superuser:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["dog", "train"])
@pytest.mark.parametrize("metadata", [False, True])
def test_folders_that_must_not_be_read(plain_user: Path, name: str, metadata: bool) -> None:
    root = Maker(plain_user)("cat", name)
    if metadata:
        rows = "".join(f"cat/{file.name},{file.name}\n" for file in (root / "cat").iterdir())
        (root / "metadata.csv").write_text(f"file_name,label\n{rows}")
    (root / name).chmod(0)
    with pytest.raises(DataError, match=rf"{name}' cannot be read: Permission denied"):
        load_data(root)
    (root / name).chmod(0o700)
    root.chmod(0)
    for given in (root, root / name):
        with pytest.raises(DataError, match=r"cannot be read: Permission denied"):
            load_data(given)


# --- what is said of the images ---


def test_copies_below_the_images_are_said(make: Maker) -> None:
    """Thumbnails, which would be in the training of the images that they show."""
    folder = make("cat", "dog")
    small = folder / "cat" / "thumbnails"
    small.mkdir()
    for file in (folder / "cat").glob("*.png"):
        image(0).save(small / file.name)
    said = "6 images below cat are called like images in it: are they copies?"
    assert said in str(load_data(folder))


def test_the_size_is_the_median_of_the_images(make: Maker) -> None:
    """One thumbnail does not shrink the others."""
    make("cat", "dog", count=10, size=64)
    image(999, 8).save(make.root / "cat" / "thumbnail.png")
    data = load_data(make.root)
    assert data.image_size == 64
    assert data.note == "resized to 64x64 from 2 sizes between 8x8 and 64x64"


@pytest.mark.parametrize("deep", ["train", "test"])
def test_deeper_images_in_one_split_are_refused_by_name(make: Maker, deep: str) -> None:
    make("train/cat", "train/dog", "test/cat", "test/dog")
    for file in (make.root / deep).rglob("*.png"):
        pixels = np.asarray(Image.open(file)).astype(np.uint16) * 257
        Image.fromarray(pixels).save(file)
    with pytest.raises(DataError, match=r"\.png.* and 9 more: pixels of uint\d+, but 12 other"):
        load_data(make.root)


def test_deep_images_are_read_as_they_are(make: Maker) -> None:
    make("cat", "dog")
    for file in make.root.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 12).save(file)
    data = load_data(make.root)
    assert (data.pixels, data.in_channels) == ("uint16", 1)
    assert float(data.train.images.max()) > 255
    assert "1x8x8 uint16 from " in str(data)


def test_images_of_one_colour_are_reported(make: Maker, caplog: pytest.LogCaptureFixture) -> None:
    make("cat", "dog")
    for value in (0, 1):
        Image.new("L", (8, 8), value).save(make.root / "cat" / f"blank{value}.png")
    Image.fromarray(np.full((8, 8), 200, np.uint8) + np.eye(8, dtype=np.uint8)).save(
        make.root / "dog" / "nearly.png"
    )
    caplog.set_level("WARNING", "flatsearch.data.loading")  # a command has its own way to say it
    data = load_data(make.root)
    (remark,) = data.remarks
    assert remark.startswith("3 of 15 images are of one colour, or nearly (")
    assert f"data {make.root}: {remark}" in caplog.text


def test_a_class_that_is_told_by_being_gray_is_reported(make: Maker) -> None:
    root = make("cat", "dog")
    for file in (root / "dog").iterdir():
        Image.open(file).convert("RGB").save(file)
    line = str(load_data(root))
    assert "all images of cat are gray and all others in colour, which tells them apart" in line
    Image.open(next((root / "cat").iterdir())).convert("RGB").save(root / "cat" / "new.png")
    assert "are gray" not in str(load_data(root))


def test_splits_of_another_scale_are_reported() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (20, 8, 8)).astype(np.float32)
    y = np.arange(20) % 2
    said = "test images have pixels up to 252, training images up to 0.991: are they scaled"
    assert said in str(load_data({"train": (x, y), "test": (255 * x, y)}))
    assert "scaled" not in str(load_data({"train": (x, y), "test": (x / 2, y)}))


def test_copies_across_splits_are_reported(make: Maker) -> None:
    make("train/cat", "train/dog", "test/cat", "test/dog")
    files = sorted((make.root / "train" / "cat").iterdir())
    for file in files[:2]:
        Image.open(file).save(make.root / "test" / "cat" / f"{file.stem}.bmp")
    Image.open(files[2]).save(make.root / "train" / "dog" / "same.png")
    remarks = load_data(make.root).remarks
    assert "2 of 14 test images are training or validation images, too" in remarks
    assert "1 image is in more than one class" in remarks


def test_one_line_says_what_was_read(make: Maker) -> None:
    make("cat", count=12)
    make("dog", count=8)
    line = str(load_data(make.root))
    assert line == (
        f"data {make.root}: 12 training, 4 validation and 4 test images (validation and test"
        " drawn), 1x8x8, 2 classes (cat, dog) of 8 (dog) to 12 (cat) images"
    )


def test_modes_are_said(make: Maker) -> None:
    root = make("cat", "dog")
    Image.new("RGBA", (8, 8), (9, 9, 9, 9)).save(root / "cat" / "a.png")
    frames: list[Any] = [image(700), image(701)]
    frames[0].save(root / "dog" / "a.gif", save_all=True, append_images=frames[1:])
    note = load_data(root).note
    assert "1 with transparency, shown on white" in note
    assert "1 with several frames, the first one read" in note
