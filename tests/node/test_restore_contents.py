"""An entry that brings the contents of a backup waits until they have been read, and everything behind it waits too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from kvnode.node.restore_contents import Contents
from kvnode.state.admin_commands import packed_contents
from kvnode.state.commands import REPLACE
from kvnode.state.entries import encode_entry, encode_group
from kvnode.state.results import Replaced
from kvnode.state.store import KeyValueStore
from kvnode.storage import backup

Job = tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]


class Thread:
    """Runs what it was given when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.ready = 0
        self.store = KeyValueStore()
        self.contents = Contents(self.store, lambda *job: self.jobs.append(job), self.go_on)

    def go_on(self) -> None:
        self.ready += 1

    def work(self, error: Exception | None = None) -> None:
        job, then = self.jobs.pop(0)
        then(None if error else job(), error)


def contents_of(keys: int) -> bytes:
    store = KeyValueStore()
    for number in range(keys):
        store.apply([1, f"k{number:05}", b"v", "", None])
    return packed_contents(backup.chunks_of(b"".join(backup.pieces(store.view(), "c1")))[1])


def entry(packed: bytes) -> bytes:
    return encode_entry([encode_group(b"o" * 8, 1, [msgpack.packb([REPLACE, packed])])])


def test_contents_are_read_once_and_then_exchanged() -> None:
    thread, packed = Thread(), contents_of(20)
    store, contents = thread.store, thread.contents
    store.apply([1, "former", b"v", "", None])
    assert contents.are_read(4, encode_entry([]))
    assert not contents.are_read(5, entry(packed))
    assert not contents.are_read(5, entry(packed))
    assert len(thread.jobs) == 1
    thread.work()
    assert thread.ready == 1
    assert contents.are_read(5, entry(packed))
    assert store.apply([REPLACE, packed]) == Replaced(21, 20)
    contents.applied()
    assert store.replacement is None
    thread.work()  # what was there goes
    assert (len(store), store.get("former"), len(thread.jobs)) == (20, None, 0)
    assert contents.are_read(6, encode_entry([]))


def test_what_cannot_be_read_or_is_never_applied_holds_nothing_up() -> None:
    thread, packed = Thread(), contents_of(20)
    store, contents = thread.store, thread.contents
    assert not contents.are_read(5, entry(packed))
    thread.work(MemoryError())
    assert contents.are_read(5, entry(packed))  # and to apply it says what is wrong
    assert store.replacement is None
    assert not contents.are_read(6, entry(packed))
    assert not contents.are_read(9, entry(packed[:-1]))  # a snapshot took the place of what was between
    thread.work()
    assert not contents.are_read(9, entry(packed[:-1]))
    thread.work()
    assert contents.are_read(9, entry(packed[:-1]))
    assert store.replacement is not None
    assert store.replacement[0] == packed[:-1]
    store.apply([REPLACE, packed[:-1]])
    contents.applied()
    assert (store.replacement, thread.jobs, store.revision) == (None, [], 0)
