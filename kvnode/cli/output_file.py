"""The file that a command writes: a regular one appears whole or not at all, and nothing else is ever replaced."""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

STDOUT: Final = "-"
# Names of the streams that the shell has opened for the command.
_STREAM: Final = re.compile(r"/dev/(stdout|stderr)|/(?:dev|proc/self)/fd/([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Output:
    """`part`: where the bytes are until they take the file's place; None where they went through to the end at once."""

    file: BinaryIO
    part: Path | None
    is_stdout: bool


@contextmanager
def writing(path: Path) -> Iterator[Output]:
    """Opens `path` for writing; '-' is stdout. Raises OSError.

    A regular file, or one that does not exist yet, is written under a name of its own beside it (mode 0600), synced,
    and put in its place when the block ends without an exception. A symbolic link is followed: what it leads to is
    replaced, the link stays. Whatever else there is, a device or a pipe, is written through: to replace it would take
    /dev/null from the whole machine.
    """
    if str(path) == STDOUT:
        yield Output(sys.stdout.buffer, None, True)
        sys.stdout.buffer.flush()
        return
    if (stream := _STREAM.fullmatch(os.path.abspath(path))) is not None:
        # The stream itself: to open it anew would write over the beginning of what `>>` appends to.
        number = {"stdout": 1, "stderr": 2}.get(stream[1]) or int(stream[2])
        with os.fdopen(os.dup(number), "wb") as file:
            yield Output(file, None, number == 1)
        return
    if _is_there_and_no_file(path):
        with path.open("wb") as file:
            yield Output(file, None, _is_stdout(file))
        return
    target = Path(os.path.realpath(path))
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield Output(file, part, False)
            file.flush()
            os.fsync(file.fileno())
        if target.exists() and not target.is_file():
            raise FileExistsError(0, "it has become something else than a file meanwhile")
        os.replace(part, target)
        _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


def _is_there_and_no_file(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "it is a directory")
    return not stat.S_ISREG(mode)


def _is_stdout(file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
