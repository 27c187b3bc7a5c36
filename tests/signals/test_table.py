"""The table of signals."""

from __future__ import annotations

from importlib import import_module

import pytest

from flatsearch import RunSettings, SettingsError
from flatsearch.signals.table import PROXIES, SIGNALS, signals_table


def test_the_table() -> None:
    assert all(name == signal.name for name, signal in SIGNALS.items())
    # A prior that said the opposite of the sign would be a mistake in one of them.
    assert all(signal.prior * signal.sign >= 0 for signal in SIGNALS.values())
    assert all(signal.prior == 0 for signal in SIGNALS.values() if signal.sign == 0)
    # What is free is recorded anyway, and what is not has a function.
    assert all(bool(signal.function) == (signal.group == "proxy") for signal in SIGNALS.values())
    rows = signals_table()
    assert [row["signal"] for row in rows] == list(SIGNALS)
    assert all(row["cost"] and row["what"] for row in rows)
    assert all(row["source"] for row in rows if row["signal"].startswith("untrained_"))


def test_every_proxy_has_its_function() -> None:
    for signal in PROXIES.values():
        module, _, name = signal.function.partition(".")
        found = import_module(f"flatsearch.signals.{module}")
        assert name in found.__all__
        # The formula and where it is from.
        assert len(getattr(found, name).__doc__.splitlines()) > 1


def test_names_that_a_study_may_ask_for() -> None:
    assert RunSettings(signals=("nwot", "gradient_norm")).signals == ("nwot", "gradient_norm")
    assert PROXIES["gradient_norm"].first == "epoch"
    assert PROXIES["untrained_gradient_norm"].first == "untrained"
    assert PROXIES["nwot"].name == "untrained_nwot"
    with pytest.raises(SettingsError) as caught:
        RunSettings(signals=("nwott",))
    message = str(caught.value)
    assert message.startswith("unknown signal to record 'nwott' (did you mean 'nwot'?); known: ")
    assert "\n" not in message
    assert all(name in message for name in PROXIES)
    # What is recorded anyway is not to be asked for.
    with pytest.raises(SettingsError, match="unknown signal to record 'accuracy'"):
        RunSettings(signals=("accuracy",))
