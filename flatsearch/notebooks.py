"""What notebooks show of a result: tables in HTML that follow the notebook's own colours."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["card"]


def card(
    title: str,
    heads: Sequence[str] = (),
    rows: Iterable[Sequence[object]] = (),
    notes: Sequence[str] = (),
    drawing: Sequence[str] = (),
) -> str:
    """Return a title, a table, notes and a drawing as HTML.

    Args:
        title: What it is of.
        heads: The names of the columns.
        rows: The cells by row.
        notes: Sentences below the table.
        drawing: Lines of text, shown as they are.

    Returns:
        HTML without styles of its own but alignment; every text is escaped.

    Example:
        >>> card("a < b", ["n"], [[1]])
        '<b>a &lt; b</b><table><tr><th>n</th></tr><tr><td>1</td></tr></table>'
    """
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    table = f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>" if head or body else ""
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes if note)
    lines = html.escape("\n".join(drawing))
    drawn = f'<pre style="line-height: 1.2">{lines}</pre>' if lines else ""
    return f"<b>{html.escape(title)}</b>{table}{said}{drawn}"
