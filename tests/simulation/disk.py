"""A directory in memory that forgets, at a power cut, what nobody synced, and that fails when it is told to.

As pessimistic as POSIX: bytes are safe after `sync`, names after `sync_directory`, and nothing else is.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvnode.storage.tail import BLOCK_BYTES

Names = dict[str, "_File"]


class Crash(BaseException):
    """The process ends here. Nothing in a node may catch it, which is why it is no Exception."""


@dataclass(eq=False)
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced_bytes: int = 0
    refused: bool = False  # a sync failed: the rest is taken for clean and never reaches the disk (fsyncgate)


@dataclass
class Fault:
    """What happens at call `at`, counted from 1: the process ends (`error` None), or the call fails with `error`.

    `kinds`: only calls of these are counted. `stays`: so does every such call after it.
    """

    at: int
    error: int | None = None
    kinds: frozenset[str] | None = None
    stays: bool = False
    struck: str = ""  # the call that it was


class MemoryDisk:
    """`Disk` whose `faults` strike at the calls that they name. `draw` decides what a failing call left behind."""

    def __init__(self) -> None:
        self._names: Names = {}
        self._durable: Names = {}
        self._unsynced_names: list[Callable[[Names], object]] = []
        self.draw = random.Random(0)
        self.faults: list[Fault] = []
        self.calls = self.strikes = 0
        self.full = False  # every append fails, as far as it does not fit

    # --- what happens to machines -------------------------------------------------------------------------

    def crash(self, draw: random.Random) -> None:
        """Power fails. Of what was not synced, any part may have reached the disk, and so may any change of a name."""
        self.mend()
        names = dict(self._durable)
        how = draw.choice(("none", "all", "first", "any"))
        first = draw.randint(0, len(self._unsynced_names))
        for position, change in enumerate(self._unsynced_names):
            if how == "all" or (how == "first" and position < first) or (how == "any" and draw.random() < 0.5):
                change(names)
        self._names, self._durable, self._unsynced_names = names, dict(names), []
        for file in names.values():
            _tear(file, draw)

    def kill(self) -> None:
        """The process alone ends; the kernel, with what it has not yet written, goes on."""
        self.mend()

    def mend(self) -> None:
        """No call fails from now on."""
        self.faults.clear()
        self.full = False

    def files(self) -> dict[str, bytes]:
        """Every file as it reads now. Whoever looks so is no node, and nothing fails for it."""
        return {name: bytes(file.data) for name, file in sorted(self._names.items())}

    def damage(self, name: str, offset: int, bit: int = 0) -> None:
        """One bit turns over, as on a worn-out disk."""
        self._names[name].data[offset] ^= 1 << bit

    def replace(self, name: str, data: bytes) -> None:
        """The file as an accident has left it."""
        self._names[name] = self._durable[name] = _File(bytearray(data), len(data))

    # --- Disk ---------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        self._call("names")
        return sorted(self._names)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._call("read", name)
        data = self._file(name).data
        return bytes(data[offset:] if length is None else data[offset : offset + length])

    def size(self, name: str) -> int:
        self._call("size", name)
        return len(self._file(name).data)

    def append(self, name: str, buffers: Sequence[bytes]) -> None:
        whole = b"".join(buffers)

        def write(length: int) -> None:
            if name not in self._names:
                file = _File()
                self._change(lambda names: names.update({name: file}))
            self._names[name].data += whole[:length]

        part = self.draw.randint(0, len(whole))
        self._call("append", name, lambda: write(part))
        if self.full and whole:
            write(part)
            raise _error(errno.ENOSPC, name)
        write(len(whole))

    def sync(self, name: str) -> None:
        file = self._names[name]

        def refuse() -> None:
            file.refused = True

        self._call("sync", name, refuse)
        if not file.refused:
            file.synced_bytes = len(file.data)

    def settle(self, name: str) -> None:
        self._call("settle", name)
        file = self._names[name]
        if file.refused:
            del file.data[file.synced_bytes :]
            file.refused = False
        file.synced_bytes = len(file.data)

    def sync_directory(self) -> None:
        self._call("sync_directory")
        self._durable, self._unsynced_names = dict(self._names), []

    def truncate(self, name: str, length: int) -> None:
        file = self._names[name]

        def cut() -> None:
            del file.data[length:]
            file.synced_bytes = min(file.synced_bytes, length)

        self._call("truncate", name, cut if self.draw.random() < 0.5 else None)
        cut()
        file.synced_bytes = length

    def rename(self, old: str, new: str) -> None:
        self._call("rename", old)
        file = self._names[old]

        def move(names: Names) -> None:
            names.pop(old, None)
            names[new] = file

        self._change(move)

    def unlink(self, name: str) -> None:
        self._call("unlink", name)
        if name not in self._names:
            raise _error(errno.ENOENT, name)
        self._change(lambda names: names.pop(name, None))

    def space(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def where(self, name: str) -> str:
        return f"memory/{name}"

    def close(self) -> None:
        pass

    def _file(self, name: str) -> _File:
        if name not in self._names:
            raise _error(errno.ENOENT, name)
        return self._names[name]

    # --- faults -------------------------------------------------------------------------------------------

    def _change(self, change: Callable[[Names], object]) -> None:
        change(self._names)
        self._unsynced_names.append(change)

    def _call(self, kind: str, name: str = "", half: Callable[[], None] | None = None) -> None:
        """Counts a call; where a fault strikes, `half` is what the call still does of its work."""
        self.calls += 1
        for fault in self.faults:
            if fault.kinds is not None and kind not in fault.kinds:
                continue
            fault.at -= 1
            if fault.at == 0 or (fault.at < 0 and fault.stays):
                fault.struck = f"{kind} {name}".strip()
                self.strikes += 1
                if half is not None:
                    half()
                if fault.error is None:
                    raise Crash(fault.struck)
                raise _error(fault.error, name)


def _error(number: int, name: str) -> OSError:
    return OSError(number, os.strerror(number), name)


def _tear(file: _File, draw: random.Random) -> None:
    """What a power cut leaves of one file: the synced bytes, and of the others whichever blocks were written."""
    start = file.synced_bytes
    if start < len(file.data):
        how = draw.choice(("prefix", "prefix", "zeros", "garbage"))
        if how == "prefix":
            del file.data[draw.randint(start, len(file.data)) :]
        else:
            for first in range(start - start % BLOCK_BYTES, len(file.data), BLOCK_BYTES):
                block = range(max(first, start), min(first + BLOCK_BYTES, len(file.data)))
                if draw.random() < 0.4:
                    for offset in block:
                        file.data[offset] = 0 if how == "zeros" else draw.getrandbits(8)
    file.synced_bytes, file.refused = len(file.data), False
