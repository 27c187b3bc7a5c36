"""Training and scoring one network; no Optuna in here."""
