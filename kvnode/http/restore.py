"""Restoring into a running cluster: the contents of a backup take the place of all keys, in one revision.

The body is taken in pieces, and goes into the replicated state in pieces as well (`state/staged_restore.py`), a few at
a time: the client is read as fast as the cluster takes them, and a backup of any size needs some hundred KiB of this
node. No reader sees any of it before the last command. Until that is sent, every failure is definite; a piece whose
outcome is not known is sent again, since each has a number. So a new leader in the middle is a pause and no failure.

Below feature level 1 some member may not know these commands: there the file is read whole, and has to fit one entry
of the log.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final

import msgpack
from aiohttp import web

from kvnode.deadline import deadline, remaining_s
from kvnode.errors import BadRequest, Conflict, KvnodeError, OutcomeUnknown, Overloaded, TooLarge, Unavailable
from kvnode.http.answer import Answer, json_answer
from kvnode.http.audit import Noted
from kvnode.http.body import BodyStream, read_body
from kvnode.http.credentials import check_still_admitted
from kvnode.http.group import Group
from kvnode.http.route import Methods
from kvnode.state.admin_commands import packed_contents
from kvnode.state.commands import (
    AbortRestore,
    BeginRestore,
    CommitRestore,
    Replace,
    RestorePiece,
)
from kvnode.state.limits import (
    CONTENTS_BYTES_MAX,
    LEAP,
    REPLACE_BYTES_MAX,
    RESTORE_ID_BYTES,
)
from kvnode.state.results import (
    Invalid,
    Replaced,
    RestoreMissing,
    Result,
    Staged,
)
from kvnode.state.view import Header
from kvnode.storage import backup

PATH: Final = "/admin/api/v1/restore"
# Below feature level 1. Keys, and as many leases. Each node reads them in a thread, one to two seconds beside all
# else; what is written behind them waits so long.
ITEMS_MAX: Final = 131_072
DEADLINE_S: Final = 30.0  # for all nodes to read it, also on a machine with little time for them
# Pieces that are on their way at a time, by bytes and by number. They go into one entry, which each node applies
# without a rest: of the smallest items, a piece takes 5 ms, and an election is 600 ms away.
WINDOW_BYTES: Final = 196_608
WINDOW_PIECES: Final = 4
# For one window. Three elections, each with a write's own deadline, and time for a node that is busy.
WINDOW_S: Final = 20.0
PAUSE_S: Final = 0.1  # before a window is sent again


def routes(group: Group) -> dict[str, Methods]:
    busy = asyncio.Lock()

    async def restore(request: web.BaseRequest, rest: str, query: str) -> Answer:
        if busy.locked():
            raise Overloaded("A backup is being restored already: wait for its end.")
        async with busy:
            restored, former = await (_Restore(group).run(request) if group.store.level else _at_once(group, request))
        document = {"revision": restored.revision, "items": restored.items, "backup_revision": former}
        return Noted(json_answer(200, document), f"restored {restored.items} keys of revision {former}")

    return {PATH: {"POST": restore}}


class _Restore:
    """One backup on its way into the cluster."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._id = os.urandom(RESTORE_ID_BYTES)
        self._sent = 0  # pieces that are there
        self._begun = False

    async def run(self, request: web.BaseRequest) -> tuple[Replaced, int]:
        """What came of it, and the backup's own revision. Only an OutcomeUnknown of its last step is indefinite."""
        stream = BodyStream(request)
        try:
            head = await self._stage(stream)
            check_still_admitted(request)  # by now, so long after its head
            commit = CommitRestore(self._id, self._sent, await self._leap(head))
            restored = _replaced(await self._group.propose(commit.encode()))
            self._begun = False
            return restored, head.revision
        except backup.Damaged as damage:
            raise BadRequest(_not_whole(damage)) from None
        finally:
            stream.end()
            if self._begun:  # behind a commit whose outcome is not known it finds nothing, or nothing that counts
                _drop(self._group, self._id)

    async def _leap(self, head: backup.BackupHead) -> int:
        """All that this cluster gave is below its own counters when the last step is applied. Another one may have
        given more after the backup was made than that says: so its numbers are leapt over. So may this one's, where the
        backup is ahead of it: then the two are copies of one cluster that have gone on apart.
        """
        await self._group.read_barrier()  # from here on this node knows of all that the cluster has given up to here
        ahead = head.revision > self._group.store.revision
        return LEAP if ahead or head.cluster_id != self._group.status().cluster_id else 0

    async def _stage(self, stream: BodyStream) -> backup.BackupHead:
        head: backup.BackupHead | None = None
        window: list[bytes] = []
        size = 0
        async for part in backup.parts(stream.take):
            if isinstance(part, backup.BackupHead):
                head = part
            elif not isinstance(part, bytes):
                await self._begin(part)
            else:
                window.append(RestorePiece(self._id, self._sent + len(window), part).encode())
                size += len(part)
                if size >= WINDOW_BYTES or len(window) >= WINDOW_PIECES:
                    await self._send(window)
                    window, size = [], 0
        await self._send(window)
        assert head is not None
        return head

    async def _begin(self, header: Header) -> None:
        self._begun = True
        counts = (header.item_count, header.lease_count, header.last_lease_id)
        begin = BeginRestore(self._id, header.revision, *counts, header.small.get("renewals", 0))
        await self._until([begin.encode()], lambda pieces: 1)

    async def _send(self, window: list[bytes]) -> None:
        first = self._sent
        await self._until(window, lambda pieces: pieces - first)
        self._sent = first + len(window)

    async def _until(self, commands: Sequence[bytes], done_of: Callable[[int], int]) -> None:
        """Sends the commands until all are carried out. Raises what is definite: nothing is restored by then.

        `done_of`: how many of them are, once so many pieces are there.
        """
        loop = asyncio.get_running_loop()
        done, ends_at = 0, loop.time() + WINDOW_S
        while done < len(commands):
            refused: KvnodeError | None = None
            for outcome in await self._group.propose_each(commands[done:]):
                if isinstance(outcome, Staged):
                    done = max(done, done_of(outcome.pieces))
                elif isinstance(outcome, OutcomeUnknown | Unavailable):
                    refused = outcome
                elif isinstance(outcome, KvnodeError):
                    raise outcome
                else:
                    _replaced(outcome)
            if done < len(commands):
                if loop.time() >= ends_at or remaining_s(1.0) <= PAUSE_S:
                    raise _gave_up(refused)
                await asyncio.sleep(PAUSE_S)


