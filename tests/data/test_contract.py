"""Every source of data keeps the contract that third parties are tested by."""

from __future__ import annotations

import csv
import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from flatsearch import DataError, load_data
from flatsearch.data import sources
from flatsearch.data.raw import RawData
from flatsearch.data.sources import Source
from flatsearch.testing import DataSourceContract

COUNT = 24
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 2
NAMES = np.array(["cat", "dog"])[LABELS]


def files(folder: Path) -> list[Path]:
    """Write the images as files in one folder."""
    found = [folder / f"{index:02}.png" for index in range(COUNT)]
    for image, file in zip(IMAGES, found, strict=True):
        Image.fromarray(image).save(file)
    return found


class Pairs(Dataset[Any]):
    """A map-style data set of Pillow images."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.fromarray(IMAGES[index]), int(LABELS[index])


class SameImages(DataSourceContract):
    """The same images by whatever source, with the same splits."""

    classes = ("cat", "dog")

    def test_the_images_are_those_that_were_given(self, tmp_path: Path) -> None:
        data = load_data(self.given(tmp_path))
        assert data.class_names == self.classes
        splits = (data.train, data.validation, data.test)
        found = {
            (image.numpy().tobytes(), int(target))
            for split in splits
            for image, target in zip(split.images.to(torch.uint8), split.targets, strict=True)
        }
        expected = zip(IMAGES.transpose(0, 3, 1, 2), LABELS, strict=True)
        assert found == {(image.tobytes(), int(label)) for image, label in expected}


class TestFolder(SameImages):
    def given(self, folder: Path) -> Any:
        for file, name in zip(files(folder), NAMES, strict=True):
            (folder / name).mkdir(exist_ok=True)
            file.rename(folder / name / file.name)
        return folder


class TestCsv(SameImages):
    def given(self, folder: Path) -> Any:
        with (folder / "labels.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "kind", "file"])
            rows.writerows(
                (i, name, path.name)
                for i, (name, path) in enumerate(zip(NAMES, files(folder), strict=True))
            )
        return f"{folder / 'labels.csv'}:file,kind"


class TestMetadata(SameImages):
    """A table beside the images, as on the Hugging Face Hub."""

    def given(self, folder: Path) -> Any:
        rows = zip(files(folder), NAMES, strict=True)
        lines = [json.dumps({"file_name": file.name, "label": name}) for file, name in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        return folder


class TestParquet(SameImages):
    def given(self, folder: Path) -> Any:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        paths = [str(path) for path in files(folder)]
        parquet.write_table(arrow.table({"path": paths, "label": NAMES}), folder / "t.parquet")
        return folder / "t.parquet"


class TestFrame(SameImages):
    def given(self, folder: Path) -> Any:
        pandas = pytest.importorskip("pandas")
        names = pandas.array([*NAMES, pandas.NA])  # the last one has no label
        return pandas.DataFrame({"image": [*IMAGES, None], "label": names})


class TestSeries(SameImages):
    def given(self, folder: Path) -> Any:
        pandas = pytest.importorskip("pandas")
        return pandas.Series(files(folder)), pandas.Series(NAMES, dtype="category")


class TestNpz(SameImages):
    classes = ("0", "1")

    def given(self, folder: Path) -> Any:
        np.savez(folder / "d.npz", X_train=IMAGES, Y_train=LABELS[:, None])
        return folder / "d.npz"


class TestMedMnist(SameImages):
    classes = ("0", "1")

    def given(self, folder: Path) -> Any:
        parts = (("train", slice(16)), ("val", slice(16, 20)), ("test", slice(20, COUNT)))
        arrays = {}
        for split, some in parts:
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = IMAGES[some], LABELS[some, None]
        np.savez(folder / "pathmnist.npz", **arrays)
        return str(folder / "pathmnist.npz")


class TestNpyPair(SameImages):
    classes = ("0", "1")

    def given(self, folder: Path) -> Any:
        np.save(folder / "a.npy", IMAGES)
        np.save(folder / "b.npy", LABELS)
        return f"{folder / 'a.npy'},{folder / 'b.npy'}"


class TestNpyFolder(SameImages):
    classes = ("0", "1")

    def given(self, folder: Path) -> Any:
        np.save(folder / "x_train.npy", IMAGES[:20])
        np.save(folder / "y_train.npy", LABELS[:20])
        np.save(folder / "x_test.npy", IMAGES[20:])
        np.save(folder / "y_test.npy", LABELS[20:])
        return folder


class TestArrays(SameImages):
    def given(self, folder: Path) -> Any:
        return torch.from_numpy(IMAGES), NAMES


class TestObjects(SameImages):
    """Arrays of any size, files, bytes and Pillow images, mixed."""

    def given(self, folder: Path) -> Any:
        paths = files(folder)
        images: Any = np.empty(COUNT, dtype=object)
        images[:] = paths
        images[0], images[1] = IMAGES[0], Image.fromarray(IMAGES[1])
        images[2], images[3] = paths[2].read_bytes(), torch.from_numpy(IMAGES[3]).permute(2, 0, 1)
        return images, NAMES.astype(object)


class TestMapping(SameImages):
    def given(self, folder: Path) -> Any:
        return {"test": (IMAGES[20:], NAMES[20:]), "train": (IMAGES[:20], NAMES[:20])}


class TestMapStyle(SameImages):
    classes = ("0", "1")

    def given(self, folder: Path) -> Any:
        return Pairs()


class TestTensorDataset(SameImages):
    classes = ("0", "1")

    def given(self, folder: Path) -> Any:
        images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float()
        return TensorDataset(images, torch.from_numpy(LABELS))


class TestHuggingFace(SameImages):
    def given(self, folder: Path) -> Any:
        hub = pytest.importorskip("datasets")
        columns = {"image": [str(path) for path in files(folder)], "label": LABELS}
        found = hub.Dataset.from_dict(columns).cast_column("image", hub.Image())
        return found.cast_column("label", hub.ClassLabel(names=["cat", "dog"]))


class TestSavedHuggingFace(TestHuggingFace):
    def given(self, folder: Path) -> Any:
        found = super().given(folder)
        hub = pytest.importorskip("datasets")
        splits = {"train": found.select(range(20)), "test": found.select(range(20, COUNT))}
        hub.DatasetDict(splits).save_to_disk(str(folder / "saved"))
        return folder / "saved"


def test_hugging_face_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("datasets")
    made = TestHuggingFace().given(tmp_path)
    asked = []

    def load(name: str, configuration: str | None) -> Any:
        asked.append((name, configuration))
        if name == "me/absent":
            raise FileNotFoundError("nothing\nthere")
        return hub.DatasetDict({"train": made, "validation": made, "unsupervised": made})

    monkeypatch.setattr(hub, "load_dataset", load)
    data = load_data("hf:me/pets:small")
    assert (data.name, data.drawn) == ("hf:me/pets:small", ("test",))
    assert "left out: split unsupervised (24 images)" in str(data)
    with pytest.raises(DataError, match="data 'hf:me/absent' cannot be loaded: nothing there"):
        load_data("hf:me/absent")
    assert asked == [("me/pets", "small"), ("me/absent", None)]


class TestDigits(DataSourceContract):
    def given(self, folder: Path) -> Any:
        return "digits"


def of_numbers(given: Any, _: Path) -> RawData:
    return RawData({"train": (IMAGES, LABELS)}, ("even", "odd"))


NUMBERS = Source("numbers", "numbers:", lambda given: str(given) == "numbers:", of_numbers)


class TestThirdParty(SameImages):
    classes = ("even", "odd")

    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(
            monkeypatch, EntryPoint("numbers", f"{__name__}:NUMBERS", sources.ENTRY_POINT_GROUP)
        )

    def given(self, folder: Path) -> Any:
        return "numbers:"

    def test_a_refusal_names_it_and_no_name_twice(self) -> None:
        with pytest.raises(DataError, match="accepted: numbers:, hf:NAME, "):
            load_data(42)


def install(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(sources, "entry_points", lambda group: points)
    monkeypatch.setattr(sources, "_installed", sources._installed.__wrapped__)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("absent.module:SOURCE", "importing 'absent.module:SOURCE' failed: ModuleNotFoundError"),
        ("json:dumps", "'json:dumps' is no Source"),
    ],
)
def test_broken_sources_are_named(
    monkeypatch: pytest.MonkeyPatch, point: str, message: str
) -> None:
    install(monkeypatch, EntryPoint("broken", point, sources.ENTRY_POINT_GROUP))
    with pytest.raises(DataError, match=f"data source 'broken': {message}"):
        load_data("digits")


def test_two_sources_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("numbers", f"{__name__}:{name}", sources.ENTRY_POINT_GROUP)
        for name in ("NUMBERS", "of_numbers")
    ]
    install(monkeypatch, *points)
    with pytest.raises(DataError, match="registered twice"):
        load_data("digits")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos.zip", "is a file (.zip) that is not read; unpack it and give the folder"),
        ("photos.tar.gz", "unpack it and give the folder"),
        ("notes.txt", "is a file (.txt) that is not read; accepted: "),
        ("weights.h5", "is a file (.h5) that is not read"),
    ],
)
def test_files_that_are_not_read_are_called_that(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(DataError) as caught:
        load_data(tmp_path / name)
    assert message in str(caught.value)
    assert "unknown" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": "digits", "dev": "digits"}, "has 'dev'"),
        ({"test": (IMAGES, LABELS)}, "but no train"),
        (
            {"train": (IMAGES, LABELS), "test": (IMAGES, LABELS + 1)},
            r"test labels \[2\] are not in the training",
        ),
        (42, "data of type int are not read; accepted: "),
        ("hf:", "must be hf:NAME"),
        (b"bytes", "data of type bytes are not read"),
        ((IMAGES, [None, *NAMES[1:]]), "1 of 24 labels are missing"),
        ((IMAGES, np.where(LABELS == 0, np.nan, 1.0)), "12 of 24 labels are missing"),
        ((IMAGES, [float("nan"), *NAMES[1:]]), "1 of 24 labels are missing"),
        ((IMAGES, np.where(LABELS == 0, " ", "cat")), "12 of 24 labels are missing"),
        ((IMAGES, np.ma.masked_equal(LABELS, 0)), "labels have 12 of 24 values masked"),
        ((np.ma.masked_less(IMAGES, 1), LABELS), "images have [0-9]+ of [0-9]+ values masked"),
        (
            ([np.ma.masked_less(i, 300) for i in IMAGES], LABELS),
            r"pixels of image 0 \(Masked.* have",
        ),
        ((csr_matrix(IMAGES.reshape(24, -1)), LABELS), r"a sparse matrix; give `.toarray\(\)`"),
        ((IMAGES, csr_matrix(LABELS[:, None])), "labels are a sparse matrix"),
        ((torch.tensor(IMAGES).to_sparse(), LABELS), r"torch.sparse_coo; give `.to_dense\(\)`"),
        ((torch.tensor(IMAGES).cfloat(), LABELS), "images must be numbers but are torch.complex64"),
        ((torch.empty(24, 8, 8, device="meta"), LABELS), "without values"),
        ((IMAGES * 1e300, LABELS), "NaN or infinite pixels"),
        ((IMAGES, LABELS / 2), r"12 of 24 are fractions \(0.5, ...\)"),
        ((IMAGES, np.where(LABELS == 0, np.inf, 1.0)), "12 of 24 labels are missing or infinite"),
        ((IMAGES, [1, *NAMES[1:]]), "type int and str"),
        ((iter(IMAGES), LABELS), "must be an array or a list, not"),
        ((pandas.DataFrame(IMAGES.reshape(24, -1)), LABELS), "images are a table of"),
        ((IMAGES, np.eye(2)[LABELS]), r"of one-hot rows give labels.argmax\(1\)"),
        (([*IMAGES[1:], "absent.png"], NAMES), r"image 'absent.png' cannot be read"),
        (
            ([*IMAGES[1:], np.zeros(3)], NAMES),
            r"image 23 \(ndarray\) must be a file, its bytes, a Pillow",
        ),
        (([*IMAGES[1:], IMAGES[0] / 255], NAMES), "pixels of float32, but 23 other images"),
    ],
)
def test_python_objects_refused(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(given)


def test_labels_are_called_as_they_are_meant() -> None:
    """Whole numbers that a missing value, since left out, has made floats; texts from C."""
    assert load_data((IMAGES, LABELS.astype(float))).class_names == ("0", "1")
    assert load_data((IMAGES, np.asarray(NAMES, "S"))).class_names == ("cat", "dog")


def test_images_of_one_bit_are_black_and_white() -> None:
    """As files of one bit a pixel are, in whatever they are given."""
    bits = IMAGES > 99
    for given in (bits, torch.tensor(bits), list(bits)):
        images = load_data((given, LABELS)).train.images
        assert images.dtype == torch.uint8
        assert images.unique().tolist() == [0, 255]


class Twisted(Pairs):
    """Turns its images at random."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = super().__getitem__(index)
        return image.rotate(int(np.random.default_rng().integers(1, 90))), label


