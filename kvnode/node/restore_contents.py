"""What a restore brings, read in a worker thread before it is applied.

The contents of a backup come to a running cluster as one entry of the log. To read them takes longer than an election
timeout where they are large, and every node would stand still for it at the same time. So an entry that holds some is
applied once they have been read (Q11 in `replica.py`); then it takes the time of an exchange. Reading is pure: what is
applied is the same on every node, whoever read it where.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kvnode.state.admin_commands import read_replacement
from kvnode.state.entries import replacement_in
from kvnode.state.store import KeyValueStore

# Only entries of such a size are asked about: what takes long to prepare is large, and most are small.
LARGE_BYTES: Final = 16_384


class Contents:
    """Those of one entry at a time. `work` runs a job in a thread; `ready` is called when an entry may be applied."""

    def __init__(
        self,
        store: KeyValueStore,
        work: Callable[[Callable[[], Any], Callable[[Any, Exception | None], None]], None],
        ready: Callable[[], None],
    ) -> None:
        self._store = store
        self._work = work
        self._ready = ready
        self._index = 0  # of the entry whose contents are being read, or were read last
        self._reading = False

    def are_read(self, index: int, payload: bytes) -> bool:
        """Whether the next entry may be applied; begins to read its contents where it has some. `ready` follows."""
        if index != self._index and not self._reading:
            packed = replacement_in(payload)
            if packed is not None:
                self._index, self._reading = index, True
                self._work(
                    lambda: read_replacement(KeyValueStore.load, packed),
                    lambda read, error: self._read(packed, read, error),
                )
        return not self._reading

    def _read(self, packed: bytes, read: KeyValueStore | str | None, error: Exception | None) -> None:
        """An exception comes again, and is dealt with, where the entry is applied."""
        self._reading = False
        if read is not None and error is None:
            self._store.replacement = (packed, read)
        self._ready()

    def applied(self) -> None:
        """An entry was: what its contents took the place of goes, in a thread, and what was read for nothing."""
        store = self._store
        read = store.replacement[1] if store.replacement is not None else None
        for unused in (store.former, read):
            if isinstance(unused, KeyValueStore):
                self._work(unused.release, lambda _, __: None)
        store.replacement = store.former = None
