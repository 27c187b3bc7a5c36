"""A study in optuna-dashboard: notes and figures, and the server. The one user of that package."""

from __future__ import annotations

import importlib.util
import time
import warnings
from socketserver import ThreadingMixIn
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from flatsearch.analysis.summary import summarise
from flatsearch.errors import UsageError
from flatsearch.record import StudyRecord, write_study
from flatsearch.reports import tables
from flatsearch.reports.figures import figures
from flatsearch.reports.markdown import MARK, MOST_TRIALS, study_note, trial_note
from flatsearch.search.storage import address_family, bracketed, open_storage
from flatsearch.search.study import load_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import optuna

    from flatsearch.analysis.summary import StudySummary

__all__ = ["Publisher", "is_available", "publish", "require", "serve"]

_SECONDS = 30.0
# Long names, values and commands are wrapped; on a phone nothing is beside anything.
_STYLE = b"""<style>
main { min-width: 0; overflow-wrap: anywhere }
main p.MuiTypography-body1, main .MuiBox-root { white-space: normal }
main :is(th, td:not(:last-child)) { overflow-wrap: normal }
@media (max-width: 700px) {
  main fieldset.MuiFormControl-root { flex-wrap: wrap }
  main .MuiGrid-container > .MuiGrid-root { width: 100%; max-width: 100%; flex-basis: 100% }
  main .MuiBox-root:has(> .MuiDivider-root + div) { flex-direction: column }
  main .MuiBox-root:has(+ .MuiDivider-root) { width: auto; max-height: 9em }
  main .MuiBox-root:has(> p + .MuiBox-root) { flex-wrap: wrap }
  main table { display: block; overflow-x: auto }
}
</style>"""
# Notes on trials that are not on the front, at a time: each is an entry in the storage.
_MOST_TOLD = 200
# Publishing takes at most this share of the time.
_SHARE = 0.05


def is_available() -> bool:
    """Return whether optuna-dashboard and plotly are installed."""
    return all(importlib.util.find_spec(name) for name in ("optuna_dashboard", "plotly"))


def require() -> None:
    """Refuse to go on without optuna-dashboard or plotly."""
    if not is_available():
        raise UsageError(
            "the dashboard needs optuna-dashboard and plotly: pip install 'flatsearch[dashboard]'"
        )


def publish(study: optuna.Study, summary: StudySummary) -> None:
    """Write notes and figures into a study, where optuna-dashboard shows them.

    The study gets a note and the figures, every trial on the front a note, and every other one that
    was stopped, not trained or left out a note that says why. What somebody has written in a note,
    above our part or before there was one, is kept. The study may be running.
    """
    require()
    from optuna_dashboard import save_plotly_graph_object

    drawn = figures(summary)
    _write_note(study, study_note(summary, drawn))
    known, noted = StudyRecord(study), summary.front[:MOST_TRIALS]
    # Those that were on the front at an earlier time are told that they no longer are.
    left = set(known.noted).difference(noted)
    # The others are told why they have no place: once, and again if the front asks for more.
    running = [trial.number for trial in summary.trials if trial.state in {"RUNNING", "WAITING"}]
    told = known.told if summary.least_accuracy == known.told_least else 0
    told = max(told, len(summary.trials) - _MOST_TOLD)
    for trial in summary.trials:
        ended = trial.number >= told and trial.number not in running
        if trial.number in {*noted, *left} or (ended and tables.reason(summary, trial)):
            note = trial_note(summary, trial, left=trial.number in left)
            _write_note(_handle(study, trial.number), note)
    told = min([*running, len(summary.trials)])
    write_study(study, noted=noted, told=told, told_least=summary.least_accuracy)
    for name, figure in drawn.items():
        save_plotly_graph_object(study, figure, graph_object_id=f"flatsearch-{name}")


def _handle(study: optuna.Study, number: int) -> Any:
    """Return what stands for a finished trial where the dashboard expects a running one."""
    storage, study_id = study._storage, study._study_id
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    return SimpleNamespace(storage=storage, study=study, _trial_id=trial_id)


def _write_note(place: Any, body: str) -> None:
    """Write our part of a note, unless it is there already."""
    from optuna_dashboard import get_note, save_note

    now = get_note(place)
    above, mark, _ = now.partition(MARK)
    if above.strip() and not mark:
        above += "\n\n"
    if above + body != now:
        save_note(place, above + body)


class Publisher:
    """Publishes a study while it runs, not too often; a search is never harmed by it.

    Args:
        say: Told once, in a line, if it does not work.
        seconds: Least time between two times.
    """

    def __init__(self, say: Callable[[str], None], seconds: float = _SECONDS) -> None:
        self._say = say
        self._seconds = seconds
        self._next = time.monotonic() + seconds
        self._said = False

    def trial(self, study: optuna.Study) -> None:
        """Publish after a trial, if it is time."""
        if time.monotonic() >= self._next:
            self.now(study)

    def now(self, study: optuna.Study, summary: StudySummary | None = None) -> None:
        """Publish, whenever the last time was; without the packages do nothing."""
        if not is_available():
            return
        start = time.monotonic()
        try:
            publish(study, summary or summarise(study))
        except Exception as error:  # whatever goes wrong here, the search goes on
            if not self._said:
                self._said = True
                reason = " ".join(str(error).split()) or type(error).__name__
                self._say(f"could not write notes and figures for the dashboard: {reason[:300]}")
        end = time.monotonic()
        self._next = end + max(self._seconds, (end - start) / _SHARE)


def _wrapping(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Return optuna-dashboard's application with pages that are no wider than the screen.

    It shows each attribute in a line, and a trial's curves and architecture are thousands of pixels
    long; and its own pages are 771 to 1002 pixels wide on a phone.
    """

    def wrapped(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        told: list[Any] = []
        body = app(environ, lambda *arguments: told.extend(arguments))
        status, headers, *rest = told
        if any(k.lower() == "content-type" and "text/html" in v for k, v in headers):
            body = [b"".join(body).replace(b"</head>", _STYLE + b"</head>")]
            headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body[0]))))
        start(status, headers, *rest)
        return body

    return wrapped


class _Server(ThreadingMixIn, WSGIServer):
    """Answers several requests at a time: a browser asks for much at once."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = address_family(address[0])
        super().__init__(address, handler)


class _Silent(WSGIRequestHandler):
    """Prints no line per request."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Print nothing."""


def serve(
    name: str,
    storage: str,
    artifacts: str | Path | None,
    host: str,
    port: int,
    say: Callable[[str], None],
) -> None:
    """Show a study and the others of its storage in a browser, until interrupted.

    The trials' files are not shown where their folder is None. The address is said.

    Raises:
        UsageError: If optuna-dashboard is not installed, or nothing can listen there.
    """
    require()
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    # What Optuna says of the dashboard's own calls is nothing to whoever looks at a study.
    warnings.filterwarnings("ignore", module="optuna")
    opened = open_storage(storage)
    study_id = load_study(name, opened)._study_id
    store = None if artifacts is None else FileSystemArtifactStore(artifacts)
    app = _wrapping(wsgi(opened, artifact_store=store))
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Silent)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot listen on {host}:{port}: {reason}; give another `port`") from None
    with server:
        # An address that stands for all of this machine's is none that a browser can open.
        shown = "localhost" if host in {"", "0.0.0.0", "127.0.0.1"} else host  # noqa: S104
        say(f"http://{bracketed(shown)}:{server.server_port}/dashboard/studies/{study_id}")
        server.serve_forever()
