"""`kvnode export` and `import`: keys as JSON lines, one for each, with value, content type and ttl.

    {"key": "docs/readme", "value": "IyBr…", "content_type": "text/markdown", "ttl": 30}

A value is base64; "text" is read as well. A ttl is what was left of it, for each key by itself: keys that shared a
lease have leases of their own afterwards. Revisions and versions begin anew.
"""

from __future__ import annotations

import asyncio
import errno
import json
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final

import click

from kvnode import errors
from kvnode.cli import dumps
from kvnode.cli.calls import call, complain, connected, exit_code, fail
from kvnode.cli.command import Command
from kvnode.cli.dumps import Dump
from kvnode.cli.keys import shown
from kvnode.cli.output_file import writing

if TYPE_CHECKING:
    from kvnode.client import Client

BATCH_KEYS: Final = 1_000
BATCHES_AT_ONCE: Final = 4  # one is written while others are read, encoded, sent and answered
BATCH_BYTES: Final = 4 * 1_048_576  # of lines: a node takes 8 MiB
LINE_BYTES_MAX: Final = 6 * 1_048_576  # 1 MiB of value, each of its bytes as six characters of "text"
_PLACE: Final = re.compile(r"operations\[([0-9]+)\]\.(\w+):? ")
FIELDS: Final = frozenset(("key", "value", "text", "content_type", "ttl"))


@click.command(cls=Command)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), default="-")
@click.option("--prefix", default="", help="Only keys that begin with it.")
@connected
def export(file: Path, prefix: str, url: str, timeout_s: float) -> None:
    """Write every key into FILE, or to stdout, as JSON lines in byte order of the key. FILE appears once it is whole.

    Read page by page, each of its own moment: what changes meanwhile is there as it was or as it is.
    """

    async def write(client: Client, target: BinaryIO) -> int:
        done = 0
        with _progress("exporting", await client.count(prefix)) as step:
            async for item in client.iterate(prefix):
                line: dict[str, Any] = {"key": item.key, "value": b64encode(item.value).decode()}
                if item.content_type:
                    line["content_type"] = item.content_type
                if item.ttl is not None:
                    line["ttl"] = max(1, item.ttl)
                target.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                done += 1
                step(1)
        target.flush()
        return done

    try:
        with writing(file) as output:
            done = call(url, timeout_s, lambda client: write(client, output.file))
    except OSError as e:
        if e.errno == errno.EPIPE:
            raise  # whoever read along has enough
        fail(f"The file cannot be written: {e.strerror}.")
    print(f"{_keys(done)} exported", file=sys.stderr)


# The cluster remembers the keyed writes of the last 20 s, up to a number; above that it answers 429. An import that is
# faster waits until some are forgotten: at most 20 s, unless other clients fill the room as well.
REFUSED_S: Final = 60.0
REFUSED_PAUSE_S: Final = 0.5


@click.command("import", cls=Command)
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--from", "kind", type=click.Choice(["kvnode", "etcd", "consul"]), default="kvnode", help="Who wrote the file."
)
@connected
def import_lines(file: BinaryIO, kind: str, url: str, timeout_s: float) -> None:
    """Set the keys in FILE, or on stdin, which has one JSON object a line as 'kvnode export' writes them.

    \b
    --from etcd      what  etcdctl get "" --prefix -w json  writes
    --from consul    what  consul kv export  writes

    In batches of up to 1,000, four at a time; --timeout is for each of them. The first line that cannot be set ends
    it: of the lines around it any may be set by then. It may be repeated from the beginning.
    """
    dump = None if kind == "kvnode" else _dump(kind, file)
    place = "Line" if dump is None else "Key number"

    async def read(client: Client) -> int:
        done = 0
        writing: dict[asyncio.Task[None], frozenset[str]] = {}
        with _progress("importing", _size(file)) as step:
            try:
                for batch, size in _batches(file) if dump is None else _batches_of(dump):
                    keys = frozenset(str(operation["put"]["key"]) for _, operation in batch)
                    # The last line of a key counts: a batch waits for those that set one of its keys, and for a place.
                    while len(writing) == BATCHES_AT_ONCE or not all(map(keys.isdisjoint, writing.values())):
                        await _one_of(writing)
                    writing[asyncio.create_task(_write(client, batch, place, step, size))] = keys
                    done += len(batch)
                while writing:
                    await _one_of(writing)
            finally:
                # Those on their way are heard out: what the user is told is the state that the cluster is left in.
                await asyncio.gather(*writing, return_exceptions=True)
        return done

    done = call(url, timeout_s, read)
    print(f"{_keys(done)} imported", file=sys.stderr)
    for what, count in dump.left_out.items() if dump else ():
        complain(f"{_keys(count)} had {what} there, and without it here.")


