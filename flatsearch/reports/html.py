"""A study as one HTML page that needs nothing else: no server, no network, no study."""

from __future__ import annotations

import base64
import gzip
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

from flatsearch.errors import UsageError
from flatsearch.reports import tables
from flatsearch.reports.colours import STYLE
from flatsearch.reports.figures import figures, not_drawn
from flatsearch.reports.verdicts import (
    front_meaning,
    headlines,
    same_in_all,
    searched,
    shipped,
    tested,
    tested_before,
    verdicts,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flatsearch.analysis.summary import StudySummary
    from flatsearch.reports.tables import Table
    from flatsearch.retrain.result import FinalTraining

__all__ = ["file_to_write", "write_page"]

_MOST_TRIALS = 30
# Letters of a class above a column of the confusion matrix.
_LONGEST_NAME = 20
# Nothing is loaded from anywhere: the browser itself refuses it.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
_STYLE = f"""{STYLE}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: var(--words); background: var(--background); overflow-wrap: break-word }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 .5rem }}
.headline {{ font-size: 1.15rem; font-weight: 600; margin: .3rem 0 }}
.quiet, summary {{ color: var(--quiet) }}
summary {{ cursor: pointer; margin: 1rem 0 }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top }}
th:last-child, td:last-child {{ text-align: left }}
th button {{ font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; text-align: inherit }}
th[aria-sort=ascending] button::after {{ content: " \\2191" }}
th[aria-sort=descending] button::after {{ content: " \\2193" }}
nav a {{ margin-right: 1rem }}
a {{ color: inherit }}
.network {{ display: block; width: 100%; max-width: 34rem; margin: .5rem 0 1rem }}
.figure {{ height: 28rem }}
#figure-epochs {{ height: 40rem }}
.missing {{ color: var(--missing); font-weight: bold }}
@media (min-width: 45rem) {{ td:not(:last-child) {{ white-space: nowrap }} }}
@media (max-width: 45rem) {{
  body {{ margin: 1rem auto }}
  table, thead, tbody {{ display: block }}
  th {{ border: 0; padding: 0 }}
  th:not(:has(button)) {{ display: none }}
  tr {{ display: flex; flex-wrap: wrap; gap: 0 1rem; padding: .4rem 0;
    border-bottom: 1px solid var(--line) }}
  td {{ border: 0; padding: 0; text-align: left }}
  td:last-child {{ flex-basis: 100% }}
  td:empty {{ display: none }}
  td[data-label]::before {{ content: attr(data-label) " "; color: var(--quiet) }}
  .matrix {{ overflow-x: auto }}
  .matrix table {{ display: table }}
  .matrix thead {{ display: table-header-group }}
  .matrix tbody {{ display: table-row-group }}
  .matrix tr {{ display: table-row }}
  .matrix th, .matrix td {{ display: table-cell; padding: 0 .4rem; text-align: right }}
  .matrix td[data-label]::before {{ content: none }}
}}
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
// "26.7k", "0.98 \u00b1 0.1" and "13 min" as numbers.
const units = {k: 1e3, M: 1e6, G: 1e9, kB: 1e3, MB: 1e6, GB: 1e9, ms: 1e-3, min: 60, h: 3600};
function worth(text) {
  const found = /^([-+]?[\\d.,]+(?:e[-+]?\\d+)?) ?([a-zA-Z]*)/.exec(text);
  return found ? found[1].replaceAll(",", "") * (units[found[2]] || 1) : NaN;
}
function sort(event) {
  const head = event.target.closest("th"), table = head.closest("table");
  const up = head.ariaSort !== "ascending", column = head.cellIndex;
  const keyed = [...table.tBodies[0].rows].map(row => {
    const text = row.cells[column].textContent;
    return [row, worth(text), text];
  });
  const sign = up ? 1 : -1;
  keyed.sort(([, a, s], [, b, t]) =>
    isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) || sign * s.localeCompare(t) : sign * (a - b));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
  table.tBodies[0].append(...keyed.map(([row]) => row));
}
for (const button of document.querySelectorAll("th button")) button.onclick = sort;
draw().catch(error => {
  const note = document.getElementById("missing");
  note.hidden = false;
  if (typeof DecompressionStream !== "undefined") note.textContent += " (" + error + ")";
  for (const place of document.querySelectorAll(".figure")) place.hidden = true;
});
"""
_HEADING = re.compile(r'<h2 id="([^"]+)">(.*)</h2>')
_MISSING = "This browser cannot draw the figures of this page; any from 2023 or later can."


def write_page(
    summary: StudySummary,
    path: str | Path,
    *,
    force: bool = False,
    final: FinalTraining | None = None,
    networks: Mapping[int, str] | None = None,
) -> None:
    """Write a study as one self-contained HTML file of about two megabytes.

    Args:
        summary: The study.
        path: The file.
        force: Whether there may be one already.
        final: The last final training, if there is one.
        networks: Pictures of networks as SVG, by the numbers of their trials.

    Raises:
        UsageError: If the file exists or has no folder, or plotly is not installed.
    """
    path = file_to_write(path, force=force)
    text = _page(summary, final, networks or {})
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


def _page(summary: StudySummary, final: FinalTraining | None, networks: Mapping[int, str]) -> str:
    drawn = figures(summary)
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    name = html.escape(summary.name)
    own, others = tables.settings(summary)
    top = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{name}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{name}</h1>",
        *_paragraphs(headlines(summary), "headline"),
        *_paragraphs([summary.chosen(), searched(summary)]),
        f'<p class="missing" id="missing" hidden>{_MISSING}</p>',
        '<noscript><p class="missing">The figures of this page need JavaScript.</p></noscript>',
    ]
    parts = [
        *_section(tables.front(summary)),
        *_paragraphs([front_meaning(summary), same_in_all(summary)], "quiet"),
    ]
    for key, figure in drawn.items():
        # A heading of the page has room for what a figure's own title would be cut off.
        title = figure.layout.title.text or "by epoch"  # its parts have titles of their own
        parts.append(_heading(_capital(title), f"of-{key}"))
        figure.update_layout(title_text="", margin_t=30)
        # A "<" could end the script element; JSON has another way to write it.
        json = figure.to_json().replace("<", "\\u003c")
        parts.append(f'<script type="application/json" id="json-{key}">{json}</script>')
        parts.append(f'<div class="figure" id="figure-{key}" data-json="json-{key}"></div>')
    parts += _paragraphs(not_drawn(summary, drawn), "quiet")
    parts += _section(tables.best_trials(summary, _MOST_TRIALS, infeasible=False))
    if networks:
        parts.append(_heading("Networks", "networks"))
    for trial, drawn_network in networks.items():
        words = html.escape(summary.describe(summary.trial(trial)))
        parts += [
            f"<details><summary>trial {trial}: {words}</summary>",
            drawn_network,
            "</details>",
        ]
    parts += [] if final is None else _final(final)
    numbers = [*_paragraphs(verdicts(summary)), *_section(tables.correlations(summary))]
    parts += _folded("What stopping early and flatness did, in numbers", numbers)
    parts += _section(own)
    parts += _folded(f"{others.title} ({len(others.rows)})", _section(others, title=False))
    bottom = [
        f'<script type="application/gzip" id="plotly">{packed}</script>',
        f"<script>{_SCRIPT}</script></body></html>",
    ]
    return "\n".join([*top, *_contents(parts), *parts, *bottom])


