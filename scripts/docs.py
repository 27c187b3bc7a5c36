"""Set up, then build the documentation into `site/`: ``python3 scripts/docs.py``.

The tables that come from the code and from recorded results are written into the pages first. A
link that leads nowhere is an error. Arguments are handed to ``mkdocs build``.
"""

from __future__ import annotations

import sys

import environment

if __name__ == "__main__":
    programs = environment.ensure("docs")
    for program, *arguments in (
        ("python", "scripts/docs_tables.py"),
        ("mkdocs", "build", "--strict", *sys.argv[1:]),
    ):
        if code := environment.run(programs, program, *arguments, cwd=environment.ROOT):
            sys.exit(code)
