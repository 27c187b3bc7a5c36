"""The model card that people read, in the format of the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flatsearch.export.classifier import load
from flatsearch.export.formats import random_images
from flatsearch.networks.cost import measure_cost, median_time
from flatsearch.reports.markdown import plain, section
from flatsearch.reports.tables import Table
from flatsearch.reports.text import number, value
from flatsearch.reports.verdicts import searched
from flatsearch.retrain.result import read_results
from flatsearch.spaces.space import Architecture
from flatsearch.spaces.words import short_form
from flatsearch.training.evaluation import Scores, accuracy_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.export.card import ModelCard

__all__ = ["Origin", "card_file", "model_card", "within"]

_README = "README.md"
# Classes that get a row of their own.
_MOST_CLASSES = 50
# An interval that is wider is called wide.
_WIDE = 0.1


class Origin:
    """Where an exported model is from, as far as it is known.

    Args:
        model: The file of the trained model.
        summary: Its study.
        trial: The number of its trial.
        scores: What the exported file did, and on which images, where it was scored itself.
    """

    def __init__(
        self,
        model: Path,
        summary: StudySummary | None = None,
        trial: int | None = None,
        scores: tuple[Scores, str] | None = None,
    ) -> None:
        self.summary, self.trial = summary, trial
        self.final: dict[str, Any] | None = None
        self.own: dict[str, Any] | None = None
        if (results := read_results(model)) is not None:
            self.final, self.own = results
        self.file_scores = scores
        self.scores: tuple[Scores, str] | None = None
        # A number alone, where the search is all that has seen the network.
        self.validated: tuple[float, int] | None = None
        if self.own is not None:
            self.scores = Scores(**self.own["test"]), "test"
        elif summary is not None and trial is not None and summary.validation_images:
            accuracy = summary.trial(trial).metrics.get("accuracy")
            if accuracy is not None:
                self.validated = accuracy, summary.validation_images


def within(accuracy: float, n: int) -> str:
    """Return an accuracy with its interval.

    Example:
        >>> within(0.9, 100)
        '0.900 (95% interval 0.826 to 0.945)'
    """
    low, high = accuracy_interval(accuracy, n)
    return f"{accuracy:.3f} (95% interval {low:.3f} to {high:.3f})"


def card_file(file: Path) -> Path:
    """Return where the card of an exported file goes: to README.md, unless that is another's."""
    readme = file.parent / _README
    if not readme.exists() or f"\n{_title(file)}\n" in readme.read_text(errors="replace"):
        return readme
    return file.with_name(f"{file.name}.md")


def _title(file: Path) -> str:
    return f"# {plain(file.name)} (flatsearch)"


def model_card(file: Path, kind: str, network: nn.Module, card: ModelCard, origin: Origin) -> str:
    """Return the card of an exported model.

    Args:
        file: The exported file.
        kind: Its format.
        network: The network that was exported, on the CPU.
        card: What its file says of it.
        origin: Where it is from.

    Returns:
        Markdown with a heading in YAML.
    """
    size = f"{card.image_size}x{card.image_size}"
    colour = {1: "gray", 3: "colour"}.get(card.in_channels, f"{card.in_channels} channels")
    names = card.class_names
    lines = [
        *_heading(file, kind, card, origin),
        _title(file),
        "",
        f"Tells {len(names)} classes of images apart: {plain(_some(names))}.",
        "",
        "## Use",
        "",
        "```",
        f"flatsearch predict {file.name} IMAGE.jpg",
        f"flatsearch demo {file.name}",
        "```",
        "",
        "```python",
        "import flatsearch",
        "",
        f'flatsearch.load({file.name!r}).predict(["image.jpg"])[0].class_name',
        "```",
        "",
        *_input(kind, card, f"{size}, {colour}"),
        "## Data",
        "",
        f"{plain(_data(card, origin))}",
        "",
        "## Accuracy",
        "",
        *_accuracy(origin, names),
        "## Size and speed",
        "",
        *_costs(file, network, card),
        "## How it was made",
        "",
        *_made(card, origin),
        "## Limits",
        "",
        *(f"- {limit}" for limit in _limits(card, origin)),
    ]
    text = "\n".join(lines) + "\n"
    # Where the images lie here is nobody else's business.
    own = Path(card.data).name if Path(card.data).exists() else card.data
    return text.replace(card.data, own).replace(plain(card.data), plain(own))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_CLASSES]) + (", ..." if len(names) > _MOST_CLASSES else "")


def _data(card: ModelCard, origin: Origin) -> str:
    if origin.final is not None and origin.final.get("data"):
        return str(origin.final["data"]).removeprefix("data ")
    return f"{card.data}; how many images is not on record."


def _heading(file: Path, kind: str, card: ModelCard, origin: Origin) -> list[str]:
    """Return the part that the Hub reads. Texts of JSON are texts of YAML."""
    tags = ["image-classification", "neural-architecture-search", "flatsearch"]
    tags.append("onnx" if kind.startswith("onnx") else "pytorch")
    lines = ["---", "library_name: flatsearch", "pipeline_tag: image-classification"]
    lines += ["tags:", *(f"- {tag}" for tag in tags), "metrics:", "- accuracy"]
    scored = origin.file_scores or origin.scores
    found = None
    if scored is not None:
        found = scored[0].accuracy, scored[1]
    elif origin.validated is not None:
        found = origin.validated[0], "validation"
    if found is not None:
        result: dict[str, Any] = {
            "task": {"type": "image-classification"},
            "dataset": {"type": card.data, "name": card.data, "split": found[1]},
            "metrics": [{"type": "accuracy", "value": round(found[0], 6)}],
        }
        lines.append(f"model-index: {json.dumps([{'name': file.stem, 'results': [result]}])}")
    return [*lines, "---", ""]


