"""The few things that the journal and the snapshots ask of a directory, so that a test can hand in another one.

Every name is a plain file name inside one directory. Nothing here retries: an `OSError` from a write or a
sync means that the page cache may no longer hold what the caller believes (fsyncgate, LWN 752063), and the
one who decides what that means for the node is the caller.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from kvnode.errors import StartupError

log = logging.getLogger("kvnode.raft")

FILE_BYTES_MAX: Final = 256 * 1_048_576  # of one that is read at once: a segment of the journal has 72 MiB at most
OTHERS: Final = 0o077  # what the group and everybody else may do

_IOV_MAX = 1_024  # POSIX allows less; Linux and macOS have exactly this


class Disk(Protocol):
    """A directory. Sizes and offsets are in bytes."""

    def names(self) -> list[str]: ...
    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes: ...
    def size(self, name: str) -> int: ...
    def append(self, name: str, buffers: Sequence[bytes]) -> None:
        """Writes all buffers at the end of `name`, creating it if need be. Not durable until `sync`."""

    def sync(self, name: str) -> None: ...
    def settle(self, name: str) -> None:
        """From now on `name` reads as the disk has it: what was not synced is, and what a failed sync left is gone."""

    def sync_directory(self) -> None: ...
    def truncate(self, name: str, length: int) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, name: str) -> None: ...
    def space(self) -> tuple[int, int]:
        """(free, total) bytes of the file system, as an unprivileged process would find them."""

    def where(self, name: str) -> str:
        """How an operator would find this file."""

    def close(self) -> None: ...


def _make(path: Path) -> None:
    """The directory and those above it, durable: one whose name is lost in a crash takes along what is synced in it."""
    missing = []
    above = path
    while not above.exists():
        missing.append(above)
        above = above.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True, mode=0o700 if each == path else 0o777)
        descriptor = os.open(each.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Directory:
    """`Disk` on a real directory, held by an exclusive lock: two nodes can never share one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptors: dict[str, int] = {}
        try:
            _make(path)
            make_private(path)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(
                f"The data directory {path} cannot be written ({error.strerror}): "
                "give this node a directory of its own that it may write, with --data-dir."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StartupError(
                f"The data directory {path} is in use by another running node: "
                "stop that one first, or give this node its own --data-dir."
            ) from error

    def names(self) -> list[str]:
        return sorted(os.listdir(self._path))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        # Without waiting for a pipe's other end, which may never come.
        with os.fdopen(os.open(self._path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(self._path / name))
            if length is None and found.st_size > FILE_BYTES_MAX:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self._path / name))
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def size(self, name: str) -> int:
        return (self._path / name).stat().st_size

    def append(self, name: str, buffers: Sequence[bytes]) -> None:
        descriptor = self._open(name)
        for first in range(0, len(buffers), _IOV_MAX):
            part: Sequence[bytes | memoryview] = buffers[first : first + _IOV_MAX]
            while part:
                written = os.writev(descriptor, part)
                part = _after(part, written)

    def sync(self, name: str) -> None:
        os.fdatasync(self._open(name))

    def settle(self, name: str) -> None:
        self.sync(name)
        if hasattr(os, "posix_fadvise"):
            # After a failed sync the kernel takes the pages for clean and serves them until they are evicted, so a
            # new process would find what the disk has not (Rebello et al., Can Applications Recover from fsync
            # Failures?, USENIX ATC 2020). Evicted now, they are read from the disk.
            os.posix_fadvise(self._open(name), 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_directory(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, name: str, length: int) -> None:
        descriptor = self._open(name)
        os.ftruncate(descriptor, length)
        os.fsync(descriptor)

    def rename(self, old: str, new: str) -> None:
        self._forget(old)
        self._forget(new)
        os.replace(self._path / old, self._path / new)

    def unlink(self, name: str) -> None:
        self._forget(name)
        os.unlink(self._path / name)

    def space(self) -> tuple[int, int]:
        numbers = os.statvfs(self._path)
        return numbers.f_bavail * numbers.f_frsize, numbers.f_blocks * numbers.f_frsize

    def where(self, name: str) -> str:
        return str(self._path / name)

    def close(self) -> None:
        for name in list(self._descriptors):
            self._forget(name)
        os.close(self._lock)

    def _open(self, name: str) -> int:
        descriptor = self._descriptors.get(name)
        if descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            descriptor = self._descriptors[name] = os.open(self._path / name, flags, 0o600)
        return descriptor

    def _forget(self, name: str) -> None:
        descriptor = self._descriptors.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)


def make_private(path: Path) -> None:
    """Makes the directory and its files readable for their owner only, also if a loose umask made them.

    Raises StartupError where another user owns the directory: he could read, replace or remove everything in it.
    """
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise StartupError(
            f"The data directory {path} belongs to another user (number {found.st_uid}, this node runs as "
            f"{os.geteuid()}): start the node as that user, or give the directory to this one with chown -R."
        )
    mended = 0
    try:
        if found.st_mode & OTHERS:
            path.chmod(0o700)
            mended += 1
        for entry in os.scandir(path):
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) and mode & OTHERS:
                os.chmod(entry.path, 0o600)
                mended += 1
    except PermissionError:  # some network file systems have one mode for all
        log.warning("The data directory %s is open to other users, and its file system keeps it so.", path)
        return
    if mended:
        log.warning("The data directory %s was open to other users: it is this user's alone now.", path)


class ReadOnly(Directory):
    """A directory to look at, also while a node runs on it: no lock, nothing is opened for writing.

    What a start would cut off or unlink stays where it is; anything else that changes a file is not offered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def settle(self, name: str) -> None:
        pass

    def sync_directory(self) -> None:
        pass

    def truncate(self, name: str, length: int) -> None:
        pass

    def unlink(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        raise OSError(errno.EROFS, "this directory is only looked at", old)

    def _open(self, name: str) -> int:
        raise OSError(errno.EROFS, "this directory is only looked at", name)


def _after(part: Sequence[bytes | memoryview], written: int) -> Sequence[bytes | memoryview]:
    """What is left of `part` once its first `written` bytes are gone (a short write)."""
    left: list[bytes | memoryview] = []
    for buffer in part:
        if written >= len(buffer):
            written -= len(buffer)
        else:
            left.append(memoryview(buffer)[written:])
            written = 0
    return left
