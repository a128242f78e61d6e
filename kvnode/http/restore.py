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
from kvnode.commands import Replace
from kvnode.errors import BadRequest, Overloaded, TooLarge
from kvnode.http.answer import Answer, json_answer
from kvnode.http.body import read_body
from kvnode.http.group import Group
from kvnode.http.route import Methods
from kvnode.limits import CONTENTS_BYTES_MAX, LEAP, REPLACE_BYTES_MAX
from kvnode.results import Replaced

PATH: Final = "/admin/api/v1/restore"
# Keys, and as many leases. Each node reads them in a thread, a second or two beside everything else; what is written
# behind them waits so long.
ITEMS_MAX: Final = 131_072
DEADLINE_S: Final = 30.0  # for all nodes to read it, also on a machine with little time for them


def routes(group: Group) -> dict[str, Methods]:
    busy = asyncio.Lock()

    async def read(request: web.BaseRequest) -> tuple[bytes, int]:
        """The file is kept no longer than this takes: not while the nodes read what it brings."""
        data = await read_body(request, CONTENTS_BYTES_MAX)
        await group.read_barrier()  # from here on this node knows of all that the cluster has given up to here
        own = (group.status().cluster_id, group.store.revision) if group.store.level else None
        return await asyncio.get_running_loop().run_in_executor(None, _command, data, own)

    async def restore(request: web.BaseRequest, rest: str, query: str) -> Answer:
        if busy.locked():
            raise Overloaded("A backup is being restored already: wait for its end.")
        async with busy:
            command, former = await read(request)
            result = await group.propose(command, DEADLINE_S)
        if not isinstance(result, Replaced):
            raise BadRequest("This node takes the backup for whole and the cluster does not: nothing was restored.")
        document = {"revision": result.revision, "items": result.items, "backup_revision": former}
        return json_answer(200, document)

    return {PATH: {"POST": restore}}


def _command(data: bytes, own: tuple[str, int] | None = None) -> tuple[bytes, int]:
    """In a worker: the command, and the backup's own revision. Raises BadRequest, TooLarge.

    `own`: this cluster's id and revision, None below feature level 1, where some member knows no leap. All that this
    cluster gave is below its own counters when the command is applied. Another one may have given more after the backup
    was made than that says: so its numbers are leapt over. So may this one's, where the backup is ahead of it: then the
    two are copies of one cluster that have gone on apart.
    """
    try:
        head, chunks = backup.chunks_of(data)
    except backup.Damaged as damage:
        raise BadRequest(f"This is no whole backup ({damage}): nothing was restored; use another one.") from None
    chunks, leases = _keys_and_leases(chunks)
    packed = packed_contents(chunks)
    if len(packed) > REPLACE_BYTES_MAX or head.items > ITEMS_MAX or leases > ITEMS_MAX:
        raise TooLarge(
            f"A running cluster takes a backup of up to {ITEMS_MAX:,} keys, as many leases, and "
            f"{REPLACE_BYTES_MAX >> 20} MiB, once compressed: this one has {head.items:,}, {leases:,} and "
            f"{len(packed) / 1_048_576:.1f}; make a new cluster of it with 'kvnode restore --data-dir'."
        )
    leap = LEAP if own is not None and (head.cluster_id != own[0] or head.revision > own[1]) else 0
    return Replace(packed, leap).encode(), head.revision


def _keys_and_leases(chunks: list[bytes]) -> tuple[list[bytes], int]:
    """A backup's chunks without the outcomes of idempotency keys, which a running cluster keeps its own of: each node
    would load them in its loop for nothing. And how many leases are left."""
    header = msgpack.unpackb(chunks[0])
    outcomes, leases = ([*header[3:5], 0, 0])[:2]
    first = 1
    while outcomes:
        outcomes -= len(msgpack.unpackb(chunks[first]))
        first += 1
    if len(header) > 3:
        header[3] = 0
    return [msgpack.packb(header, use_bin_type=True), *chunks[first:]], leases