def _dump(kind: str, file: BinaryIO) -> Dump:
    try:
        return dumps.read(kind, file)
    except errors.BadRequest as e:
        fail(e.message, exit_code(e), e.code)


Batch = list[tuple[int, dict[str, Any]]]


async def _one_of(writing: dict[asyncio.Task[None], frozenset[str]]) -> None:
    """Takes out what has come to its end, at least one; raises what it raised."""
    ended, _ = await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
    failures = [task.exception() for task in ended]  # asked of all: one that nobody asks is logged
    for task in ended:
        del writing[task]
    for failure in failures:
        if failure is not None:
            raise failure


async def _write(client: Client, batch: Batch, place: str, step: Callable[[int], None], size: int) -> None:
    """Under an idempotency key that the client adds: what is in doubt is sent again, and never written twice."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + REFUSED_S
    while batch:
        try:
            results = await client.batch([operation for _, operation in batch])
        except errors.KvnodeError as e:
            # A batch of which one is wrong is refused as a whole, by the place of that one.
            if match := _PLACE.match(e.message):
                e.message = f"{place} {batch[int(match[1])][0]}: {match[2]} {e.message[match.end() :]}"
            raise
        refused: Batch = []
        for (number, operation), result in zip(batch, results, strict=True):
            if isinstance(result, errors.TooManyRequests) and clock() < deadline:
                refused.append((number, operation))
            elif isinstance(result, errors.KvnodeError):
                result.message = f"{place} {number}, the key {shown(operation['put']['key'])}: {result.message}"
                raise result
        if len(refused) < len(batch):
            deadline = clock() + REFUSED_S
        batch = refused
        if batch:
            await asyncio.sleep(REFUSED_PAUSE_S)
    step(size)


def _batches(file: IO[bytes]) -> Iterator[tuple[Batch, int]]:
    """(line number, put) by the batch, and how many bytes of the file that was."""
    batch: Batch = []
    size = number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if batch and (len(batch) == BATCH_KEYS or size + len(line) > BATCH_BYTES):
            yield batch, size
            batch, size = [], 0
        size += len(line)
        if line.strip():
            batch.append((number, {"put": _entry(line, number)}))
    if batch:
        yield batch, size


def _batches_of(dump: Dump) -> Iterator[tuple[Batch, int]]:
    """The same for a dump, which was read as a whole by then: the size of each batch counts for nothing."""
    batch: Batch = []
    size = 0
    for number, operation in dump.puts:
        length = len(operation["put"]["value"]) + len(operation["put"]["key"])
        if batch and (len(batch) == BATCH_KEYS or size + length > BATCH_BYTES):
            yield batch, 0
            batch, size = [], 0
        batch.append((number, operation))
        size += length
    if batch:
        yield batch, 0


def _entry(line: bytes, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line) if len(line) <= LINE_BYTES_MAX else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str) or not set(entry) <= FIELDS:
        raise errors.BadRequest(f"Line {number} is no JSON object with key, value (or text), content_type and ttl.")
    return entry


def _keys(count: int) -> str:
    return f"{count} key{'' if count == 1 else 's'}"


def _size(file: BinaryIO) -> int | None:
    """How many bytes there are to come, None where nobody knows."""
    try:
        at, end = file.tell(), file.seek(0, 2)
        file.seek(at)
        return end - at
    except OSError:
        return None


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal and does not run through what is printed on stdout."""
    if not sys.stderr.isatty():
        yield lambda more: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)
