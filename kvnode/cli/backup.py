"""`kvnode backup`: all keys in one file, or no file."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from kvnode import backup as files
from kvnode import errors
from kvnode.cli.access import access
from kvnode.cli.calls import finish, output_option, print_json, url_option, urls_in

if TYPE_CHECKING:
    from kvnode.client.access import Access

PATH: Final = "/admin/api/v1/backup"
SHOW_S: Final = 0.5


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--stale", is_flag=True, help="What the node holds, also where the cluster has no leader.")
@output_option
@url_option
def backup(file: Path, stale: bool, output: str, url: str) -> None:
    """Save all keys, as they are at one revision, to FILE; the cluster goes on meanwhile.

    FILE appears, or is replaced, once it is whole and on disk: read to its end, every checksum compared.
    """
    part = file.with_name(file.name + ".part")
    urls = urls_in(url)
    try:
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target:
                finish(_receive(urls, PATH + ("?consistency=stale" if stale else ""), target, access()))
                target.flush()
                os.fsync(target.fileno())
            head = files.check(part)
            os.replace(part, file)
            _sync(file.parent)
        finally:
            part.unlink(missing_ok=True)
    except files.Damaged as damage:
        print(f"kvnode: What arrived is no whole backup ({damage}): try again, or another node.", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as e:
        print(f"kvnode: {file} cannot be written ({e.strerror}): choose another place.", file=sys.stderr)
        raise SystemExit(1) from None
    size = file.stat().st_size
    if output == "json":
        print_json({"file": str(file), "bytes": size, **head._asdict()})
    else:
        print(f"{file}: {size:,} bytes, revision {head.revision}, items: {head.items}")


async def _receive(urls: list[str], path: str, target: BinaryIO, access: Access) -> None:
    from kvnode.client.fetching import fetch  # aiohttp takes longer to load than all the rest

    received, shown_at, terminal = 0, time.monotonic(), sys.stderr.isatty()
    async for piece in fetch(urls, path, access):
        target.write(piece)
        received += len(piece)
        if terminal and time.monotonic() - shown_at >= SHOW_S:
            shown_at = time.monotonic()
            print(f"\r{received / 1e6:,.1f} MB", end="", file=sys.stderr, flush=True)
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if received == 0:
        raise errors.Unavailable("The node sent nothing: try again, or another node.")


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
