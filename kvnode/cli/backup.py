"""`kvnode backup`: all keys in one file, or no file; or through a pipe, with a verdict at its end."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from kvnode import errors
from kvnode.cli.access import access
from kvnode.cli.calls import fail, finish, output_option, print_json, url_option, urls_in
from kvnode.cli.command import Command
from kvnode.cli.output_file import writing
from kvnode.storage import backup as files

if TYPE_CHECKING:
    from kvnode.client.access import Access

PATH: Final = "/admin/api/v1/backup"
SHOW_S: Final = 0.5


@click.command(cls=Command)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--stale", is_flag=True, help="What the node holds, also where the cluster has no leader.")
@output_option
@url_option
def backup(file: Path, stale: bool, output: str, url: str) -> None:
    """Save all keys, as they are at one revision, to FILE; the cluster goes on meanwhile.

    FILE appears, or is replaced, once it is whole and on disk: read to its end, every checksum compared. A device, a
    pipe and '-' (stdout) are written through as it comes: there the exit code says whether it was whole.
    """
    urls = urls_in(url)
    path = PATH + ("?consistency=stale" if stale else "")
    try:
        with writing(file) as target:
            if target.part is None:
                with Check() as check:
                    received = finish(_receive(urls, path, (target.file, check), access()))
                    target.file.flush()
                head = check.verdict()
            else:
                received = finish(_receive(urls, path, (target.file,), access()))
                target.file.flush()
                head = files.check(target.part)
    except files.Damaged as damage:
        fail(f"What arrived is no whole backup ({damage}): try again, or another node.")
    except OSError as e:
        fail(f"{file} cannot be written ({e.strerror}): choose another place.")
    told = sys.stderr if target.is_stdout else sys.stdout
    if output == "json":
        print_json({"file": str(file), "bytes": received, **head._asdict()}, told)
    else:
        print(f"{file}: {received:,} bytes, revision {head.revision}, items: {head.items}", file=told)


class Check:
    """Reads along with what is written through to a device or a pipe, which cannot be read again."""

    def __init__(self) -> None:
        reading, writing_end = os.pipe()
        self._file = os.fdopen(writing_end, "wb")
        self._head: files.BackupHead | None = None
        self._damage = "it ends too early"
        self._thread = threading.Thread(target=self._read, args=(os.fdopen(reading, "rb"),), daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has seen enough
            self._file.write(data)

    def _read(self, file: BinaryIO) -> None:
        with file:
            try:
                self._head = files.read_through(file)
            except files.Damaged as damage:
                self._damage = str(damage)
            except OSError:  # a pipe does not know where in it the reader is
                self._damage = "a chunk does not check out"

    def __enter__(self) -> Check:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._file.close()
        self._thread.join()

    def verdict(self) -> files.BackupHead:
        """Raises Damaged unless what was written was a whole backup."""
        if self._head is None:
            raise files.Damaged(self._damage)
        return self._head


async def _receive(urls: list[str], path: str, targets: tuple[BinaryIO | Check, ...], access: Access) -> int:
    """The bytes that came. Raises Unavailable and what `fetch` raises."""
    from kvnode.client.fetching import fetch  # aiohttp takes longer to load than all the rest

    received, shown_at, terminal = 0, time.monotonic(), sys.stderr.isatty()
    async for piece in fetch(urls, path, access):
        for target in targets:
            target.write(piece)
        received += len(piece)
        if terminal and time.monotonic() - shown_at >= SHOW_S:
            shown_at = time.monotonic()
            print(f"\r{received / 1e6:,.1f} MB", end="", file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if received == 0:
        raise errors.Unavailable("The node sent nothing: try again, or another node.")
    return received
