"""Tests in several processes, which are forked after one import of everything and one collection.

``python -m pytest -p tests.forked --processes=3``: each process takes one class or file of tests
after the other. Where each imports and collects for itself, as the processes of pytest-xdist do,
that takes a tenth of the time of all tests.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import warnings
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess

    Groups = list[list[pytest.Item]]


# More than anybody runs who changes one thing.
_MANY = 2000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processes", type=int, default=1, help="how many processes run tests")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run all tests, where several processes are wanted."""
    config: Any = session.config
    if config.option.processes < 2 or session.testsfailed or config.option.collectonly:
        return None
    config._tmp_path_factory.getbasetemp()  # one for all
    if len(session.items) > _MANY:
        _export()
    found = itertools.groupby(session.items, lambda item: (item.path, getattr(item, "cls", None)))
    # What is about everything, beside the folders, takes longest: nobody waits for it at the end.
    groups: Groups = sorted(
        (list(items) for _, items in found), key=lambda items: len(items[0].path.parts)
    )
    fork = multiprocessing.get_context("fork")
    taken = fork.Value("i", 0)
    processes: dict[Any, BaseProcess] = {}
    try:
        for _ in range(config.option.processes):
            end, other = fork.Pipe(duplex=False)
            told = session, groups, taken, other, [*processes, end]
            processes[end] = fork.Process(target=_work, args=told)
            processes[end].start()
            other.close()
        while processes:
            for ready in wait(list(processes)):
                if not _hear(session, ready, processes[ready]):
                    del processes[ready]
    finally:
        for end, process in processes.items():
            process.terminate()
            end.close()  # a test may take a signal for its own
    return True


def _export() -> None:
    """Write a network as ONNX: what torch imports for that is there for all processes.

    It also reads every time what each of its operators is in ONNX, which takes as long as all the
    rest, and is read here once for all tests.
    """
    import torch
    import tqdm

    from flatsearch.networks.onnx import to_onnx

    tqdm.tqdm.monitor_interval = 0  # in a thread, which no forked process would have
    with contextlib.suppress(ImportError, AttributeError):  # of some versions only
        from torch.onnx._internal.exporter import _registration

        registry: Any = _registration.ONNXRegistry
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
        to_onnx(torch.nn.Conv2d(1, 1, 1), torch.zeros(2, 1, 4, 4))


def _work(
    session: pytest.Session, groups: Groups, taken: Any, end: Connection, others: list[Connection]
) -> None:
    """Run one group of tests after the other, as long as there is one that nobody has taken."""
    for other in others:  # where they stay open, nobody is told that the first process is gone
        other.close()
    plugins = session.config.pluginmanager
    plugins.unregister(name="terminalreporter")
    capture: Any = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()  # into a file that all processes would share
    capture.start_global_capturing()
    plugins.register(_Teller(session.config, end))

    def items() -> Iterator[pytest.Item]:
        while True:
            with taken.get_lock():
                index, taken.value = taken.value, taken.value + 1
            if index >= len(groups):
                return
            yield from groups[index]

    # The last one of a group is run when the next group is known: what both use stays.
    for item, following in itertools.pairwise(itertools.chain(items(), [None])):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


class _Teller:
    """Tells the first process what has happened in this one."""

    def __init__(self, config: pytest.Config, end: Connection) -> None:
        self.hook, self.config, self.end = config.hook, config, end

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.end.send(("started", nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.end.send(("report", data))

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self.end.send(("finished", {"nodeid": nodeid, "location": location}))

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: Any
    ) -> None:
        if when == "runtest":  # any other is known in the first process
            it = warning_message
            of = (str(it.message), it.category, it.filename, it.lineno)
            where = {"when": when, "nodeid": nodeid, "location": location}
            self.end.send(("warning", {"of": of, **where}))


def _hear(session: pytest.Session, end: Any, process: BaseProcess) -> bool:
    """Tell this process's reporters what has happened in another; return whether that goes on."""
    try:
        what, told = end.recv()
    except EOFError:
        process.join()
        if process.exitcode:
            pytest.exit(f"{process.name} ended its process ({process.exitcode})", returncode=1)
        return False
    hook = session.config.hook
    if what == "started":
        process.name = told
    elif what == "warning":
        told["warning_message"] = warnings.WarningMessage(*told.pop("of"))
        hook.pytest_warning_recorded.call_historic(kwargs=told)
    elif what == "finished":
        hook.pytest_runtest_logfinish(**told)
    else:
        report = hook.pytest_report_from_serializable(config=session.config, data=told)
        hook.pytest_runtest_logreport(report=report)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
    return True
