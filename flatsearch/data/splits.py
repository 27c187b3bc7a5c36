"""Splits of images that live on the device, and the light augmentation of training batches."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flatsearch.data.stored import StoredImages, in_chunks, n_bytes, read_ahead
from flatsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["IMAGENET", "Augmentation", "ImageData", "Split"]

# Mean and standard deviation of ImageNet's colours, from 0 to 1.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_SPLITS = ("train", "validation", "test", "probe")
# Classes that are named in the line about a data set.
_MOST_NAMED = 5


@dataclass(frozen=True)
class Augmentation:
    """Light augmentation of training batches.

    Attributes:
        padding: Pixels of zero padding before a random crop back to size; 0 for no crop.
        flip: Mirror half of the images left to right.
    """

    padding: int
    flip: bool

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a randomly cropped and mirrored copy of normalised images (N, C, H, W).

        Random numbers are drawn where the generator is.
        """
        n, _, height, width = x.shape
        where = generator.device
        if self.padding:
            padded = torch.nn.functional.pad(x, [self.padding] * 4)
            top, left = torch.randint(
                0, 2 * self.padding + 1, (2, n), generator=generator, device=where
            )
            rows = (top[:, None] + torch.arange(height, device=where)).to(x.device)
            columns = (left[:, None] + torch.arange(width, device=where)).to(x.device)
            samples = torch.arange(n, device=x.device)
            x = padded.permute(0, 2, 3, 1)[
                samples[:, None, None], rows[:, :, None], columns[:, None, :]
            ].permute(0, 3, 1, 2)
        if self.flip:
            mirrored = (torch.rand(n, generator=generator, device=where) < 0.5).to(x.device)
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x.contiguous()


@dataclass(frozen=True)
class Split:
    """Images and targets of one split.

    Attributes:
        images: (N, C, H, W), as stored: uint8 or float32. They may be in the host's memory, or in a
            file, where they are too large for the device; all that the methods return is on it.
        targets: (N,), int64.
        mean: Per-channel mean of the training images, (1, C, 1, 1).
        std: Per-channel standard deviation of the training images, (1, C, 1, 1).
    """

    images: Tensor | StoredImages
    targets: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all (normalised float32 inputs, targets)."""
        return self._normalise(self.pixels()), self.targets

    def pixels(self) -> Tensor:
        """Return all images as they are stored."""
        return self.images[:].to(self.targets.device)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        augment: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (normalised inputs, targets).

        Args:
            batch_size: Images per batch; the last batch may be smaller.
            generator: Shuffles the images; in order where None.
            augment: Applied to every batch; needs a generator.

        Yields:
            Batches on the split's device.
        """
        n, device = len(self), self.targets.device
        starts = range(0, n, batch_size)
        indices: list[Any] = [slice(start, start + batch_size) for start in starts]
        there = indices
        if generator is not None:
            order = torch.randperm(n, generator=generator, device=generator.device).to(device)
            host = order if self._resident else order.cpu()
            there = [host[part] for part in indices]
            indices = [order[part] for part in indices]
        for index, images in zip(indices, self._read(there), strict=True):
            x = self._normalise(images)
            if augment is not None and generator is not None:
                x = augment(x, generator)
            yield x, self.targets[index]

    @property
    def _resident(self) -> bool:
        return self.images.device == self.targets.device

    def _read(self, indices: Sequence[slice | Tensor]) -> Iterator[Tensor]:
        """Yield the images at indices, which are where the images are."""
        if self._resident:
            yield from (self.images[index] for index in indices)
            return
        device, pinned = self.targets.device, self.targets.device.type == "cuda"

        def read(index: slice | Tensor) -> Tensor:
            return self.images[index].pin_memory() if pinned else self.images[index]

        for images in read_ahead(read, indices):
            yield images.to(device, non_blocking=True)

    def parts(self, size: int) -> Iterator[Split]:
        """Yield the split in parts of at most so many images, in order."""
        for start in range(0, len(self), size):
            yield self.at(slice(start, start + size))

    def at(self, index: slice | Tensor) -> Split:
        """Return the images at indices, with their targets."""
        there = index.cpu() if isinstance(index, Tensor) and not self._resident else index
        images = self.images[there].to(self.targets.device)
        return dataclasses.replace(self, images=images, targets=self.targets[index])

    def sample(self, n: int, seed: int) -> Split:
        """Return n images drawn by a seed, in their order; all of them where there are fewer."""
        generator = torch.Generator().manual_seed(seed)
        return self.at(torch.randperm(len(self), generator=generator)[:n].sort().values)

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std

    def to(self, device: torch.device | str, *, images: bool = True) -> Split:
        """Return the split on a device; its images only if so asked, and never from a file."""
        moved = (
            self.images.to(device) if images and isinstance(self.images, Tensor) else self.images
        )
        targets, mean, std = (part.to(device) for part in (self.targets, self.mean, self.std))
        return Split(moved, targets, mean, std)


