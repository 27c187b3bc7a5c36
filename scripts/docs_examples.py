"""For mkdocstrings: what stands under "Example:" in a docstring is shown as code, not as text."""

from __future__ import annotations

import re

import griffe


class Examples(griffe.Extension):
    """Gives the section the name that griffe knows."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Rename it in an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