class Single(Pairs):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0]


class Listed(Pairs):
    """Lists other labels than it gives, as subsets and wrapped sets do."""

    targets = 1 - LABELS


def test_data_sets_of_torch_that_mislead() -> None:
    with pytest.raises(DataError, match=r"another image each time .* leave random transforms"):
        load_data(Twisted())
    with pytest.raises(DataError, match=r"must give \(image, label\) but gives Image"):
        load_data(Single())
    assert load_data(Listed()).fingerprint() == load_data(Pairs()).fingerprint()


class Named(Pairs):
    classes = ("cat", "dog", "eel")


def test_parts_of_a_set_keep_the_names_of_its_classes() -> None:
    given = Named()
    whole = load_data({"train": Subset(given, range(16)), "test": Subset(given, range(16, 24))})
    assert whole.class_names == ("cat", "dog")  # those that there are
    assert whole.test.targets.tolist() == LABELS[16:].tolist()
    assert load_data(ConcatDataset([given, given])).class_names == ("cat", "dog")
    assert load_data(ConcatDataset([given, Pairs()])).class_names == ("0", "1")


def test_a_set_that_lists_its_files_decodes_none_of_them_itself(tmp_path: Path) -> None:
    opened: list[str] = []

    def loader(path: str) -> Image.Image:
        opened.append(path)
        return Image.open(path).convert("RGB")

    folder = TestFolder().given(tmp_path)
    listed = load_data(ImageFolder(folder, loader=loader))
    assert len(opened) < COUNT  # a few, to see whether the files are the images
    assert listed.fingerprint() == load_data(folder).fingerprint()
    changed = load_data(ImageFolder(folder, transform=lambda image: image.rotate(90)))
    assert changed.fingerprint() != listed.fingerprint()