@dataclass(frozen=True)
class ImageData:
    """A data set for a search.

    Attributes:
        name: How it was asked for.
        class_names: One per class.
        train: Trained on.
        validation: Scores candidates.
        test: Read once, by the final training.
        probe: A fixed part of `train` on which flatness is measured.
        may_flip: A mirrored image still is of its class.
        note: What was done to the images, for the user; may be empty.
        pixels: Type of the stored values: "uint8" for 0 to 255, else "float32", or "uint16" or
            "int32" of deeper files.
        drawn: The splits that the source does not have.
        remarks: What was left out and what is odd, for the user.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    probe: Split
    may_flip: bool
    note: str = ""
    pixels: str = "uint8"
    drawn: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say in one line what was read: images, splits, sizes, classes, what was left out."""
        splits = (self.train, self.validation, self.test)
        counts = torch.stack([
            torch.bincount(s.targets.cpu(), minlength=self.num_classes) for s in splits
        ]).sum(0)
        least, most = int(counts.argmin()), int(counts.argmax())
        names = self.class_names
        listed = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
        classes = f"{len(names)} classes ({listed}) of {int(counts[least])}"
        if counts[least] < counts[most]:
            classes += f" ({names[least]}) to {int(counts[most])} ({names[most]})"
        shape = f"{self.in_channels}x{self.image_size}x{self.image_size}"
        if self.pixels != "uint8":
            ends = [torch.stack(images.aminmax()) for images in in_chunks(self.train.images)]
            low, high = (float(f(torch.stack(ends))) for f in (torch.amin, torch.amax))
            shape += f" {self.pixels} from {low:g} to {high:g}"
        drawn = f" ({' and '.join(self.drawn)} drawn)" if self.drawn else ""
        numbers = [len(split) for split in splits]
        note = f" ({self.note})" if self.note else ""
        line = (
            f"data {self.name}: {numbers[0]} training, {numbers[1]} validation and {numbers[2]}"
            f" test images{drawn}, {shape}{note}, {classes} images"
        )
        return " ".join("; ".join([line, *self.remarks]).split())

    __repr__ = __str__

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        """Height and width of an image."""
        return int(self.train.images.shape[2])

    def merged(self, other: Literal["validation", "test"] = "validation") -> ImageData:
        """Return the data with the images of another split among the training images."""
        split: Split = getattr(self, other)
        a, b = self.train.images, split.images
        images: Tensor | StoredImages
        if isinstance(a, StoredImages) and isinstance(b, StoredImages):
            images = a.joined(b)
        else:
            images = torch.cat([a[:], b[:]])
        targets = torch.cat([self.train.targets, split.targets])
        whole = dataclasses.replace(self.train, images=images, targets=targets)
        return dataclasses.replace(self, train=whole)

    def guessing_accuracy(self) -> float:
        """Return what is clearly better than always guessing the most frequent class.

        Returns:
            Its share p of the n validation images and three standard errors, p + 3 sqrt(p(1-p)/n),
            as an accuracy; at most halfway between p and 1.
        """
        counts = torch.bincount(self.validation.targets, minlength=self.num_classes)
        n = int(counts.sum())
        share = int(counts.max()) / n
        margin: float = 3 * (share * (1 - share) / n) ** 0.5
        return share + min(margin, (1 - share) / 2)

    def guessing_balanced_accuracy(self) -> float:
        """Return what is clearly better than guessing where every class counts as much.

        Returns:
            For K classes with n_k validation images each, 1/K and three standard errors of a guess
            at random, 3/K sqrt(sum_k (1/K)(1 - 1/K) / n_k), as a balanced accuracy; at most
            halfway between 1/K and 1.
        """
        counts = torch.bincount(self.validation.targets, minlength=self.num_classes)
        there = counts[counts > 0].double()
        share = 1 / len(there)
        margin = 3 * share * float((share * (1 - share) / there).sum()) ** 0.5
        return share + min(margin, (1 - share) / 2)

    def normalised(self, kind: str | None) -> ImageData:
        """Return the data with other numbers that pixels are normalised by.

        Args:
            kind: "imagenet" for those that published weights of torchvision were trained with (of
                gray images their means over the colours); None or "data" for these images' own.

        Raises:
            DataError: If the images have other pixels than published weights are for.
        """
        if kind in {None, "data"}:
            return self
        if self.pixels != "uint8" or self.in_channels not in {1, 3}:
            raise DataError(
                "normalising as for ImageNet is for gray or RGB images of 8 bits, but data"
                f" {self.name!r} has {self.in_channels} channels of {self.pixels}"
            )
        mean, std = (255 * torch.tensor(v, device=self.train.mean.device) for v in IMAGENET)
        if self.in_channels == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        numbers = {"mean": mean.view(1, -1, 1, 1), "std": std.view(1, -1, 1, 1)}
        splits = {n: dataclasses.replace(getattr(self, n), **numbers) for n in _SPLITS}
        return dataclasses.replace(self, **splits)

    def to(self, device: torch.device | str) -> ImageData:
        """Return the data with every split on a device.

        Images that would take more than half of what is free on a GPU stay where they are; their
        batches are moved.
        """
        where = torch.device(device)
        splits: dict[str, Any] = {name: getattr(self, name) for name in _SPLITS}
        images = [split.images for split in splits.values() if split.images.device != where]
        fit = where.type != "cuda" or 2 * n_bytes(images) <= torch.cuda.mem_get_info(where)[0]
        moved = {n: split.to(where, images=fit or n == "probe") for n, split in splits.items()}
        return dataclasses.replace(self, **moved)

    def save(self, file: Path) -> None:
        """Write the data to a file, for other processes of this machine."""
        torch.save(self.to("cpu"), file)

    @staticmethod
    def load(file: Path) -> ImageData:
        """Return data that `save` wrote; all processes share one copy of it in memory.

        Args:
            file: From a process that is trusted.
        """
        loaded: ImageData = torch.load(file, mmap=True, weights_only=False)
        return loaded

    def augmentation(self, kind: str) -> Augmentation | None:
        """Return the augmentation a setting stands for.

        Args:
            kind: "none", "crop", "crop+flip", or "auto": crop, and flip where that is harmless.

        Returns:
            None for "none".
        """
        if kind == "none":
            return None
        flip = self.may_flip if kind == "auto" else kind == "crop+flip"
        return Augmentation(padding=max(1, self.image_size // 8), flip=flip)

    def fingerprint(self) -> str:
        """Return a hash of the training and validation images and targets.

        Returns:
            Twelve hex digits; equal for equal data and splits, wherever they were read from.
        """
        digest = hashlib.blake2b(digest_size=6)
        for split in (self.train, self.validation):
            for part in (split.images, split.targets):
                digest.update(str(tuple(part.shape)).encode())
                for chunk in in_chunks(part):
                    digest.update(chunk.cpu().numpy().tobytes())
        return digest.hexdigest()
