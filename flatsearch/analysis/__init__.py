"""A study as numbers: its summary, what signals and pruning were worth, which trial to take."""
