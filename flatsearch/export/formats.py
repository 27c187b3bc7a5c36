"""Exporting a trained model: a `torch.export` program, ONNX, or a plain state dictionary.

The first two take pixel values as they are stored (0 to 255 for ordinary images) and hold the
normalisation, the class names and everything else of the model card, so that they are used without
flatsearch, the search space or the study.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatsearch.errors import FlatsearchError, UsageError, unknown_name
from flatsearch.export.card import METADATA, STATE_DICT, ModelCard
from flatsearch.export.classifier import load
from flatsearch.networks.onnx import quantise, to_onnx

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatsearch.data.splits import Split

__all__ = [
    "FORMATS",
    "Deployed",
    "choose_format",
    "export_model",
    "random_images",
    "require_onnx",
]

# Format: ending.
FORMATS = {"pt2": ".pt2", "onnx": ".onnx", "onnx-int8": "-int8.onnx", "state_dict": STATE_DICT}
_TOLERANCE = 1e-4
_CHECKED_IMAGES = 16
# Training images that show what range the numbers inside of a network have.
_CALIBRATION = 256


class Deployed(nn.Module):
    """A network with the normalisation of its images, as on its card, in front."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network = network
        # Some versions of torch's ONNX exporter call the result of an operation "mean", too.
        self.register_buffer("pixel_mean", torch.tensor(card.mean).view(1, -1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(card.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of pixel values (N, C, H, W), float32."""
        logits: Tensor = self.network((images - self.pixel_mean) / self.pixel_std)
        return logits


def random_images(card: ModelCard, n: int, seed: int = 0) -> Tensor:
    """Return random pixel values (n, C, H, W) in the range that a model was trained on."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, card.in_channels, card.image_size, card.image_size)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (card.mean, card.std))
    images = mean + std * torch.randn(shape, generator=generator)
    return images.round().clamp(0, 255) if card.pixels == "uint8" else images


def choose_format(kind: str | None, out: str | Path | None) -> str:
    """Return the format to export in: as given, of the file's ending, or "pt2".

    Raises:
        UsageError: If the format or the ending is unknown, or they disagree.

    Example:
        >>> [choose_format(None, out) for out in ("model.onnx", "model-int8.onnx", None)]
        ['onnx', 'onnx-int8', 'pt2']
    """
    if kind is not None and kind not in FORMATS:
        raise UsageError(unknown_name("format", kind, FORMATS))
    if out is None:
        return kind or "pt2"
    # The longest ending first: an int8 file is ONNX, too.
    fitting = [name for name, ending in FORMATS.items() if str(out).endswith(ending)]
    if kind is None and not fitting:
        known = ", ".join(dict.fromkeys(_suffix(name) for name in FORMATS))
        raise UsageError(f"`out` {str(out)!r} has no known ending ({known}); give `format`")
    if kind is not None and Path(out).suffix != _suffix(kind):
        raise UsageError(f"a {kind} file ends in {_suffix(kind)}, but `out` is {str(out)!r}")
    return kind or max(fitting, key=lambda name: len(FORMATS[name]))


def _suffix(kind: str) -> str:
    return Path(f"x{FORMATS[kind]}").suffix


def export_model(
    network: nn.Module,
    card: ModelCard,
    kind: str,
    path: str | Path,
    *,
    train: Split | None = None,
    force: bool = False,
) -> float:
    """Export a trained model, and check that the file computes the same.

    With the weights and activations of 8 bits of "onnx-int8" it does not quite: score the file.

    Args:
        network: From `load_model`.
        card: Its card.
        kind: From `FORMATS`; "state_dict" also writes the card, as JSON beside it.
        path: The file to write.
        train: The training images, which "onnx-int8" is calibrated on.
        force: Overwrite it.

    Returns:
        The largest difference of the file's logits from the model's, on 16 random images; at most
        1e-4, or 1e-4 of the largest logit where that is over 1, but of "onnx-int8".

    Raises:
        FlatsearchError: If the exporter fails, or the file computes something else.
        UsageError: If the format is unknown, the file exists, or a package is missing.

    Example:
        >>> import flatsearch, optuna
        >>> space = flatsearch.load_space("resnet_small")
        >>> architecture = space.suggest(optuna.create_study().ask())
        >>> card = ModelCard.of(flatsearch.load_data("digits"), "resnet_small", architecture)
        >>> model = space.build(architecture, in_channels=1, num_classes=10, image_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_model(model.eval(), card, "state_dict", Path(folder) / "model.pth")
        0.0
    """
    path = Path(path)
    writers: dict[str, Callable[[Deployed, ModelCard, Path], None]] = {
        "pt2": _write_pt2,
        "onnx": _write_onnx,
        "onnx-int8": lambda model, card, path: _write_int8(model, card, path, train),
        "state_dict": _write_state_dict,
    }
    if kind.startswith("onnx"):
        require_onnx()
    if kind not in writers:
        raise UsageError(unknown_name("format", kind, FORMATS))
    targets = [path, path.with_suffix(".json")] if kind == "state_dict" else [path]
    for target in targets:
        if target.exists() and not force:
            raise UsageError(f"{str(target)!r} exists; `force` overwrites it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {str(path.parent)!r} of the file to write does not exist")
    network = network.cpu().eval()
    # Written apart, checked, and only then moved into place.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        parts = [Path(folder) / target.name for target in targets]
        try:
            writers[kind](Deployed(network, card).eval(), card, parts[0])
        except UsageError:
            raise
        except Exception as error:  # exporters fail in any way on what they do not know
            reason = " ".join(str(error).split())[:300]
            raise FlatsearchError(
                f"the model cannot be exported as {kind}: {type(error).__name__}: {reason}"
            ) from error
        difference, largest = _difference(network, card, parts[0])
        if kind != "onnx-int8" and not difference <= _TOLERANCE * max(1.0, largest):
            raise FlatsearchError(
                f"the {kind} file gives other logits than the model, by up to {difference:.2g};"
                " nothing was written"
            )
        for part, target in zip(parts, targets, strict=True):
            part.replace(target)
    return difference


def _difference(network: nn.Module, card: ModelCard, file: Path) -> tuple[float, float]:
    """Return the largest difference of a file's logits from the model's, and the largest logit."""
    images = random_images(card, _CHECKED_IMAGES)
    with torch.no_grad():
        wanted = network(card.normalise(images))
        found = load(file)(images)
    return float((wanted - found).abs().max()), float(wanted.abs().max())


def _write_pt2(model: Deployed, card: ModelCard, path: Path) -> None:
    example = (random_images(card, 2),)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, example, dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files={METADATA: card.to_json()})


def require_onnx() -> None:
    """Refuse to go on where a package that ONNX needs is missing.

    Raises:
        UsageError: If one is; names it and the extra that brings it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise UsageError(
            f"ONNX needs the package {error.name!r}: pip install 'flatsearch[onnx]'"
        ) from None


def _write_onnx(model: Deployed, card: ModelCard, path: Path) -> None:
    _save_onnx(to_onnx(model, random_images(card, 2)), card, path)


def _write_int8(model: Deployed, card: ModelCard, path: Path, train: Split | None) -> None:
    if train is None:
        raise UsageError("onnx-int8 is calibrated on training images: give `train`")
    images = train.sample(_CALIBRATION, seed=0).pixels().float().cpu().numpy()
    _save_onnx(quantise(to_onnx(model, random_images(card, 2)), images), card, path)


def _save_onnx(proto: Any, card: ModelCard, path: Path) -> None:
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, card.to_json()
    path.write_bytes(proto.SerializeToString())


def _write_state_dict(model: Deployed, card: ModelCard, path: Path) -> None:
    torch.save(dict(model.network.state_dict()), path)
    path.with_suffix(".json").write_text(card.to_json() + "\n")
