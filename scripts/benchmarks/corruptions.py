"""Damage files in a thousand ways: each is read, or refused by one error that names the file.

    python scripts/benchmarks/corruptions.py [--corruptions 1000] [--seed 0]

An image (PNG, JPEG), a data set (.npz) and a tiny network in every format are written, damaged by a
seeded generator and read as `flatsearch predict` and `flatsearch measure` read them. Bits, bytes,
blocks and lengths are changed, of archives every second time before they are packed, so that their
checksums are right; now and then all of it is a pickle that calls a function. A fault is any other
exception, an error that does not name the file, anything on the screen, a class that is unpickled,
and a file that is written anywhere. The result is scripts/results/corruptions.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from PIL import Image

import flatsearch
from flatsearch.data.images import Form, ImageItems
from flatsearch.export.formats import export_model, random_images
from flatsearch.export.programs import load_exported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESULT = Path(__file__).parents[1] / "results" / "corruptions.json"
NAMES = (
    "image.png", "image.jpg", "data.npz", "model.pt", "model.pth", "model.json", "model.pt2",
    "model.onnx",
)  # fmt: skip
# A pickle that calls a function.
CALL = b"cos\ngetcwd\n(tR."
# What Python tells of while a file is read.
events: list[str] | None = None


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what no file may cause."""
    if events is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in {"pickle.find_class", "os.system", "subprocess.Popen", "socket.connect"}:
        events.append(f"{event} {arguments[:2]}")


sys.addaudithook(audit)


def write_files(folder: Path, names: Sequence[str] = NAMES) -> None:
    """Write one file of every kind, networks those that are named."""
    digits = flatsearch.load_data("digits")
    space = flatsearch.load_space("plain_cnn")
    params = {"width": 8, "stages": 1, "convs_1": 1, "kernel": 3, "activation": "relu"}
    architecture = space.suggest(optuna.trial.FixedTrial(params))
    torch.manual_seed(0)
    model = space.build(architecture, in_channels=1, num_classes=10).eval()
    card = flatsearch.ModelCard.of(digits, "plain_cnn", architecture)
    for name in {"model.pth", "model.pt2", "model.onnx"} & set(names):
        kind = "state_dict" if name == "model.pth" else name.rpartition(".")[2]
        export_model(model, card, kind, folder / name)
    flatsearch.save_model(model, card, folder / "model.pt")
    images = digits.train.images[:40].numpy()
    np.savez_compressed(folder / "data.npz", images=images, labels=np.arange(40) % 4)
    for name in ("image.png", "image.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)).save(
            folder / name
        )


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a file's bytes with some damage."""
    changed = bytearray(content)
    place = chance.randrange(len(changed))
    length = min(chance.choice((1, 2, 4, 16, 256)), len(changed) - place)
    block = slice(place, place + length)
    match chance.randrange(6):
        case 0:
            for _ in range(chance.choice((1, 1, 2, 8, 64))):
                changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        case 1:
            changed[block] = chance.randbytes(length)
        case 2:
            changed[block] = bytes(length)
        case 3:
            del changed[block]
        case 4:
            changed[place:place] = chance.choice((chance.randbytes(length), changed[block]))
        case _:
            del changed[place:]
    return bytes(changed)


def corruption(content: bytes, chance: random.Random) -> bytes:
    """Return a file with some damage; of an archive every second time to what is in it."""
    if not zipfile.is_zipfile(io.BytesIO(content)) or chance.random() < 0.5:
        broken = damaged(content, chance)
        return CALL if chance.random() < 0.03 else broken
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(packed, "w") as after:
        hit = chance.choice([info for info in before.infolist() if info.file_size])
        for info in before.infolist():
            inside = before.read(info)
            if info is hit:
                broken = damaged(inside, chance)
                inside = CALL if chance.random() < 0.1 else broken
            after.writestr(info, inside)
    return packed.getvalue()


def read(path: Path) -> None:
    """Read a file, and use what is in it."""
    if path.suffix in {".png", ".jpg"}:
        ImageItems([path], Form(3, "uint8", 8))[:]
    elif path.suffix == ".npz":
        flatsearch.load_data(str(path))
    else:
        model = flatsearch.load(path.with_suffix(".pth") if path.suffix == ".json" else path)
        model(random_images(model.card, 2))
        if path.suffix == ".pt2":
            load_exported(path)


@contextlib.contextmanager
def screen() -> Iterator[list[str]]:
    """Collect what is written to the screen by anything in this process."""
    shown: list[str] = []
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield shown
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, own in enumerate(kept, start=1):
                os.dup2(own, number)
                os.close(own)
            file.seek(0)
            shown += file.read().decode(errors="replace").splitlines()


def outcome(path: Path) -> tuple[str, list[str]]:
    """Read a file; return "read" or "refused", and the faults."""
    global events
    names = {path.name, path.with_suffix(".pth").name} if path.suffix == ".json" else {path.name}
    before, found, faults = sorted(path.parent.iterdir()), "read", []
    with screen() as shown, warnings.catch_warnings():
        warnings.simplefilter("default")
        events = []
        try:
            read(path)
        except flatsearch.FlatsearchError as error:
            found = "refused"
            if not any(name in str(error) for name in names) or "\n" in str(error):
                faults.append(f"says {type(error).__name__}: {error}")
        except BaseException as error:
            found = "failed"
            faults.append(f"raises {type(error).__name__}: {error}")
        finally:
            told, events = events, None
    faults += [f"shows {line}" for line in shown] + [f"does {event}" for event in told]
    if sorted(path.parent.iterdir()) != before:
        faults.append("leaves a file")
    return found, faults


def tried(folder: Path, kind: str, number: int, seed: int = 0) -> tuple[str, list[str]]:
    """Damage one of the files, read it, and mend it; return the outcome."""
    file = folder / kind
    whole = file.read_bytes()
    file.write_bytes(corruption(whole, random.Random(f"{seed} {number}")))
    try:
        return outcome(file)
    finally:
        file.write_bytes(whole)


def main() -> int:
    """Damage and read, print what is at fault, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corruptions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    options = parser.parse_args()
    logging.getLogger("flatsearch").setLevel(logging.ERROR)  # what is odd about images
    counts: dict[str, Counter[str]] = {name: Counter() for name in options.only}
    at_fault = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        for number in range(options.corruptions):
            kind = options.only[number % len(options.only)]
            found, faults = tried(folder, kind, number, options.seed)
            counts[kind][found] += 1
            at_fault += bool(faults)
            for fault in faults[:3]:
                print(f"{number} {kind}: {fault[:300]}", flush=True)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    result = {
        "environment": versions,
        "corruptions": options.corruptions,
        "seed": options.seed,
        "faults": at_fault,
        "files": {kind: dict(sorted(count.items())) for kind, count in counts.items()},
    }
    print(json.dumps(result))
    if options.corruptions >= 1000:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return int(at_fault > 0)


if __name__ == "__main__":
    sys.exit(main())
