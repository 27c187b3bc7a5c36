"""What a network is, costs and looks like; no Optuna in here."""
