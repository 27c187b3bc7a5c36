"""The search: the objective, the loop around it, workers and storages."""