def _gave_up(refused: KvnodeError | None) -> KvnodeError:
    if isinstance(refused, Unavailable):
        return refused
    return Unavailable("The cluster did not take the backup in time: nothing was restored; send it again.")


def _drop(group: Group, restore_id: bytes) -> None:
    """What has come is dropped, on every node. Without waiting: where it fails, the next restore does the same."""
    before = deadline.set(None)  # the request's own may be over
    try:
        group.propose(AbortRestore(restore_id).encode()).add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )
    except KvnodeError:
        pass  # as above
    finally:
        deadline.reset(before)


def _replaced(result: Result) -> Replaced:
    """Raises what the cluster says instead."""
    if isinstance(result, Replaced):
        return result
    if isinstance(result, RestoreMissing):
        raise Conflict(
            "The restore has ended meanwhile, because no part came for a minute or another one has begun: "
            "nothing of this one was restored; send it again."
        )
    if isinstance(result, Invalid):
        raise BadRequest(f"The backup breaks a limit, or is not whole ({result.reason}): nothing was restored.")
    raise BadRequest("This node takes the backup for whole and the cluster does not: nothing was restored.")


def _not_whole(damage: backup.Damaged) -> str:
    return f"This is no whole backup ({damage}): nothing was restored; use another one."


# --- below feature level 1 ---------------------------------------------------------------------------


async def _at_once(group: Group, request: web.BaseRequest) -> tuple[Replaced, int]:
    loop = asyncio.get_running_loop()
    # Not by a name that would keep the file while the nodes read what it brings.
    command, former = await loop.run_in_executor(None, _command, await _file(request))
    return _replaced(await group.propose(command, DEADLINE_S)), former


async def _file(request: web.BaseRequest) -> bytes:
    try:
        return await read_body(request, CONTENTS_BYTES_MAX)
    except TooLarge:
        raise _too_large(f"is over {CONTENTS_BYTES_MAX >> 20} MiB") from None


def _command(data: bytes) -> tuple[bytes, int]:
    """In a worker: the command, and the backup's own revision. Raises BadRequest, TooLarge."""
    try:
        head, chunks = backup.chunks_of(data)
    except backup.Damaged as damage:
        raise BadRequest(_not_whole(damage)) from None
    chunks, leases = _keys_and_leases(chunks)
    packed = packed_contents(chunks)
    if len(packed) > REPLACE_BYTES_MAX or head.items > ITEMS_MAX or leases > ITEMS_MAX:
        raise _too_large(f"has {head.items:,}, {leases:,} and {len(packed) / 1_048_576:.1f}")
    return Replace(packed).encode(), head.revision


def _too_large(what: str) -> TooLarge:
    return TooLarge(
        "While a member may be of version 0.1, a running cluster takes a backup of up "
        f"to {ITEMS_MAX:,} keys, as many leases, and {REPLACE_BYTES_MAX >> 20} MiB once compressed: this one {what}; "
        "upgrade all members, or make a new cluster of it with 'kvnode restore --data-dir'."
    )


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
    if len(header) > 6:
        header[6].pop("tokens", None)  # a running cluster keeps its own, and version 0.1 cannot read all of them
    return [msgpack.packb(header, use_bin_type=True), *chunks[first:]], leases
