"""What MkDocs does while it builds the documentation: a page per package, formulas as MathML."""

from __future__ import annotations

import ast
import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

from latex2mathml.converter import convert
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PACKAGE = Path(__file__).resolve().parent.parent / "flatsearch"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# A link to a part of the repository that is not in the documentation.
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def parts() -> dict[str, list[Path]]:
    """Return the public modules of each part of the package, by its name."""
    found: dict[str, list[Path]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        part = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if "__all__" in file.read_text() and not part.startswith("_"):
            found.setdefault(part, []).append(file)
    return found


def page(part: str, files: list[Path]) -> Iterator[str]:
    """Yield the lines of a part's page."""
    top = PACKAGE / part / "__init__.py"
    summary = ast.get_docstring(ast.parse(top.read_text())) if top.exists() else None
    yield from (f"# flatsearch.{part}\n", f"{summary}\n" if summary else "")
    for file in files:
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        # What a package only hands on is described where it is.
        if file.name != "__init__.py":
            yield f"::: {module}\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API reference."""
    found = parts()
    links = "\n".join(f"- [flatsearch.{part}]({part}.md)" for part in found)
    texts = {part: "\n".join(page(part, modules)) for part, modules in found.items()}
    texts["index"] = (
        f"# API reference\n\nThe public names of each part of the package.\n\n{links}\n"
    )
    for part, text in texts.items():
        files.append(File.generated(config, f"api/{part}.md", content=text))
    reference = next(entry["API"] for entry in config.nav or [] if "API" in entry)
    reference[:] = ["api/index.md", *({f"flatsearch.{part}": f"api/{part}.md"} for part in found)]
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Show links that lead out of the documentation as plain text."""
    return OUTSIDE.sub(r"\1", markdown)


def on_page_content(content: str, **_: object) -> str:
    """Write formulas as MathML, which browsers show by themselves."""

    def formula(match: re.Match[str]) -> str:
        display = "inline" if match[2] == "(" else "block"
        return convert(html.unescape(match[3]), display=display)

    return FORMULA.sub(formula, content)