# --- tables ---


def table(folder: Path, *rows: str, name: str = "t.csv") -> Path:
    files(folder)
    (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return folder / name


def listed(names: Any = NAMES, ending: str = ".png") -> list[str]:
    return [f"{index:02}{ending},{name}" for index, name in enumerate(names)]


def test_columns_are_found_by_their_usual_names(tmp_path: Path) -> None:
    data = load_data(table(tmp_path, "filename,label", *listed()))
    assert data.class_names == ("cat", "dog")
    with pytest.raises(DataError, match=r"unknown column 'lable' \(did you mean 'label'\?\)"):
        load_data(f"{tmp_path / 't.csv'}:filename,lable")
    with pytest.raises(DataError, match="has columns a, b: name those of images and labels"):
        load_data(table(tmp_path, "a,b", *listed()))
    others = [f"{row},1,{index}" for index, row in enumerate(listed())]
    said = "labels are those of column 'label'; not read: Class, fold"
    assert said in str(load_data(table(tmp_path, "filename,label,Class,fold", *others)))
    marked = [f"{row},{index % 2}" for index, row in enumerate(listed())]
    data = load_data(table(tmp_path, "filename,label,is_training_image", *marked))
    assert "not read: is_training_image" in str(data)
    quoted = [row.replace(",cat", ', "cat"') for row in listed()]
    assert load_data(table(tmp_path, "filename,label", *quoted)).class_names == ("cat", "dog")
    (tmp_path / "t.csv").write_bytes("filename,label\n00.png,k\xe4se\n".encode("latin-1"))
    with pytest.raises(DataError, match="it must be in UTF-8"):
        load_data(tmp_path / "t.csv")


def test_whole_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = [("2", "10")[label] for label in LABELS]
    assert load_data(table(tmp_path, "path,label", *listed(names))).class_names == ("2", "10")
    zeros = [("02", "10")[label] for label in LABELS]
    assert load_data(table(tmp_path, "path,label", *listed(zeros))).class_names == ("02", "10")


def test_files_without_endings_and_in_folders_are_found(tmp_path: Path) -> None:
    path = table(tmp_path, "path;label", *(row.replace(",", ";") for row in listed(ending="")))
    (tmp_path / "images").mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(tmp_path / "images" / file.name)
    data = load_data(path)
    assert data.class_names == ("cat", "dog")
    (tmp_path / "other").mkdir()
    (tmp_path / "images" / "00.png").rename(tmp_path / "other" / "03.png")
    with pytest.raises(DataError, match=r"2 of 24 files .* more than one of that name: '00', '03'"):
        load_data(path)


def test_a_column_of_splits(tmp_path: Path) -> None:
    rows = [f"{row},{'Test' if i > 19 else 'TRAIN'}" for i, row in enumerate(listed())]
    data = load_data(table(tmp_path, "path,label,split", *rows))
    assert (len(data.test), data.drawn) == (4, ("validation",))
    folds = [f"{row},{i % 5}" for i, row in enumerate(listed())]
    assert load_data(table(tmp_path, "path,label,fold", *folds)).drawn == ("validation", "test")
    with pytest.raises(DataError, match="column 'fold' must have train, val or test but has '0'"):
        load_data(f"{tmp_path / 't.csv'}:path,label,fold")
    with pytest.raises(DataError, match="'split' must have train, val or test but has 'holdout'"):
        load_data(table(tmp_path, "path,label,split", *rows[:-1], f"{listed()[-1]},holdout"))


def test_rows_without_labels_are_left_out_and_said(tmp_path: Path) -> None:
    rows = ["00.png,", *listed()[1:]]
    data = load_data(table(tmp_path, "path,label", *rows))
    assert "left out: 1 rows without a label" in str(data)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path,label", "00.png,cat,x"], "row 2 has 3 cells but the first one has 2"),
        (["path,label"], "must have a first row of names and rows below it"),
        ([""], "must have a first row of names"),
        (["path,label", "99.png,cat"], "1 of 1 files of column 'path' are not there"),
        (["path,label,label", "00.png,cat,dog"], "has several columns called label"),
    ],
)
def test_tables_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(table(tmp_path, *rows))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"id": 1}, "labels must be one number or string per image"),
        (None, "has no images with labels"),
    ],
)
def test_labels_of_metadata_that_are_none(tmp_path: Path, label: Any, message: str) -> None:
    rows = [json.dumps({"file_name": Path(file).name, "label": label}) for file in files(tmp_path)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


def test_absent_tables_and_files(tmp_path: Path) -> None:
    for name in ("no.csv", "no.csv:path,label", "no.npz", "no/folder"):
        with pytest.raises(DataError, match="does not exist"):
            load_data(str(tmp_path / name))


# --- torchvision's sets of image files ---


def test_a_set_of_files(tmp_path: Path) -> None:
    """DTD lists its files by split."""
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    parts = {"train": range(12), "val": range(12, 18), "test": range(18, COUNT)}
    for split, indices in parts.items():
        names = []
        for index in indices:
            folder = base / "images" / NAMES[index]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(IMAGES[index]).save(folder / f"{index:02}.png")
            names.append(f"{NAMES[index]}/{index:02}.png")
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names))
    data = load_data("dtd", root=tmp_path)
    assert (data.class_names, data.drawn) == (("cat", "dog"), ())
    assert data.test.images.tolist() == IMAGES.transpose(0, 3, 1, 2)[18:].tolist()
    assert data.test.targets.tolist() == LABELS[18:].tolist()


def test_food101(tmp_path: Path) -> None:
    base = tmp_path / "food-101"
    for index, name in enumerate(NAMES):
        (base / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[index]).save(base / "images" / name / f"{index}.jpg")
    (base / "meta").mkdir()
    for split, indices in (("train", range(18)), ("test", range(18, COUNT))):
        listed = {n: [f"{n}/{i}" for i in indices if NAMES[i] == n] for n in ("cat", "dog")}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
    data = load_data("Food101", root=tmp_path)
    assert (len(data.train) + len(data.validation), len(data.test)) == (18, 6)
    assert data.class_names == ("cat", "dog")
