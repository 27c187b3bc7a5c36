"""A study as one HTML page that needs nothing else: no server, no network, no study."""

from __future__ import annotations

import base64
import gzip
import html
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.errors import UsageError
from flatsearch.reports import tables
from flatsearch.reports.colours import PAGE
from flatsearch.reports.figures import figures
from flatsearch.reports.verdicts import chosen, searched, verdicts

if TYPE_CHECKING:
    from flatsearch.analysis.summary import StudySummary
    from flatsearch.reports.tables import Table

__all__ = ["file_to_write", "write_page"]

_MOST_TRIALS = 30
# Nothing is loaded from anywhere: the browser itself refuses it.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_STYLE = f"""
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: {PAGE["words"]}; background: {PAGE["background"]} }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums;
  display: block; overflow-x: auto }}
th, td {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid {PAGE["line"]} }}
th:last-child, td:last-child {{ text-align: left }}
.figure {{ height: 28rem; margin: 1.5rem 0 }}
.missing {{ color: {PAGE["missing"]}; font-weight: bold }}
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

    Raises:
        UsageError: If the file exists or has no folder, or plotly is not installed.
    """
    path = file_to_write(path, force=force)
    text = _page(summary)
    # What fails half-way leaves an earlier page as it was.
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def file_to_write(path: str | Path, *, force: bool = False) -> Path:
    """Return the path of a file that may be written.

    Args:
        path: The file.
        force: Whether there may be one already.

    Returns:
        The path.

    Raises:
        UsageError: If the file exists or has no folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder; name the file to write")
    if path.exists() and not force:
        raise UsageError(f"{str(path)!r} exists; `force` overwrites it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {str(path.parent)!r} of the file to write does not exist")
    return path


def _page(summary: StudySummary) -> str:
    drawn = figures(summary)
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    name = html.escape(summary.name)
    sentences = [searched(summary), chosen(summary), *verdicts(summary)]
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{name}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{name}</h1>",
        *(f"<p>{html.escape(sentence)}</p>" for sentence in sentences if sentence),
        f'<p class="missing" id="missing" hidden>{_MISSING}</p>',
        '<noscript><p class="missing">The figures of this page need JavaScript.</p></noscript>',
    ]
    parts += _section(tables.front(summary))
    for key, figure in drawn.items():
        # A "<" could end the script element; JSON has another way to write it.
        json = figure.to_json().replace("<", "\\u003c")
        parts.append(f'<script type="application/json" id="json-{key}">{json}</script>')
        parts.append(f'<div class="figure" id="figure-{key}" data-json="json-{key}"></div>')
    parts += _section(tables.best_trials(summary, _MOST_TRIALS, infeasible=False))
    parts += _section(tables.correlations(summary))
    parts += _section(tables.settings(summary))
    parts += [
        f'<script type="application/gzip" id="plotly">{packed}</script>',
        f"<script>{_SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts)


def _section(table: Table) -> list[str]:
    """Return a table under its title; nothing where it has no rows."""
    if not table.rows:
        return []
    head = "".join(f"<th>{html.escape(text)}</th>" for text in table.heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
        for row in table.rows
    )
    return [
        f"<h2>{html.escape(table.title)}</h2>",
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
    ]
