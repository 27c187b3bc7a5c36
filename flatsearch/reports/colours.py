"""The colours of pages and of their figures."""

__all__ = ["BLUE", "GREY", "LINES", "ORANGE", "PALETTE", "RED", "STYLE", "WORDS"]

GREY, BLUE, RED, ORANGE = "#999999", "#4477aa", "#cc3311", "#ee8833"
# Of trials that are told apart.
PALETTE = (RED, BLUE, "#228833", "#aa3377", "#33bbee", "#ccbb44", "#ee6677", "#555555")
# Of figures, which are not fixed to a background: the dashboard has a light and a dark one.
LINES, WORDS = "rgba(128, 128, 128, 0.25)", "#7d7d7d"
# Of the pages around them, as variables of CSS.
STYLE = """
:root { color-scheme: light dark; --words: #222; --background: #fff; --line: #ddd;
  --quiet: #5f5f5f; --missing: #a00 }
@media (prefers-color-scheme: dark) { :root { --words: #ddd; --background: #16181b;
  --line: #3a3d42; --quiet: #a0a0a0; --missing: #ff7b72 } }
"""
