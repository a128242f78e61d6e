"""A key at an old revision: what it was then, or that this is not known any more; never anything else."""

from __future__ import annotations

import random

from kvnode.commands import Delete, DeletePrefix, Put
from kvnode.watch.history import History
from tests.http.serving import Served, serve
from tests.http.single import SingleGroup

KEYS = ("a", "b", "c")


async def lived(node: Served, revisions: int) -> list[dict[str, tuple[bytes, int]]]:
    """Random writes; the whole store after each revision."""
    choose, states = random.Random(7), [dict[str, tuple[bytes, int]]()]
    while (revision := len(states)) <= revisions:
        key, state = choose.choice(KEYS), dict(states[-1])
        match choose.randrange(5):
            case 0:
                await node.group.propose(Delete(key, None).encode())
                state.pop(key, None)
            case 1:
                await node.group.propose(DeletePrefix(key).encode())
                state.pop(key, None)
            case _:
                await node.group.propose(Put(key, b"%d" % revision).encode())
                state[key] = b"%d" % revision, revision
        if node.group.store.revision == revision:
            states.append(state)
    return states


async def test_every_key_at_every_revision(node: Served) -> None:
    states = await lived(node, 120)
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
        states = await lived(node, 120)
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
    assert oldest == 91
    assert forgotten > 100
