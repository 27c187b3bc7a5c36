"""Models as files: written, read and run."""
