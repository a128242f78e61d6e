"""The verdict of `make compose-test` says what was seen; a read that was refused is no write that was lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.compose import run


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Sequence[tuple[int, bytes]]]) -> None:
    """Each key answers these in turn, and the last one for ever."""
    left = {key: list(each) for key, each in answers.items()}

    def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        each = left[path.removeprefix("/v1/kv/")]
        return each.pop(0) if len(each) > 1 else each[0]

    monkeypatch.setattr(run, "ask", ask)
    monkeypatch.setattr(run, "READ_S", 0.3)


def test_a_refused_read_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, {"a": [(503, b"no_leader"), (0, b""), (200, b"1")], "b": [(200, b"2")]})
    run.check(1, {"a": b"1", "b": b"2"}, "here")


def test_the_verdict_says_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"a": [(404, b"")], "b": [(200, b"other")], "c": [(503, b"")], "d": [(200, b"4")], "e": [(404, b"")]}
    answering(monkeypatch, answers)
    with pytest.raises(run.Failed) as failed:
        run.check(1, dict.fromkeys("abcde", b"4"), "on n1")
    sentence = str(failed.value)
    for part in ("of 5 acknowledged writes, on n1", "2 are missing", "1 differ", "1 could not be read", "status 503"):
        assert part in sentence