def _final(final: FinalTraining) -> list[str]:
    """Return the final training of the model to ship, with its confusions and calibration."""
    said = [tested(final), shipped(final), tested_before(final) if final.earlier else ""]
    said = list(map(_capital, said))
    left = [f"left out: {network}" for network in final.diverged]
    return [
        _heading(f"The final model, of trial {final.trial}", "final"),
        *_paragraphs(said),
        *_section(tables.seeds(final), title=False),
        *_paragraphs(left, "quiet"),
        '<div class="matrix">',
        *_section(tables.confusions(final, longest=_LONGEST_NAME)),
        "</div>",
        *_section(tables.calibration(final)),
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _heading(text: str, anchor: str) -> str:
    """Return a heading of a part; the text is HTML."""
    return f'<h2 id="{anchor}">{text}</h2>'


def _contents(parts: Iterable[str]) -> list[str]:
    """Return links to the headings; nothing where there are few."""
    found, folded = [], False
    for part in parts:
        folded = part.startswith("<details>") or (folded and part != "</details>")
        if not folded and (heading := _HEADING.fullmatch(part)):
            found.append(heading.groups())
    links = (f'<a href="#{anchor}">{text.partition(":")[0]}</a>' for anchor, text in found)
    return ["<nav>", *links, "</nav>"] if len(found) > 2 else []


def _paragraphs(sentences: Iterable[str], kind: str = "") -> list[str]:
    attribute = f' class="{kind}"' if kind else ""
    return [f"<p{attribute}>{html.escape(text)}</p>" for text in sentences if text]


def _folded(title: str, parts: Sequence[str]) -> list[str]:
    """Return what is shown only when it is asked for."""
    if not parts:
        return []
    return [f"<details><summary>{html.escape(title)}</summary>", *parts, "</details>"]


def _section(table: Table, *, title: bool = True) -> list[str]:
    """Return a table under its title; nothing where it has no rows."""
    if not table.rows:
        return []
    sorts = len(table.rows) > 2 and "" not in table.heads  # no matrix
    head = "".join(_head(html.escape(text), sorts=sorts) for text in table.heads)
    anchor = "-".join(re.findall(r"\w+", table.title.lower()))
    # On a narrow screen every cell says what it is; the last one, mostly words, need not.
    labels = [f' data-label="{html.escape(text)}"' for text in table.heads[:-1]] + [""]
    body = "".join(
        "<tr>"
        + "".join(f"<td{label}>{html.escape(t)}</td>" for label, t in zip(labels, row, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return [
        *([_heading(html.escape(_capital(table.title)), anchor)] if title else []),
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        *_paragraphs([f"... and {table.left_out} more" if table.left_out else ""], "quiet"),
    ]


def _head(text: str, *, sorts: bool) -> str:
    """Return the head of a column, by which its table may be sorted; the text is HTML."""
    return f"<th><button>{text}</button></th>" if sorts else f"<th>{text}</th>"
