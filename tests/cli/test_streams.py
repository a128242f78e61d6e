"""Streams that are full, closed or left early: one sentence or none, and never a traceback."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping

import pytest

from tests.cli.command import COMMAND, Done, environment, is_one_sentence
from tests.cli.scripted import Reply, always, scripted

PUT = Reply(200, b'{"key":"k","revision":5,"version":2,"created":false}')


def with_streams(streams: str, *args: str, env: Mapping[str, str] | None = None) -> Done:
    """As a shell runs it with these redirections."""
    command = ["sh", "-c", f'"$@" {streams}', "sh", *COMMAND, *args]
    done = subprocess.run(command, capture_output=True, timeout=30, env=environment(env), check=False)
    return Done(done.returncode, done.stdout, done.stderr.decode())


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_has_no_room_is_one_sentence(unbuffered: str) -> None:
    done = with_streams(">/dev/full", "completion", "bash", env={"PYTHONUNBUFFERED": unbuffered})
    assert (done.code, is_one_sentence(done.err)) == (1, True), done.err
    assert "No space left on device" in done.err


def test_output_that_nobody_reads_on_is_no_news() -> None:
    done = with_streams("| true", "completion", "bash")
    assert (done.code, done.err) == (0, "")


async def test_streams_that_are_closed_are_empty() -> None:
    async with scripted(always(PUT)) as node:
        done = await asyncio.to_thread(with_streams, "<&- >&-", "put", "k", "--url", node.url)
    assert (done.code, done.err) == (0, "")
    assert node.asked[0].body == b""