def _input(kind: str, card: ModelCard, form: str) -> list[str]:
    mean, std = (", ".join(f"{x:.4g}" for x in numbers) for numbers in (card.mean, card.std))
    where = "is done inside of the file" if kind != "state_dict" else "is done before the network"
    return [
        f"Input: pixels as stored ({card.pixels}) of the middle square, resized to {form};"
        f" the normalisation (less {mean}, over {std}) {where}. Output: a logit for each class.",
        "",
    ]


def _accuracy(origin: Origin, names: Sequence[str]) -> list[str]:
    """Return the accuracy with its interval, and by class."""
    lines = []
    if origin.file_scores is not None:
        scores, split = origin.file_scores
        n = scores.n_samples
        lines.append(f"This file on {n} {split} images: {within(scores.accuracy, n)}.")
    if origin.scores is not None:
        scores = origin.scores[0]
        n, what = scores.n_samples, "The float model" if lines else "Accuracy"
        lines.append(
            f"{what} on {n} test images, which nothing was trained on or chosen by:"
            f" {within(scores.accuracy, n)}; mean over classes {scores.balanced_accuracy:.3f},"
            f" mean cross-entropy {scores.loss:.3f}, calibration"
            f" error {scores.calibration_error:.3f}."
        )
    elif origin.validated is not None:
        lines.append(
            f"The float model on {origin.validated[1]} validation images:"
            f" {within(*origin.validated)}. It was chosen by them, so expect less;"
            " `flatsearch train` trains it to the end and tests it."
        )
    if not lines:
        lines.append("Not on record.")
    lines = [line for text in lines for line in (text, "")]
    shown = origin.file_scores or origin.scores
    title = "This file, class by class" if origin.file_scores else ""
    return lines if shown is None else lines + section(_by_class(title, shown[0], names))


def _by_class(title: str, scores: Scores, names: Sequence[str]) -> Table:
    rows = []
    for i, counts in enumerate(scores.confusion[:_MOST_CLASSES]):
        total, others = sum(counts), [*counts]
        others[i] = 0
        worst = max(range(len(counts)), key=others.__getitem__)
        right = f"{counts[i] / total:.3f}" if total else "-"
        taken = f"{names[worst]} ({others[worst]})" if others[worst] else "-"
        rows.append((names[i], str(total), right, taken))
    heads = ("class", "images", "of them right", "most often taken for")
    return Table(title, heads, tuple(rows), len(names) - len(rows))


def _costs(file: Path, network: nn.Module, card: ModelCard) -> list[str]:
    classifier, image = load(file), random_images(card, 1)
    latency = median_time(lambda: classifier(image))
    cost = measure_cost(network, card.in_channels, card.image_size)
    threads = torch.get_num_threads()
    rows = {
        "file": value("memory", file.stat().st_size),
        "parameters": number(cost["parameters"]),
        "floating-point operations of one image": number(cost["flops"]),
        "memory of one image's activations": value("memory", cost["memory"]),
        f"time for one image (CPU, threads: {threads}, where it was exported)": value(
            "latency", latency
        ),
    }
    return section(Table("", ("", ""), tuple(rows.items())))


def _made(card: ModelCard, origin: Origin) -> list[str]:
    architecture = short_form(Architecture.from_json(card.architecture).values)
    lines = [f"Architecture of `{card.space}`: {plain(architecture)}.", ""]
    if origin.summary is not None:
        lines += [plain(searched(origin.summary)), ""]
        lines += [f"This is trial {origin.trial}.", ""]
    if origin.final is not None and origin.own is not None:
        text = f"Trained anew for {origin.final['epochs']} epochs, seed {origin.own['seed']}"
        networks = len(origin.final["seeds"])
        text += f", the best of {networks} networks" if networks > 1 else ""
        if origin.own["flatness"] is not None:
            text += (
                f"; relative flatness of one convolution {origin.own['flatness']:.3g}"
                f" (standard error {origin.own['flatness_error']:.2g})"
            )
        lines += [f"{text}.", ""]
        if origin.final["earlier"]:
            looks = len(origin.final["earlier"]) + 1
            lines += [f"The test images had been looked at {looks} times by then.", ""]
    return lines


def _limits(card: ModelCard, origin: Origin) -> list[str]:
    """Return what the model does not do, a sentence each."""
    found = [
        f"It answers with one of its {card.num_classes} classes whatever it is shown.",
        "It sees the middle square of an image,"
        f" {card.image_size} pixels a side: small things and what is at the edge are lost.",
        "It was tested on images of the same source only; others may differ in light, camera and"
        " background.",
    ]
    shown = origin.file_scores or origin.scores
    if shown is not None:
        scores, split = shown
        low, high = accuracy_interval(scores.accuracy, scores.n_samples)
        if high - low > _WIDE:
            found.append(
                f"{scores.n_samples} {split} images are few: its accuracy is known within"
                f" {100 * (high - low):.0f} percentage points only."
            )
        rare = [card.class_names[i] for i, row in enumerate(scores.confusion) if sum(row) < 10]
        if rare:
            found.append(f"Fewer than 10 {split} images each: {plain(_some(rare))}.")
    return found
