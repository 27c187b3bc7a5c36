"""A study as numbers: its summary, what signals and pruning did, which trial to take."""
