"""Using a trained model: `flatsearch.load` gives it back, whatever it was saved as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatsearch.data.images import Form, ImageItems
from flatsearch.data.values import plain
from flatsearch.errors import UsageError
from flatsearch.export.card import METADATA, STATE_DICT, ModelCard
from flatsearch.export.checkpoint import build_from_card, load_model
from flatsearch.export.programs import read_program
from flatsearch.spaces.weights import read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flatsearch.data.images import Item

__all__ = ["Classifier", "Prediction", "load"]

_BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes:
        class_name: The most probable class.
        probability: Of it.
        probabilities: Of every class by name, most probable first.
    """

    class_name: str
    probability: float
    probabilities: dict[str, float]


class Classifier:
    """A trained model, ready to use on the CPU.

    Attributes:
        card: Image size, channels, class names, normalisation, architecture.
        module: The network as a module, in eval mode; None for ONNX.

    Example:
        >>> classifier = load("model.pt2")  # doctest: +SKIP
        >>> classifier.predict(["five.png"])[0].class_name  # doctest: +SKIP
        '5'
    """

    def __init__(
        self, card: ModelCard, run: Callable[[Tensor], Tensor], module: nn.Module | None
    ) -> None:
        self.card = card
        self.module = module
        self._run = run

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per logit."""
        return self.card.class_names

    def __call__(self, images: Any) -> Tensor:
        """Return the logits (N, K) of images.

        Args:
            images: Pixel values as stored, 0 to 255 for ordinary images: a tensor or array
                (N, C, H, W) of any number type.

        Returns:
            Float32 logits on the CPU.

        Raises:
            UsageError: If the images have another shape than those trained on.
            DataError: If some of their values are masked, say, or not numbers.
        """
        x = torch.as_tensor(plain(images, "images")).float()
        card = self.card
        wanted = (card.in_channels, card.image_size, card.image_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != wanted:
            shape = ", ".join(map(str, wanted))
            raise UsageError(f"images must have shape (N, {shape}) but have {tuple(x.shape)}")
        with torch.no_grad():
            parts = [self._run(x[i : i + _BATCH]) for i in range(0, len(x), _BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, card.num_classes)

    def read(self, files: Sequence[str | Path]) -> Tensor:
        """Return the pixel values of image files, cropped and resized as in training.

        Raises:
            DataError: If a file cannot be read, or has other pixels than the model was trained on.
        """
        return self.items(files)[:]

    def items(self, files: Sequence[Item]) -> ImageItems:
        """Return image files, or what else `flatsearch.data.images` takes, as yet unread."""
        card = self.card
        return ImageItems(files, Form(card.in_channels, card.pixels, card.image_size))

    def predict(self, images: Any) -> list[Prediction]:
        """Return a prediction for each of image files, or of pixel values as for calling."""
        if isinstance(images, (list, tuple)) and all(isinstance(i, (str, Path)) for i in images):
            images = self.read(images)
        found = []
        for row in self(images).softmax(1):
            order = row.argsort(descending=True).tolist()
            named = {self.class_names[i]: float(row[i]) for i in order}
            first = self.class_names[order[0]]
            found.append(Prediction(first, named[first], named))
        return found


def load(path: str | Path) -> Classifier:
    """Return a model that flatsearch saved or exported, ready to use.

    `.pt2` and `.onnx` files need nothing else. A model file of a search or a final training, and a
    `.pth` state dictionary with its `.json` beside it, are rebuilt by their search space.

    Raises:
        UsageError: If the file is missing, damaged, of a newer version, or not one of these; also
            if it needs a search space that is not installed or builds another model now.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"model file {str(path)!r} does not exist")
    if path.suffix == ".pt2":
        module, text = read_program(path)
        card = ModelCard.from_json(text, path)
        return Classifier(card, _naming(module, card, path), module)
    if path.suffix == ".onnx":
        return _load_onnx(path)
    if path.suffix == STATE_DICT:
        beside = path.with_suffix(".json")
        if not beside.is_file():
            raise UsageError(f"{str(path)!r} needs {beside.name!r} beside it, which is missing")
        card = ModelCard.from_json(beside.read_bytes(), beside)
        network = build_from_card(card, read_tensors(path, "a state dictionary"), path)
    else:
        network, card = load_model(path)
    return Classifier(card, lambda x: network(card.normalise(x)), network)


def _load_onnx(path: Path) -> Classifier:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"ONNX needs {error.name}: pip install 'flatsearch[onnx]'") from None
    try:
        # Earlier versions of onnxruntime would read any file that is named there.
        if _is_elsewhere(onnx.load(str(path), load_external_data=False)):
            raise UsageError(f"{str(path)!r} has weights in other files, which are not read")
        silent = onnxruntime.SessionOptions()
        silent.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(path), silent, ["CPUExecutionProvider"])
        (name,) = (node.name for node in session.get_inputs())
    except UsageError:
        raise
    except Exception as error:  # its exceptions have no common class
        raise UsageError(
            f"{str(path)!r} cannot be read by onnxruntime: {type(error).__name__}"
        ) from None
    card = ModelCard.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA), path)

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return Classifier(card, _naming(run, card, path), None)


def _is_elsewhere(message: Any) -> bool:
    """Return whether any tensor in a part of an ONNX model is in another file."""
    if getattr(message, "external_data", None):
        return True
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = [value] if hasattr(value, "ListFields") else value
            if any(map(_is_elsewhere, parts)):
                return True
    return False


def _naming(
    run: Callable[[Tensor], Any], card: ModelCard, path: Path
) -> Callable[[Tensor], Tensor]:
    """Return a function that names the file where its program fails, or gives no logits."""

    def named(x: Tensor) -> Tensor:
        try:
            logits = run(x)
        except Exception as error:  # a damaged program can fail in any way
            raise UsageError(f"{str(path)!r} cannot be run: {type(error).__name__}") from None
        wanted = (len(x), card.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            raise UsageError(f"{str(path)!r} gives something else than logits of shape {wanted}")
        return logits

    return named
