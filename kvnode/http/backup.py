"""A backup, streamed as it is made: of one revision, by any node, at the pace of its reader.

The view is taken in O(1). Each piece is made in a worker thread when the client has taken the one before it, so a slow
client costs a node no more than a few pieces of memory, and the parts of the store that changed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from math import ceil
from typing import Final, cast

from aiohttp import HttpVersion11, web

from kvnode.errors import Overloaded
from kvnode.http.answer import PRIVATE, Answer
from kvnode.http.connection import Connection
from kvnode.http.consistency import consistency
from kvnode.http.credentials import REVIEW_S, Admission, admission_of
from kvnode.http.group import Group
from kvnode.http.paths import Query
from kvnode.http.route import Endpoint, Methods
from kvnode.node.pace import Pace
from kvnode.storage import backup

PATH: Final = "/admin/api/v1/backup"
AT_ONCE_MAX: Final = 2  # each holds a worker thread now and then, and what the store had before it changed
STALLED_S: Final = 30.0  # a client that has taken nothing for so long is not coming back

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\n%bContent-Type: application/octet-stream\r\n%b%b"
    b'Content-Disposition: attachment; filename="revision-%d.kvnb"\r\n'
    b"Kvnode-Revision: %d\r\n%bConnection: close\r\n\r\n"
)


class Backups:
    """How many are on their way."""

    def __init__(self) -> None:
        self.open = 0


def routes(group: Group) -> dict[str, Methods]:
    backups = Backups()

    async def start(request: web.BaseRequest, rest: str, query: str) -> Answer:
        """`?consistency=stale` gives what this node holds, also where the cluster has no leader."""
        if backups.open >= AT_ONCE_MAX:
            raise Overloaded(f"{AT_ONCE_MAX} backups of this node are under way: ask another node, or later.")
        backups.open += 1  # before the wait: else any number could pass it together
        try:
            headers = await consistency(group, Query(query))
        finally:
            backups.open -= 1
        return BackupStream(group, backups, headers)

    return {PATH: {"GET": Endpoint(start, "consistency")}}


class BackupStream(Answer):
    """Not whole until its last, empty chunk: a client sees where it was cut off, by HTTP and by the file's own end."""

    __slots__ = ("_backups", "_group")

    def __init__(self, group: Group, backups: Backups, headers: bytes) -> None:
        super().__init__(200, headers, close=True)
        self._group = group
        self._backups = backups

    async def write_eof(self, chunk: bytes = b"") -> None:
        request = self._request
        self._request = None
        transport = None if request is None else request.transport
        if request is None or transport is None or transport.is_closing():
            raise ConnectionResetError("the client has gone")
        view = self._group.store.view()
        made = backup.pieces(view, self._group.status().cluster_id, Pace().rest)
        framed = request.version >= HttpVersion11
        encoding = b"Transfer-Encoding: chunked\r\n" if framed else b""
        self._backups.open += 1
        try:
            cast(Connection, request.protocol).drop_body(request)
            transport.write(_HEAD % (self.stamp, PRIVATE, self.headers, view.revision, view.revision, encoding))
            await self._send(request, made, framed)
        except BaseException:
            transport.abort()  # never an end that looks like one
            raise
        finally:
            self._backups.open -= 1

    async def _send(self, request: web.BaseRequest, made: Iterator[bytes], framed: bool) -> None:
        loop = asyncio.get_running_loop()
        admission = admission_of(request)
        while (piece := await loop.run_in_executor(None, next, made, b"")) != b"":
            transport = request.transport
            if transport is None or transport.is_closing():
                raise ConnectionResetError("the client has gone")
            if admission is not None and not admission.holds():
                raise ConnectionResetError("what the backup was asked for with has ended")
            transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n") if framed else (piece,))
            await self._taken(request, admission)
        if framed and request.transport is not None:
            request.transport.write(b"0\r\n\r\n")

    async def _taken(self, request: web.BaseRequest, admission: Admission | None) -> None:
        """Returns once the client has read most of what it was sent. ConnectionResetError if that is not to be."""
        for _ in range(ceil(STALLED_S / REVIEW_S)):
            try:
                async with asyncio.timeout(REVIEW_S):
                    return await request.writer.drain()
            except TimeoutError:
                if admission is not None and not admission.holds():
                    raise ConnectionResetError("what the backup was asked for with has ended") from None
        raise ConnectionResetError("the client does not read its backup")
