"""Listings on a terminal have the names of their columns; to a pipe they are what scripts have always read."""

from __future__ import annotations

import sys

import pytest

from kvnode.cli.columns import print_rows

ROWS = [["n1", "voter", "-"], ["n10", "learner", "http://127.0.0.1:8001"]]


@pytest.mark.parametrize(
    ("is_terminal", "shown"),
    [
        (True, "id   role     http\nn1   voter    -\nn10  learner  http://127.0.0.1:8001\n"),
        (False, "n1\tvoter\t-\nn10\tlearner\thttp://127.0.0.1:8001\n"),
    ],
)
def test_names_stand_over_columns_on_a_terminal_alone(
    is_terminal: bool, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    print_rows(("id", "role", "http"), ROWS)
    assert capsys.readouterr().out == shown


def test_no_rows_are_the_names_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_rows(("id", "role"), [])
    assert capsys.readouterr().out == "id  role\n"
