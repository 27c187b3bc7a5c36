"""One image as people have it: the same pixels in training and in predicting, or a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from flatsearch import DataError
from flatsearch.data.images import Form, ImageItems, headers, read_image, suffixes

if TYPE_CHECKING:
    from pathlib import Path

RGB = Form(3, "uint8", 16)
GRAY = Form(1, "uint8", 16)


def picture(size: int = 16) -> Image.Image:
    """Dark, with a bright top half; lighter to the right."""
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels += np.linspace(0, 90, size).astype(np.uint8)[:, None]
    pixels[: size // 2] += 150
    return Image.fromarray(pixels)


def saved(image: Image.Image, file: Path, **options: Any) -> Path:
    image.save(file, **options)
    return file


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0"])
def test_damaged_remarks_of_a_camera_turn_nothing(tmp_path: Path, exif: bytes) -> None:
    """As every viewer does."""
    file = saved(picture(24), tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(file, RGB), read_image(picture(24), RGB))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_photos_are_turned_as_the_camera_says(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = picture(32).crop((0, 0, 32, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(ending, {})
    file = saved(stored, tmp_path / f"a.{ending}", exif=exif, **lossless)
    (known,) = headers([file])
    assert known.size == (24, 32)
    form = Form(3, "uint8", 24)
    read, expected = (read_image(item, form).float() for item in (file, upright))
    assert float((read - expected).abs().mean()) < (8 if ending == "jpg" else 0.01)


def test_the_camera_is_heeded_where_imagemagick_keeps_what_it_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    said = exif.tobytes()
    profile = PngInfo()
    profile.add_text("Raw profile type exif", f"\nexif\n{len(said):8}\n{said.hex()}\n", zip=True)
    stored = picture(32).transpose(Image.Transpose.ROTATE_90)
    file = saved(stored, tmp_path / "a.png", pnginfo=profile)
    read, expected = (read_image(item, Form(3, "uint8", 32)) for item in (file, picture(32)))
    assert torch.equal(read, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "RGBa", "La"])
def test_transparent_parts_are_white(tmp_path: Path, mode: str) -> None:
    """A black disc on nothing, in every kind of transparency, from memory and from a file."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((2, 2, 13, 13), fill=(0, 0, 0, 255))
    item: Any = image
    if mode == "P":
        item = image.quantize(8)
        assert item.has_transparency_data
    elif mode == "PA":
        item = image.quantize(8).convert("PA")
    elif mode in {"LA", "La"}:
        item = image.convert("LA").convert(mode)
    else:
        item = image.convert(mode)
    for form in (GRAY, RGB):
        pixels = read_image(item, form)
        assert pixels.dtype == torch.uint8
        assert pixels[:, 0, 0].tolist() == [255] * form.channels
        assert pixels[:, 8, 8].tolist() == [0] * form.channels
    (known,) = headers([item])
    assert known.transparent


def test_half_transparent_parts_are_half_white() -> None:
    pixels = read_image(Image.new("RGBA", (16, 16), (0, 0, 0, 128)), RGB)
    assert set(pixels.flatten().tolist()) == {127}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"])
def test_colour_modes(mode: str) -> None:
    """A bright and a dark half stay so, in colour and in gray."""
    image = picture().convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB") or image
    elif mode != "RGB":
        image = image.convert(mode)
    (known,) = headers([image])
    assert known.channels == (1 if mode in {"1", "L"} else 3)
    for form in (RGB, GRAY):
        pixels = read_image(image, form).float()
        assert float(pixels[:, :8].mean() - pixels[:, 8:].mean()) > 100


@pytest.mark.parametrize(
    ("array", "pixels"),
    [
        (np.arange(256, dtype=np.uint16).reshape(16, 16) * 257, "uint16"),
        (np.arange(256, dtype=np.float32).reshape(16, 16) / 255 - 0.5, "float32"),
        (np.arange(256, dtype=np.int32).reshape(16, 16) * -1000, "int32"),
    ],
)
def test_deep_images_keep_their_values(
    tmp_path: Path, array: np.ndarray[Any, Any], pixels: str
) -> None:
    file = saved(Image.fromarray(array), tmp_path / "deep.tif")
    (known,) = headers([file])
    assert (known.pixels, known.channels) == (pixels, 1)
    read = read_image(file, Form(1, pixels, 16))
    assert read.dtype == torch.float32
    assert np.array_equal(read[0].numpy(), array.astype(np.float32))
    smaller = read_image(file, Form(1, pixels, 8))
    assert float(smaller.mean()) == pytest.approx(float(array.mean()), rel=0.02, abs=1e-6)
    with pytest.raises(
        DataError, match=f"deep.tif' has pixels of {pixels}, but 1 channel of uint8"
    ):
        read_image(file, GRAY)
    with pytest.raises(DataError, match=f"of uint8, but 1 channel of {pixels} are needed"):
        read_image(picture(), Form(1, pixels, 16))


