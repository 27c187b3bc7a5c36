"""`flatsearch serve-storage`."""

from __future__ import annotations

from dataclasses import dataclass

from flatsearch.cli.command import Command
from flatsearch.cli.shared import LOOPBACK, warn_of_listening
from flatsearch.errors import Range
from flatsearch.settings import RunOptions, SettingsRecord, same, setting
from flatsearch.settings.values import Text

__all__ = ["COMMAND"]


@dataclass(frozen=True, kw_only=True)
class _Options(SettingsRecord):
    """What `flatsearch serve-storage` is told."""

    storage: str = same(RunOptions, "storage", positional=True)
    host: str = setting(LOOPBACK, Text(), "name or address to listen on")
    port: int = setting(
        13000, Range(least=1, below=2**16, whole=True), "port to listen on", metavar="N"
    )


def _serve(options: _Options) -> None:
    import optuna

    from flatsearch.search.storage import serve_storage

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warn_of_listening(COMMAND.name, options.host)
    serve_storage(options.storage, options.host, options.port, _say)


def _say(address: str) -> None:
    print(f"{address}\nCtrl-C ends it", flush=True)


COMMAND = Command(
    "serve-storage",
    "let workers anywhere share one storage",
    "Run Optuna's gRPC proxy over a storage: workers anywhere are given its address,"
    " grpc://HOST:PORT, as their --storage, and only this process is connected to the storage.",
    (_Options,),
    _serve,
    kept="the server has stopped; workers wait for it to come back",
)
