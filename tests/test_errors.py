"""Passwords in messages: hidden, and nothing else."""

from __future__ import annotations

import pytest

from flatsearch.errors import hide_passwords, shown_storage


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mysql://me:see cret@h/db", "mysql://me:***@h/db"),
        ("--storage=mysql://me:see cret@h/db", "--storage=mysql://me:***@h/db"),
        ("""mysql://u:p@:/%'" #?x@h/db""", "mysql://u:***@h/db"),
        ("redis://:secret@h/0", "redis://:***@h/0"),
        ("postgresql://h/db?user=me&password=pa'ss&x=1", "postgresql://h/db?user=me&password=***&x=1"),
        ("a 'mysql://u:p@h/x' and 'mysql://v:q@i/y'", "a 'mysql://u:***@h/x' and 'mysql://v:***@i/y'"),
    ],
)  # fmt: skip
def test_passwords_are_hidden(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        r"log_file 'C:\Users\me@corp\run.log'",
        r'File "C:\Users\me@corp\a.py", line 1',
        "x[:n]@w",
        "git@github.com:a/b",
        "Download http://h:80/x failed for user bob@x",
        "12:30:01 trial@x",
        "accepted: sqlite:///FILE.db, postgresql://USER@HOST/DB, grpc://HOST:PORT",
        "./me@work/study.log",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert hide_passwords(text) == text
    if " " not in text and ":" not in text:
        assert shown_storage(text) == text


@pytest.mark.parametrize("part", ["://x: ", "://x:", "a:", "x", "?password="])
def test_a_long_message_comes_to_an_end(part: str) -> None:
    """Patterns that try every end for every beginning took minutes."""
    text = "://" + part * 20_000
    assert len(hide_passwords(text)) <= len(text) + 3
