"""A study as one HTML page that needs nothing else: no server, no network, no study."""

from __future__ import annotations

import base64
import gzip
import html
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.errors import UsageError
from flatsearch.reports.figures import figures
from flatsearch.reports.text import describe, value
from flatsearch.reports.verdicts import searched, verdicts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.record.trial import TrialRecord

__all__ = ["write_page"]

_MOST_TRIALS = 30
# Nothing is loaded from anywhere: the browser itself refuses it.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums;
  display: block; overflow-x: auto }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:last-child, td:last-child { text-align: left }
.figure { height: 28rem; margin: 1.5rem 0 }
.missing { color: #a00; font-weight: bold }
"""
# plotly.js has almost 5 MB; a page that holds it compressed has two.
_SCRIPT = """
async function draw() {
  const text = document.getElementById("plotly").textContent.trim();
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const code = document.createElement("script");
  code.textContent = await new Response(plain).text();
  document.head.appendChild(code);
  for (const place of document.querySelectorAll(".figure")) {
    const figure = JSON.parse(document.getElementById(place.dataset.json).textContent);
    await Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displaylogo: false});
  }
  document.body.dataset.drawn = "yes";
}
draw().catch(error => {
  const note = document.getElementById("missing");
  note.hidden = false;
  if (typeof DecompressionStream !== "undefined") note.textContent += " (" + error + ")";
  for (const place of document.querySelectorAll(".figure")) place.hidden = true;
});
"""
_MISSING = "This browser cannot draw the figures of this page; any from 2023 or later can."


def write_page(summary: StudySummary, path: str | Path, *, force: bool = False) -> None:
    """Write a study as one self-contained HTML file of about two megabytes.

    Args:
        summary: The study.
        path: The file to write.
        force: Overwrite it.

    Raises:
        UsageError: If the file exists or has no folder, or plotly is not installed.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder; name the file to write")
    if path.exists() and not force:
        raise UsageError(f"{str(path)!r} exists; --force overwrites it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {str(path.parent)!r} of the file to write does not exist")
    text = _page(summary)
    # What fails half-way leaves an earlier page as it was.
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _page(summary: StudySummary) -> str:
    drawn = figures(summary)
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    name = html.escape(summary.name)
    front = [summary.trial(number) for number in summary.front]
    title = "Pareto front" if len(summary.metric_names) > 1 else "Best trial"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{name}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{name}</h1>",
        f"<p>{html.escape(searched(summary))}</p>",
        *(f"<p>{html.escape(sentence)}</p>" for sentence in verdicts(summary)),
        f'<p class="missing" id="missing" hidden>{_MISSING}</p>',
        '<noscript><p class="missing">The figures of this page need JavaScript.</p></noscript>',
    ]
    if front:
        parts += [f"<h2>{title}</h2>", _trials(summary, front)]
    for key, figure in drawn.items():
        # A "<" could end the script element; JSON has another way to write it.
        json = figure.to_json().replace("<", "\\u003c")
        parts.append(f'<script type="application/json" id="json-{key}">{json}</script>')
        parts.append(f'<div class="figure" id="figure-{key}" data-json="json-{key}"></div>')
    if best := _best(summary):
        by = html.escape(summary.metric_names[0])
        parts += [f"<h2>Best trials by {by}</h2>", _trials(summary, best)]
    if summary.correlations:
        parts += ["<h2>What early signals say about the final validation accuracy</h2>"]
        parts.append(_correlations(summary))
    if summary.settings:
        rows = [(key, _plain(setting)) for key, setting in summary.settings.items()]
        parts += ["<h2>Settings</h2>", _table(("setting", "value"), rows)]
    parts += [
        f'<script type="application/gzip" id="plotly">{packed}</script>',
        f"<script>{_SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts)


def _best(summary: StudySummary) -> list[TrialRecord]:
    """Return the complete trials that keep all constraints, best first."""
    sign = -1.0 if summary.directions[0] == "maximize" else 1.0
    good = [
        (sign * t.values[0], t.number, t)
        for t in summary.trials
        if t.values is not None and t.own and t.feasible
    ]
    return [trial for *_, trial in sorted(good)[:_MOST_TRIALS]]


def _trials(summary: StudySummary, trials: Iterable[TrialRecord]) -> str:
    names = summary.metric_names
    rows = []
    for trial in trials:
        values = zip(names, trial.values or (), strict=True)
        rows.append((str(trial.number), *(value(n, v) for n, v in values), describe(trial)))
    return _table(("trial", *names, "architecture"), rows)


def _correlations(summary: StudySummary) -> str:
    rows = [
        (
            found.signal, str(found.epoch or "untrained"), f"{found.tau:+.2f}",
            f"[{found.low:+.2f}, {found.high:+.2f}]",
        )
        for found in summary.correlations
    ]  # fmt: skip
    return _table(("signal", "after epoch", "Kendall tau", "95% interval"), rows)


def _plain(setting: object) -> str:
    return ", ".join(map(str, setting)) if isinstance(setting, list) else str(setting)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts, which are escaped here."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
