"""Restoring over HTTP, in front of a group in memory: how much is held, what is retried, and each way to fail."""

from __future__ import annotations

import asyncio
import os

import msgpack
import pytest

from kvnode.errors import DiskFull, KvnodeError, NoLeader, OutcomeUnknown, Overloaded
from kvnode.http import body, restore
from kvnode.state.commands import (
    RESTORE_BEGIN,
    RESTORE_COMMIT,
    RESTORE_PIECE,
    BeginRestore,
    RaiseLevel,
)
from kvnode.state.limits import LEAP
from kvnode.state.results import Result
from kvnode.state.store import KeyValueStore
from kvnode.storage import backup
from tests.http.serving import Reply, Wire, serve, until
from tests.http.single import SingleGroup

PATH = "/admin/api/v1/restore"
TYPE = {"Content-Type": "application/octet-stream"}


def file_of(keys: int, value_bytes: int) -> bytes:
    store = KeyValueStore()
    for number in range(keys):
        store.apply([1, f"k{number:06}", os.urandom(value_bytes), "", None])
    return b"".join(backup.pieces(store.view(), "c"))


class Failing(SingleGroup):
    """Answers some commands otherwise: `plan` has an error for each time that a kind is proposed, None for none.

    An OutcomeUnknown is answered although the command was carried out.
    """

    def __init__(self, plan: dict[int, list[KvnodeError | None]]) -> None:
        super().__init__()
        self.store.apply(msgpack.unpackb(RaiseLevel(1).encode()))
        self.store.apply([1, "old", b"1", "", None])
        self.plan = plan

    def propose(self, command: bytes) -> asyncio.Future[Result]:
        errors = self.plan.get(command[1], [])
        error = errors.pop(0) if errors else None
        if error is not None and not isinstance(error, OutcomeUnknown):
            raise error
        answer = super().propose(command)
        if error is not None:
            raise error
        return answer


async def restored(group: SingleGroup, data: bytes, **headers: str) -> Reply:
    async with serve(group) as served, served.connect() as wire:
        return await wire.ask("POST", PATH, TYPE | headers, data)


async def test_a_body_above_every_budget_goes_through_a_small_part_of_it() -> None:
    group, data = Failing({}), file_of(96, 1_000_000)
    held: list[int] = []
    async with serve(group) as served, served.connect() as wire:
        bodies = served.server.app.budgets.bodies
        assert len(data) > bodies.limit
        asked = asyncio.create_task(wire.ask("POST", PATH, TYPE, data))
        while not asked.done():
            held.append(bodies.in_use)
            await asyncio.sleep(0)
        reply = await asked
        assert (reply.status, reply.json) == (200, {"revision": LEAP + 97, "items": 96, "backup_revision": 96})
        assert max(held) < 2_000_000
        assert bodies.in_use == bodies.refused == bodies.cut == 0
        assert (await wire.ask("GET", "/v1/kv/old")).status == 404  # the connection goes on
    assert (len(group.store), group.store.staging) == (96, None)


async def test_a_client_that_stalls_ends_its_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_DEADLINE_S", 0.3)
    group, data = Failing({}), file_of(500, 1_000)
    async with serve(group) as served, served.connect() as wire, served.connect() as other, served.connect() as third:
        wire.send(f"POST {PATH} HTTP/1.1\r\nHost: node\r\nContent-Length: {len(data)}\r\n".encode())
        wire.send(b"Content-Type: application/octet-stream\r\n\r\n" + data[: len(data) // 2])
        await until(lambda: group.store.staging is not None)
        assert (await other.ask("POST", PATH, TYPE, data)).json["error"] == "overloaded"
        reply = await wire.reply()
        assert (reply.status, reply.json["error"], reply.json["outcome"]) == (408, "request_timeout", "not_applied")
        assert (group.store.staging, len(group.store)) == (None, 1)
        assert (await third.ask("POST", PATH, TYPE, data)).status == 200


async def test_pieces_whose_outcome_is_not_known_are_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "PAUSE_S", 0.01)
    for error in (OutcomeUnknown("?"), NoLeader("no"), Overloaded("busy")):
        group = Failing({RESTORE_BEGIN: [error, error, None], RESTORE_PIECE: [None, error, None, error, error]})
        assert (await restored(group, file_of(500, 1_000))).status == 200
        assert len(group.store) == 500


async def test_until_the_last_step_every_failure_is_definite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "PAUSE_S", 0.01)
    monkeypatch.setattr(restore, "WINDOW_S", 0.05)
    data, much = file_of(500, 1_000), 1_000
    for kind in (RESTORE_BEGIN, RESTORE_PIECE, RESTORE_COMMIT):
        for error, code in ((NoLeader("no"), "no_leader"), (DiskFull("full"), "disk_full")):
            group = Failing({kind: [error] * much})
            reply = await restored(group, data)
            assert (reply.json["error"], reply.json["outcome"]) == (code, "not_applied")
            assert (group.store.staging, len(group.store)) == (None, 1)
    group = Failing({RESTORE_PIECE: [None, *[OutcomeUnknown("?"), NoLeader("no")] * much]})
    assert (await restored(group, data)).json["outcome"] in ("not_applied", None)
    group = Failing({RESTORE_COMMIT: [OutcomeUnknown("?")]})
    reply = await restored(group, data)
    assert (reply.json["error"], reply.json["outcome"]) == ("outcome_unknown", "unknown")


async def test_another_restore_takes_the_place_of_one_and_the_first_is_told() -> None:
    group, data = Failing({}), file_of(500, 1_000)
    async with serve(group) as served, served.connect() as wire:
        await _half_of(wire, data)
        await until(lambda: group.store.staging is not None)
        group.store.apply(msgpack.unpackb(BeginRestore(b"o" * 16, 1, 1, 0, 0).encode()))
        wire.send(data[len(data) // 2 :])
        reply = await wire.reply()
        assert (reply.status, reply.json["error"], reply.json["outcome"]) == (409, "conflict", "not_applied")
        assert group.store.staging is not None
        assert group.store.staging.id == b"o" * 16


async def _half_of(wire: Wire, data: bytes) -> None:
    wire.send(f"POST {PATH} HTTP/1.1\r\nHost: node\r\nContent-Length: {len(data)}\r\n".encode())
    wire.send(b"Content-Type: application/octet-stream\r\n\r\n" + data[: len(data) // 2])


async def test_the_time_that_the_client_gives_is_kept() -> None:
    reply = await restored(Failing({RESTORE_PIECE: [NoLeader("no")] * 1_000}), file_of(9, 9), **{"Kvnode-Timeout": "1"})
    assert (reply.json["error"], reply.json["outcome"]) == ("no_leader", "not_applied")


async def test_below_the_feature_level_the_message_names_the_bounds_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    group = SingleGroup()
    bounds = "up to 131,072 keys, as many leases, and 4 MiB once compressed"
    for data in (file_of(5, 1_000_000), file_of(65, 1_048_000)):
        reply = await restored(group, data)
        assert (reply.status, reply.json["error"], bounds in reply.json["message"]) == (413, "too_large", True)
    assert (await restored(group, file_of(50, 1_000))).json["items"] == 50
    assert group.store.staging is None
