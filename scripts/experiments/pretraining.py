"""What is gained by beginning a network with weights that were trained on other classes?

    python scripts/experiments/pretraining.py FOLDER

**Protocol**, written before anything was measured. No published weights can be had here, so they
are made: shufflenet_v2_x0_5 of `torchvision_zoo` is trained on half of the classes of FOLDER (a
folder with a folder of images for each class), 1,000 images each, for 12 epochs, and saved as
torchvision saves its weights. On the other classes, of which there are 100 training images each,
the network is trained for 8 epochs by the recipe of a search, from these weights and from a random
draw, with the peak learning rate of the recipe (0.1) and with a tenth of it, with the seeds 0, 1
and 2, and is scored on 200 other images of each class. Reported: the mean accuracy of each of the
four, and its standard error over the seeds. Nothing is chosen by the results.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import torch

from flatsearch import ImageData, RunSettings, load_data, load_space
from flatsearch.spaces.space import Architecture, build_model
from flatsearch.training.evaluation import evaluate
from flatsearch.training.trainer import train

RESULT = Path(__file__).parents[1] / "results" / "pretraining.json"
NETWORK = "shufflenet_v2_x0_5"
ARCHITECTURE = Architecture("torchvision_zoo", {"network": NETWORK})
BASE_EPOCHS, EPOCHS, BASE, FEW, SCORED, SEEDS = 12, 8, 1000, 100, 200, (0, 1, 2)


def images(classes: list[Path], count: int) -> ImageData:
    """Return `count` training images of each class, and `SCORED` others as validation and test."""
    parts = {}
    for split, some in {"train": slice(count), "test": slice(-SCORED, None)}.items():
        found = [(file, place.name) for place in classes for file in sorted(place.iterdir())[some]]
        parts[split] = tuple(map(list, zip(*found, strict=True)))
    return load_data({**parts, "validation": parts["test"]}, normalisation="imagenet")


def trained(space: str, data: ImageData, seed: int, lr: float, epochs: int) -> torch.nn.Module:
    """Return a network after the recipe of a search."""
    torch.manual_seed(seed)
    model = build_model(
        load_space(space),
        ARCHITECTURE,
        in_channels=3,
        num_classes=data.num_classes,
        image_size=data.image_size,
    )
    for _ in train(model, data, RunSettings(epochs=epochs, lr=lr), seed=seed):
        pass
    return model


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    half = len(classes) // 2
    rows = []
    with tempfile.TemporaryDirectory() as place:
        base = images(classes[:half], BASE)
        model = trained("torchvision_zoo", base, 0, 0.1, BASE_EPOCHS)
        weights = f"{place}/weights.pth"
        torch.save(model.state_dict(), weights)
        known = evaluate(model, base.validation)[1]
        data = images(classes[half:], FEW)
        for begin in ("random", "pretrained"):
            own = f",weights={weights}" if begin == "pretrained" else ""
            for lr in (0.1, 0.01):
                space = f"torchvision_zoo,networks={NETWORK}{own}"
                models = [trained(space, data, seed, lr, EPOCHS) for seed in SEEDS]
                found = [evaluate(model, data.validation)[1] for model in models]
                error = statistics.stdev(found) / len(found) ** 0.5
                row = {"begin": begin, "lr": lr, "accuracy": statistics.fmean(found)}
                rows.append({**row, "standard_error": error, "seeds": found})
                print(rows[-1], flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "device": "cpu"}
    result = {"environment": versions, "base_accuracy": known, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
