"""A directory in memory that forgets, at a crash, what nobody synced."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced_bytes: int = 0


class MemoryDisk:
    """`Disk` as pessimistic as POSIX: bytes are safe after `sync`, names after `sync_directory`."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}

    def crash(self, draw: random.Random) -> None:
        """Of what was not synced, any prefix of each file may have reached the disk, and any state of the names."""
        if draw.random() < 0.5:
            self._files = dict(self._durable)
        self._durable = dict(self._files)
        for file in self._files.values():
            unsynced = len(file.data) - file.synced_bytes
            if unsynced:
                del file.data[file.synced_bytes + draw.randint(0, unsynced) :]
            file.synced_bytes = len(file.data)

    def names(self) -> list[str]:
        return sorted(self._files)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._files[name].data
        return bytes(data[offset:] if length is None else data[offset : offset + length])

    def size(self, name: str) -> int:
        return len(self._files[name].data)

    def append(self, name: str, buffers: Sequence[bytes]) -> None:
        data = self._files.setdefault(name, _File()).data
        for buffer in buffers:
            data += buffer

    def sync(self, name: str) -> None:
        file = self._files[name]
        file.synced_bytes = len(file.data)

    def sync_directory(self) -> None:
        self._durable = dict(self._files)

    def truncate(self, name: str, length: int) -> None:
        file = self._files[name]
        del file.data[length:]
        file.synced_bytes = length

    def rename(self, old: str, new: str) -> None:
        self._files[new] = self._files.pop(old)

    def unlink(self, name: str) -> None:
        del self._files[name]

    def where(self, name: str) -> str:
        return f"memory/{name}"

    def close(self) -> None:
        pass

    def damage(self, name: str, offset: int) -> None:
        """One bit turns over, as on a worn-out disk."""
        self._files[name].data[offset] ^= 1

    def replace(self, name: str, data: bytes) -> None:
        """The file as an accident has left it."""
        self._files[name] = _File(bytearray(data), len(data))