def test_16_bit_png(tmp_path: Path) -> None:
    array = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    file = saved(Image.fromarray(array), tmp_path / "deep.png")
    assert read_image(file, Form(1, "uint16", 16)).flatten().tolist() == array.flatten().tolist()


def test_not_a_number(tmp_path: Path) -> None:
    file = saved(Image.fromarray(np.full((16, 16), np.nan, np.float32)), tmp_path / "nan.tif")
    with pytest.raises(DataError, match=r"nan.tif' has NaN or infinite pixels"):
        read_image(file, Form(1, "float32", 16))


def test_strips_and_single_pixels() -> None:
    for size in ((4000, 1), (1, 4000), (1, 1)):
        image = Image.new("RGB", size, (10, 20, 30))
        assert read_image(image, RGB).float().mean((1, 2)).tolist() == [10, 20, 30]
        deep = Image.fromarray(np.full(size[::-1], 7, np.uint16))
        assert set(read_image(deep, Form(1, "uint16", 16)).flatten().tolist()) == {7}


def test_large_jpeg_files_are_decoded_small(tmp_path: Path) -> None:
    """Nearly as if they were decoded whole."""
    large = picture(64).resize((1200, 900), Image.Resampling.BICUBIC)
    file = saved(large, tmp_path / "a.jpg", quality=95)
    whole = read_image(Image.open(file), RGB).float()
    assert float((read_image(file, RGB).float() - whole).abs().mean()) < 2


def test_animations_and_pages_are_said(tmp_path: Path) -> None:
    frames = [picture(), Image.new("RGB", (16, 16))]
    items = [
        saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:])
        for name in ("a.gif", "a.tif", "a.webp")
    ]
    assert [known.frames for known in headers([*items, picture()])] == [True] * 3 + [False]
    for item in items:
        assert float(read_image(item, RGB)[:, :8].float().mean()) > 100


def bomb(folder: Path) -> Path:
    return saved(Image.new("1", (14000, 14000)), folder / "scan.png")


def long_text(folder: Path) -> Path:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    return saved(picture(), folder / "text.png", pnginfo=info)


def empty(folder: Path) -> Path:
    (folder / "empty.jpg").touch()
    return folder / "empty.jpg"


def page(folder: Path) -> Path:
    (folder / "page.jpg").write_text("<html>404</html>")
    return folder / "page.jpg"


def cut(folder: Path) -> Path:
    file = saved(picture(), folder / "cut.png")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bomb, "decompression bomb"),
        (long_text, "Decompressed data too large"),
        (empty, "it is empty"),
        (page, "it is no image that Pillow knows"),
        (cut, "truncated"),
        (lambda folder: folder / "absent.png", "No such file"),
        (lambda folder: folder, "directory"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make: Any, message: str) -> None:
    file = make(tmp_path)
    with pytest.raises(DataError) as caught:
        read_image(file, RGB)
    assert f"image {str(file)!r} cannot be read: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_failing_file_is_named(tmp_path: Path) -> None:
    good = saved(picture(), tmp_path / "good.png")
    bad = [empty(tmp_path), page(tmp_path), cut(tmp_path)]
    with pytest.raises(DataError) as caught:
        ImageItems([good, *bad, good], RGB)[:]
    assert [file.name in str(caught.value) for file in (good, *bad)] == [False, True, True, True]
    with pytest.raises(DataError, match=r"; and 5 more$"):
        headers([empty(tmp_path)] * 25)


def test_images_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    file = saved(picture(), tmp_path / "a.png")
    images = ImageItems([file, picture().rotate(180), tmp_path / "absent.png"], RGB)
    assert images.shape == (3, 3, 16, 16)
    assert torch.equal(images[:1], read_image(file, RGB)[None])
    assert torch.equal(images[[1, 0]], images[:2].flip(0))
    assert len(images.take([0])) == 1


def test_formats() -> None:
    for ending in (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"):
        assert ending in suffixes()
    for ending in (".mpg", ".h5", ".pdf", ".eps", ".txt", ".svg"):
        assert ending not in suffixes()
