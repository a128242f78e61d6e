"""A node's part in the session key: several nodes on one log, which is applied when the test says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.errors import Conflict
from kvnode.node.session_key import (
    FILE,
    LOOK_S,
    MISSING,
    SessionKey,
)
from kvnode.state import session_keys
from kvnode.state.entries import decode_entry
from kvnode.state.results import Result
from kvnode.state.store import KeyValueStore
from kvnode.storage.disk import Directory

GIVEN, OTHER = session_keys.keys_of(b"the-key-that-was-given another-one-that-is-not-it")


class Log:
    def __init__(self) -> None:
        self.commands: list[list[object]] = []
        self.now_s = 100.0


class Member:
    """One node; it leads while `term` is set."""

    def __init__(self, log: Log, path: Path, *given: bytes) -> None:
        self.log = log
        self.term: int | None = None
        self.store = KeyValueStore()
        self.applied = 0
        self.disk = Directory(path)
        self.key = SessionKey(self.store, given)

    def serving_term(self) -> int | None:
        return self.term

    def is_current(self) -> bool:
        return self.applied > 0

    def propose(self, payload: bytes) -> int:
        ((_, _, (command,)),) = decode_entry(payload)
        self.log.commands.append(command)
        return len(self.log.commands)

    async def propose_and_wait(self, command: bytes) -> Result:
        import msgpack

        self.log.commands.append(msgpack.unpackb(command))
        results = self.apply()
        return results[-1]

    def begin(self) -> None:
        self.key.run(self, lambda: self.log.now_s, self.disk)
        self.key.stop()  # the test looks by itself

    def apply(self) -> list[Result]:
        results = [self.store.apply(command) for command in self.log.commands[self.applied :]]
        self.applied = len(self.log.commands)
        return results

    def catches_up(self) -> None:
        self.apply()
        self.key.look()


@pytest.fixture
def log() -> Log:
    return Log()


async def test_one_leader_proposes_once_and_every_node_adopts_what_was_applied(log: Log, tmp_path: Path) -> None:
    nodes = [Member(log, tmp_path / name) for name in "abc"]
    for node in nodes:
        node.begin()
        node.key.look()
        assert (node.key.keys, node.key.error) == ((), MISSING)
    nodes[0].term = 1
    for _ in range(5):
        nodes[0].key.look()
    assert len(log.commands) == 1
    assert nodes[0].key.keys == ()  # what is proposed is not agreed on yet
    for node in nodes:
        node.catches_up()
    assert len({node.key.keys for node in nodes}) == 1
    assert nodes[0].key.error is None
    assert len(nodes[0].key.keys[0]) == session_keys.KEY_BYTES
    nodes[1].term = 2
    nodes[1].key.look()
    assert len(log.commands) == 1


async def test_two_leaders_of_different_terms_agree_on_the_first(log: Log, tmp_path: Path) -> None:
    nodes = [Member(log, tmp_path / name) for name in "ab"]
    for term, node in enumerate(nodes, 1):
        node.begin()
        node.term = term
        node.key.look()
    assert len(log.commands) == 2
    for node in nodes:
        node.catches_up()
    assert nodes[0].key.keys == nodes[1].key.keys == (log.commands[0][2],)


async def test_nodes_with_different_keys_notice_and_one_without_says_what_it_lacks(log: Log, tmp_path: Path) -> None:
    first, same, other, none = (
        Member(log, tmp_path / name, *given)
        for name, given in {"a": (GIVEN,), "b": (GIVEN,), "c": (OTHER,), "d": ()}.items()
    )
    first.term = 1
    for node in (first, same, other, none):
        node.begin()
        node.catches_up()
    assert GIVEN not in log.commands[0]
    for node in (first, same, other, none):
        node.catches_up()
    assert first.key.keys == same.key.keys == (GIVEN,)
    assert other.key.keys == none.key.keys == ()
    fingerprints = [session_keys.fingerprint_of(key).hex() for key in (OTHER, GIVEN)]
    assert other.key.error is not None
    assert all(fingerprint in other.key.error for fingerprint in fingerprints)
    assert other.key.blocking == other.key.error
    assert (none.key.error, "not to this one" in str(none.key.blocking)) == (MISSING, True)
    for node in (other, none):
        with pytest.raises(Conflict):
            await node.key.rotate(node.propose_and_wait, 60)


async def test_a_rotation_keeps_the_last_key_for_its_time_and_no_longer(log: Log, tmp_path: Path) -> None:
    node = Member(log, tmp_path / "a")
    node.term = 1
    node.begin()
    node.key.look()
    node.catches_up()
    (old,) = node.key.keys
    known = await node.key.rotate(node.propose_and_wait, 60)
    node.key.look()
    new = node.key.keys[0]
    assert (node.key.keys, known.number) == ((new, old), 2)
    with pytest.raises(Conflict, match="still accepted"):
        await node.key.rotate(node.propose_and_wait, 60)
    for _ in range(round(59 / LOOK_S)):
        log.now_s += LOOK_S
        node.catches_up()
    assert node.key.keys == (new, old)
    node.term = 2  # another leader's clock begins again: late, never early
    for _ in range(round(59 / LOOK_S)):
        log.now_s += LOOK_S
        node.catches_up()
    assert node.key.keys == (new, old)
    log.now_s += 2
    node.catches_up()
    node.catches_up()
    assert node.key.keys == (new,)
    assert await node.key.rotate(node.propose_and_wait, 0)
    node.key.look()
    assert new not in node.key.keys


async def test_from_a_key_of_the_cluster_to_one_that_nodes_are_given_and_to_the_next(log: Log, tmp_path: Path) -> None:
    node, given = Member(log, tmp_path / "a"), Member(log, tmp_path / "b", GIVEN)
    node.term = 1
    for each in (node, given):
        each.begin()
        each.catches_up()
    for each in (node, given):
        each.catches_up()
    assert given.key.keys == node.key.keys
    assert given.key.error is None
    assert session_keys.fingerprint_of(GIVEN).hex() in str(given.key.warning)
    (made,) = given.key.keys
    await given.key.rotate(given.propose_and_wait, 60)
    given.key.look()
    assert (given.key.keys, given.key.warning) == ((GIVEN, made), None)
    with pytest.raises(Conflict, match="restart them one by one"):
        await given.key.rotate(given.propose_and_wait, 0)
    both = Member(log, tmp_path / "c", OTHER, GIVEN)
    both.begin()
    both.catches_up()
    assert both.key.keys == (GIVEN, made)
    await both.key.rotate(both.propose_and_wait, 0)
    both.key.look()
    assert both.key.keys == (OTHER,)


async def test_what_was_adopted_is_there_after_a_restart_until_the_log_says_otherwise(log: Log, tmp_path: Path) -> None:
    node = Member(log, tmp_path / "a")
    node.term = 1
    node.begin()
    node.key.look()
    node.catches_up()
    (key,) = node.key.keys
    node.key._write()
    node.disk.close()

    alone = Member(log, tmp_path / "a")  # knows of nothing that is committed
    alone.begin()
    alone.key.look()
    assert (alone.key.keys, alone.key.error) == ((key,), None)
    log.commands.clear()  # as if the cluster had lost its log, and so its key
    log.commands.append([*session_keys.command(0, OTHER, session_keys.fingerprint_of(OTHER), 0)])
    alone.catches_up()
    assert alone.key.keys == (OTHER,)
    alone.disk.close()
    written = (tmp_path / "a" / FILE).read_bytes()
    for number, damage in enumerate((b"", b"x" * 40, written[:-1])):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / FILE).write_bytes(damage)
        again = Member(log, tmp_path / str(number))
        again.begin()
        assert (again.key.keys, again.key.error) == ((), MISSING)
        again.disk.close()


async def test_what_signs_takes_the_clusters_secret(log: Log, tmp_path: Path) -> None:
    secret = b"the cluster's secret"
    node = Member(log, tmp_path / "node")
    node.key = SessionKey(node.store, (), secret)
    node.begin()
    node.term = 1
    node.key.look()
    node.catches_up()
    made = node.store.session.key
    assert len(made) == session_keys.KEY_BYTES
    assert node.key.keys == (session_keys.signing_key(secret, made),)
    assert (node.key.error, node.key.known.fingerprint) == (None, session_keys.fingerprint_of(made))
