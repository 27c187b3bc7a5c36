"""The final training of a chosen architecture."""
