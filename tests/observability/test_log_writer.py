"""Lines on their way to stderr: in order, never waited for, bounded, and what was left out is counted and said."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from kvnode import logs
from kvnode.logs.writer import WRITE_BYTES_MAX, Writer
from tests.cluster import wait_until

_NUMBERS = count(500)
PIPE_BYTES = 65_536  # what a pipe on Linux holds


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """With numbers of its own: a writer of an earlier test may still have lines for a number that was closed."""
    made = os.pipe()
    reading, writing = (fcntl.fcntl(each, fcntl.F_DUPFD, next(_NUMBERS)) for each in made)
    for each in made:
        os.close(each)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def read_all(descriptor: int, count: int) -> list[str]:
    """So many lines."""
    data = b""
    while data.count(b"\n") < count:
        data += os.read(descriptor, 1_048_576)
    return data.decode().splitlines()


def test_lines_come_out_in_order_and_whole(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1])
    lines = [f"{number} {'x' * (number * 37 % 9_000)} \udce9" for number in range(500)]
    threading.Thread(target=lambda: [writer.put(line) for line in lines]).start()
    assert read_all(pipe[0], 500) == [line.replace("\udce9", "\\udce9") for line in lines]
    assert writer.flush(5.0)
    assert writer.dropped == 0


def test_a_reader_that_hangs_holds_nobody_up_and_hears_what_it_missed(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(pipe[1], queue_bytes_max=10_000)
    line, written = "x" * 99, 0
    while writer.flush(0.5):  # until the pipe is full
        writer.put(line)
        written += 1
    assert written > PIPE_BYTES // 100 - WRITE_BYTES_MAX // 100
    for _ in range(2_000):
        writer.put(line)
    dropped = writer.dropped
    assert 2_000 - 10_000 // 100 <= dropped < 2_000
    held = written + 2_000 - dropped
    with caplog.at_level(logging.WARNING, logs.writer.log.name):
        assert read_all(pipe[0], held) == [line] * held
        wait_until(lambda: caplog.records, 5.0, "what was left out is said")
    assert f"{dropped} log lines were left out: stderr did not take them in time." in caplog.text
    assert writer.dropped == dropped, "each is counted once"


def test_a_line_is_out_when_its_turn_is_over_and_a_hung_reader_costs_one_turn(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1])
    os.set_blocking(pipe[0], False)
    for number in range(100):
        writer.put(str(number), wait_s=5.0)
        assert os.read(pipe[0], 100) == b"%d\n" % number
    writer.put("x" * 200_000, wait_s=0.01)
    began = time.monotonic()
    for number in range(100):
        writer.put(str(number), wait_s=5.0)
    assert time.monotonic() - began < 2.5, "behind one that is not out, none waits"


def test_a_line_that_is_longer_than_the_queue_is_written_all_the_same(pipe: tuple[int, int]) -> None:
    writer = Writer(pipe[1], queue_bytes_max=1_000)
    writer.put("y" * 5_000)
    assert read_all(pipe[0], 1) == ["y" * 5_000]


def test_a_full_disk_costs_lines_and_tears_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    room, write = [10], os.write

    def write_while_there_is_room(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr("kvnode.logs.writer.os.write", write_while_there_is_room)
    with (tmp_path / "log").open("wb") as file:
        writer = Writer(file.fileno())
        for line in ("first", "second", "third"):
            writer.put(line)
            assert writer.flush(5.0)
        assert writer.dropped == 2, "the one that was cut, and the one behind it"
        room[0] = 1_000_000
        with caplog.at_level(logging.WARNING, logs.writer.log.name):
            writer.put("fourth")
            assert writer.flush(5.0)
            wait_until(lambda: caplog.records, 5.0, "what was left out is said")
    assert "2 log lines were left out" in caplog.text
    assert (tmp_path / "log").read_text() == "first\nseco\nfourth\n"


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = Writer(pipe[1])
    lines = [f"{number:099}" for number in range(2_000)]
    for line in lines:
        writer.put(line)
    assert read_all(pipe[0], 2_000) == lines


def test_a_reader_that_has_gone_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = Writer(writing)
    for _ in range(10):
        writer.put("nobody reads this")
        assert writer.flush(5.0)
    assert writer.dropped == 10
    os.close(writing)


def test_a_traceback_that_is_printed_goes_the_same_way(pipe: tuple[int, int]) -> None:
    stream = logs.writer._Stderr(Writer(pipe[1]))
    print("in", "pieces", 1, file=stream)
    stream.write("begun, ")
    other = threading.Thread(target=lambda: print("another thread's", file=stream))
    other.start()
    other.join()
    stream.write("ended\nand a last one\n")
    assert read_all(pipe[0], 4) == ["in pieces 1", "another thread's", "begun, ended", "and a last one"]
    assert stream.fileno() == sys.__stderr__.fileno() if sys.__stderr__ else True
