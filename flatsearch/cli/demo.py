"""`flatsearch demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flatsearch.cli.command import Command
from flatsearch.errors import Range
from flatsearch.settings import REQUIRED, SettingsRecord, setting
from flatsearch.settings.values import Text

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(SettingsRecord):
    """What `flatsearch demo` is told."""

    model: str = setting(
        REQUIRED, Text(), "a .pt2, .onnx or .pth file, or a saved model", positional=True
    )
    port: int = setting(
        8090, Range(least=0, below=2**16, whole=True), "port to listen on; 0 for any", metavar="N"
    )


def _demo(options: _Options) -> None:
    from flatsearch.export.classifier import load
    from flatsearch.reports.demo import DemoServer

    with DemoServer(load(options.model), Path(options.model).name, options.port) as server:
        print(f"{server.address}\nCtrl-C ends it", flush=True)
        server.serve_forever()


COMMAND = Command(
    "demo",
    "a page that classifies the images dropped on it",
    "Serve a page, to this machine only, on which images are dropped: it shows their classes, by a"
    " model that flatsearch saved or exported.",
    (_Options,),
    _demo,
    kept="the page is gone",
)
