"""Restoring into a running cluster: the contents of a backup take the place of all keys, in one entry of the log.

The file is read to its end and checked whole before anything is proposed. What is proposed has to fit one entry: for
more, a new cluster is made of the backup, offline (`kvnode restore --data-dir`).
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgpack
from aiohttp import web

from kvnode import backup
from kvnode.beside import packed_contents
from kvnode.commands import REPLACE
from kvnode.errors import BadRequest, Overloaded, TooLarge
from kvnode.http.answer import Answer, json_answer
from kvnode.http.body import read_body
from kvnode.http.group import Group
from kvnode.http.route import Methods
from kvnode.limits import CONTENTS_BYTES_MAX, REPLACE_BYTES_MAX
from kvnode.results import Replaced

PATH: Final = "/admin/api/v1/restore"
# Each node loads them in its loop, in less than the shortest election timeout: these take half a second.
ITEMS_MAX: Final = 131_072


def routes(group: Group) -> dict[str, Methods]:
    busy = asyncio.Lock()

    async def restore(request: web.BaseRequest, rest: str, query: str) -> Answer:
        if busy.locked():
            raise Overloaded("A backup is being restored already: wait for its end.")
        async with busy:
            data = await read_body(request, CONTENTS_BYTES_MAX)
            command, former = await asyncio.get_running_loop().run_in_executor(None, _command, data)
            result = await group.propose(command)
        if not isinstance(result, Replaced):
            raise BadRequest("This node takes the backup for whole and the cluster does not: nothing was restored.")
        document = {"revision": result.revision, "items": result.items, "backup_revision": former}
        return json_answer(200, document)

    return {PATH: {"POST": restore}}


def _command(data: bytes) -> tuple[bytes, int]:
    """In a worker: the command, and the backup's own revision. Raises BadRequest, TooLarge."""
    try:
        head, chunks = backup.chunks_of(data)
    except backup.Damaged as damage:
        raise BadRequest(f"This is no whole backup ({damage}): nothing was restored; use another one.") from None
    packed = packed_contents(chunks)
    if len(packed) > REPLACE_BYTES_MAX or head.items > ITEMS_MAX:
        raise TooLarge(
            f"A running cluster takes a backup of up to {ITEMS_MAX:,} keys and {REPLACE_BYTES_MAX >> 20} MiB, once "
            f"compressed: this one has {head.items:,} and {len(packed) / 1_048_576:.1f}; make a new cluster of it with "
            "'kvnode restore --data-dir'."
        )
    command: bytes = msgpack.packb((REPLACE, packed), use_bin_type=True)
    return command, head.revision
