"""A key at an old revision: what it was then, or that this is not known any more; never anything else."""

from __future__ import annotations

import random

import msgpack

from kvnode.state.commands import Delete, DeletePrefix, Put
from kvnode.state.store import KeyValueStore
from kvnode.watch.history import History
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup

KEYS = ("a", "b", "c")


def lived(group: SingleGroup, revisions: int) -> list[dict[str, tuple[bytes, int]]]:
    """Random writes, several to an entry of the log now and then; the whole store after each revision."""
    choose, states = random.Random(7), [dict[str, tuple[bytes, int]]()]
    while (revision := len(states)) <= revisions:
        key, state = choose.choice(KEYS), dict(states[-1])
        command: Put | Delete | DeletePrefix = Put(key, b"%d" % revision)
        match choose.randrange(5):
            case 0:
                command = Delete(key)
                state.pop(key, None)
            case 1:
                command = DeletePrefix(key)
                state.pop(key, None)
            case _:
                state[key] = b"%d" % revision, revision
        group.store.apply(msgpack.unpackb(command.encode()))
        if group.store.revision == revision:
            states.append(state)
            if choose.randrange(4) == 0 or revision == revisions:
                group.watches.publish()
    return states


async def test_every_key_at_every_revision(node: Served) -> None:
    states = lived(node.group, 120)
    async with node.connect() as wire:
        for revision, state in enumerate(states[1:], 1):
            for key in KEYS:
                reply = await wire.ask("GET", f"/v1/kv/{key}?revision={revision}")
                if key not in state:
                    assert (reply.status, reply.json["error"]) == (404, "key_not_found"), (key, revision)
                else:
                    assert (reply.status, reply.body) == (200, state[key][0]), (key, revision)
                    assert reply.headers["etag"] == f'"{state[key][1]}"'
                    assert reply.headers["kvnode-revision"] == str(revision)
        early = await wire.ask("GET", "/v1/kv/a?revision=121")
    assert (early.status, "still to come" in early.json["message"]) == (400, True)


async def test_what_is_forgotten_is_410_and_never_a_guess() -> None:
    group = SingleGroup()
    group.watches.history = History(changes_max=30)
    forgotten = 0
    async with serve(group) as node:
        states = lived(group, 120)
        oldest = group.watches.history.oldest
        async with node.connect() as wire:
            for revision, state in enumerate(states[1:], 1):
                for key in KEYS:
                    reply = await wire.ask("GET", f"/v1/kv/{key}?revision={revision}")
                    if reply.status == 410:
                        forgotten += 1
                        assert (reply.json["error"], reply.json["oldest_revision"]) == ("compacted", oldest)
                        assert revision < oldest or state[key][1] < oldest
                    else:
                        expected = (200, state[key][0]) if key in state else (404, reply.body)
                        assert (reply.status, reply.body) == expected, (key, revision)
    assert 91 <= oldest <= 110
    assert forgotten > 100


async def test_a_restore_does_not_make_the_present_out_of_the_past() -> None:
    group = SingleGroup()
    taken = group.store
    for value in (b"one", b"two"):
        await group.propose(Put("k", value).encode())
        if value == b"one":
            taken = KeyValueStore.load(group.store.view().chunks())
    group.store.replace(taken, 3, taken.leases.last_id)
    group.watches.publish()
    async with serve(group) as node:
        assert (await node.ask("GET", "/v1/kv/k")).body == b"one"
        then = await node.ask("GET", "/v1/kv/k?revision=2")
        assert (then.status, then.json["error"]) == (410, "compacted")
