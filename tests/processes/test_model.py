"""The whole store against plain dicts, and an import, on three nodes whose leader is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvnode import errors
from kvnode.client import Found, Put, SyncClient, delete, delete_prefix, get, put, when
from kvnode.state.commands import DELETE, DELETE_PREFIX, PUT
from kvnode.state.results import (
    Deleted,
    Got,
    TxnResult,
    Written,
)
from kvnode.state.transactions import (
    EXISTS,
    GET,
    VALUE,
    VERSION,
)
from tests.cli.command import COMMAND, environment
from tests.cluster import Cluster, wait_until
from tests.state.test_store_model import Model

TTL_S = 3_600  # nothing leaves by itself here; test_leases.py is about that
STEPS_BEFORE_A_FAILURE = 6
KEYS = 12_000

keys = st.sampled_from(["m/a", "m/a/b", "m/b", "m/é", "m/a//b"])
values = st.sampled_from([b"", b"1", b"\x00\xff", b"x" * 5_000])
nodes = st.integers(0, 2)
leases = st.integers(0, 3)  # the oldest ones that there are, and one that is not
compares = st.one_of(
    st.tuples(keys, st.just(VERSION), st.sampled_from(["=", "!=", "<", ">", "<=", ">="]), st.integers(0, 3)),
    st.tuples(keys, st.just(VALUE), st.sampled_from(["=", "!="]), values),
    st.tuples(keys, st.just(EXISTS), st.just("="), st.booleans()),
)
operations = st.one_of(
    st.tuples(st.just(PUT), keys, values),
    st.tuples(st.just(GET), keys),
    st.tuples(st.just(DELETE), keys),
    st.tuples(st.just(DELETE_PREFIX), st.sampled_from(["m/a", "m/"])),
)


def entry(operation: tuple[Any, ...]) -> dict[str, Any]:
    makers: dict[int, Any] = {PUT: put, GET: get, DELETE: delete, DELETE_PREFIX: delete_prefix}
    return dict(makers[operation[0]](*operation[1:]))


def comparison(key: str, target: int, sign: Any, operand: Any) -> dict[str, Any]:
    name = {VERSION: "version", VALUE: "value", EXISTS: "exists"}[target]
    return when(key, sign, **{name: operand})


def seen(result: Written | Deleted | Got, key: str) -> Put | int | Found:
    """A result of the model as the client would say it."""
    if isinstance(result, Written):
        return Put(result.revision, result.version, result.version == 1, result.lease or None)
    if isinstance(result, Deleted):
        return result.deleted
    if result.item is None:
        return Found(key, False)
    return Found(key, True, result.item.value, result.create_revision, result.mod_revision, result.version)


class Machine(RuleBasedStateMachine):
    """One client at a time, by any node; the model goes on from example to example, as the cluster does."""

    cluster: ClassVar[Cluster]
    clients: ClassVar[list[SyncClient]]
    model: ClassVar[Model]
    failures: ClassVar[Iterator[str]]
    failed: ClassVar[list[str]]
    failing: ClassVar[threading.Thread | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.has_failed = False
        self.last: tuple[str, bytes, str, Put] | None = None
        # Each example begins with the same: which rules there are to choose from must not depend on the one before it.
        for lease in sorted(self.model.leases):
            self.end(lease, 0)
        deleted = self.clients[0].delete_prefix("m/")
        assert self.model.delete_all(self.model.starting("m/")).deleted == deleted
        self.model.settle()

    def lease_of(self, number: int) -> int:
        known = sorted(self.model.leases)
        return known[number] if number < len(known) else 2**40

    @rule(node=nodes, key=keys, value=values, number=st.none() | leases, own=st.booleans())
    def put(self, node: int, key: str, value: bytes, number: int | None, own: bool) -> None:
        lease = None if number is None else self.lease_of(number)
        ttl = TTL_S if lease is None and own else None
        idempotency_key = f"{time.monotonic_ns()}"
        try:
            done = self.clients[node].put(key, value, ttl=ttl, lease=lease, idempotency_key=idempotency_key)
        except errors.LeaseNotFound:
            assert lease not in self.model.leases
            return
        self.model.revision += 1
        expected = self.model.put(self.model.revision, key, value, lease or 0, ttl or 0)
        assert done == Put(expected.revision, expected.version, expected.version == 1, expected.lease or None)
        if not ttl and not lease:
            self.last = key, value, idempotency_key, done

    @rule(node=nodes)
    @precondition(lambda self: self.last is not None)
    def repeat_the_last_put(self, node: int) -> None:
        assert self.last is not None
        key, value, idempotency_key, done = self.last
        assert self.clients[node].put(key, value, idempotency_key=idempotency_key) == done

    @rule(node=nodes, key=keys, value=values, behind=st.integers(0, 2))
    def put_if_unchanged(self, node: int, key: str, value: bytes, behind: int) -> None:
        item = self.model.items.get(key)
        revision = max(1, (item.mod_revision if item else 1) - behind)
        try:
            done = self.clients[node].put(key, value, if_match=revision)
        except errors.PreconditionFailed as refusal:
            assert item is None or item.mod_revision != revision
            assert refusal.current_revision == (item and item.mod_revision)  # noqa: PT017
            return
        assert item is not None
        assert item.mod_revision == revision
        self.model.revision += 1
        expected = self.model.put(self.model.revision, key, value, 0, 0)
        assert (done.revision, done.version) == (expected.revision, expected.version)

    @rule(node=nodes, key=keys)
    def get(self, node: int, key: str) -> None:
        item = self.model.items.get(key)
        try:
            found = self.clients[node].get(key)
        except errors.KeyNotFound:
            assert item is None
            return
        assert item is not None
        assert (found.value, found.mod_revision) == (item.value, item.mod_revision)
        assert (found.revision, found.lease or 0) == (self.model.revision, item.lease)

    @rule(node=nodes, key=keys)
    def delete(self, node: int, key: str) -> None:
        try:
            revision = self.clients[node].delete(key)
        except errors.KeyNotFound:
            assert key not in self.model.items
            return
        assert self.model.delete_all([key]) == Deleted(1, revision)

    @rule(node=nodes, prefix=st.sampled_from(["m/a", "m/b", "m/c"]))
    def delete_prefix(self, node: int, prefix: str) -> None:
        assert self.model.delete_all(self.model.starting(prefix)).deleted == self.clients[node].delete_prefix(prefix)

    @rule(node=nodes, asked=st.lists(compares, max_size=2), branches=st.tuples(*[st.lists(operations, max_size=3)] * 2))
    def transact(self, node: int, asked: list[Any], branches: tuple[list[Any], list[Any]]) -> None:
        lists = [[comparison(*each) for each in asked], *([entry(each) for each in branch] for branch in branches)]
        plain = [[(*each, "", 0, 0) if each[0] == PUT else each for each in branch] for branch in branches]
        try:
            done = self.clients[node].txn(*lists)
        except (errors.BadRequest, errors.OutcomeUnknown):
            # Malformed as it is, it stays in doubt where a connection broke first: whom that led to may be another
            # version, and have known better.
            assert self.model.transact(asked, *plain) is None
            return
        expected = self.model.transact(asked, *plain)
        assert isinstance(expected, TxnResult), expected
        assert (done.succeeded, done.revision) == (expected.succeeded, expected.revision)
        ran = branches[0] if expected.succeeded else branches[1]
        for operation, mine, theirs in zip(ran, expected.results, done.results, strict=True):
            assert theirs == seen(mine, operation[1])

    @rule(node=nodes)
    @precondition(lambda self: len(self.model.leases) < 4)
    def grant(self, node: int) -> None:
        assert self.clients[node].leases.grant(TTL_S).id == self.model.grant(TTL_S, False)

    @rule(node=nodes, number=leases)
    def revoke(self, node: int, number: int) -> None:
        lease = self.lease_of(number)
        try:
            self.end(lease, node)
        except errors.LeaseNotFound:
            assert lease not in self.model.leases

    def end(self, lease: int, node: int) -> None:
        deleted = self.clients[node].leases.revoke(lease)
        assert self.model.delete_all(self.model.held(lease)).deleted == deleted
        self.model.leases.pop(lease, None)

    @rule()
    @precondition(lambda self: self.steps >= STEPS_BEFORE_A_FAILURE and not self.has_failed)
    def fail(self) -> None:
        """Once in an example, while requests go on: what comes next meets it at some moment of its own."""
        self.has_failed = True
        if self.failing is not None:
            self.failing.join(30)
        self.cluster.wait_ready()
        kind = next(self.failures)
        Machine.failing = threading.Thread(target=FAILURES[kind], args=(self.cluster,))
        self.failing.start()  # type: ignore[union-attr]
        self.failed.append(kind)

    @invariant()
    def settled(self) -> None:
        self.steps += 1
        self.model.settle()

    def teardown(self) -> None:
        for node in (0, 1, 2):
            items = list(self.clients[node].iterate("m/"))
            found = [(each.key, each.value, each.create_revision, each.mod_revision, each.version) for each in items]
            mine = [(key, item.value, *item[2:5]) for key, item in sorted(self.model.items.items())]
            assert found == mine
            assert [each.lease or 0 for each in items] == [self.model.items[each.key].lease for each in items]


def kill_the_leader(cluster: Cluster) -> None:
    leader = cluster.leader()
    cluster.kill(leader)
    cluster.spawn(leader)


def kill_a_follower(cluster: Cluster) -> None:
    follower = cluster.followers()[0]
    cluster.kill(follower)
    cluster.spawn(follower)


def hand_over(cluster: Cluster) -> None:
    cluster.transfer()


FAILURES = {"leader killed": kill_the_leader, "handed over": hand_over, "follower killed": kill_a_follower}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("model")).start() as cluster:
        yield cluster


@pytest.mark.timeout(120)
def test_three_nodes_behave_as_one_dict_whatever_becomes_of_their_leaders(cluster: Cluster) -> None:
    urls = [cluster.url(name) for name in cluster.nodes]
    clients = [SyncClient([*urls[first:], *urls[:first]], 15) for first in range(3)]
    Machine.cluster, Machine.clients, Machine.model = cluster, clients, Model()
    Machine.failures, Machine.failed = cycle(FAILURES), []
    for client in clients:
        client.__enter__()
    # The entry that raises the feature level lifts an empty store by one, before the first write or after it.
    cluster.wait_ready()
    Machine.model.revision = clients[0].put("before", b"").revision
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=12,
                stateful_step_count=30,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],  # the cluster goes on from one example to the next: none can be shrunk
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        if Machine.failing is not None:
            Machine.failing.join(30)
        for client in clients:
            client.__exit__()
    assert set(Machine.failed) == set(FAILURES)


def test_an_import_whose_leader_is_killed_sets_every_key_and_each_of_them_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.wait_ready()
    file = tmp_path / "keys.jsonl"
    file.write_text("".join(json.dumps({"key": f"imported/{i:05}", "text": f"{i}"}) + "\n" for i in range(KEYS)))
    urls = ",".join(cluster.url(name) for name in cluster.nodes)
    leader = cluster.leader()

    def count() -> int:
        page = cluster.request(follower, "GET", "/v1/kv?prefix=imported/&count=only&consistency=stale").json()
        return int(page["count"])

    follower = cluster.followers()[0]
    running = subprocess.Popen(
        [*COMMAND, "import", str(file), "--url", urls], stderr=subprocess.PIPE, env=environment(), text=True
    )
    try:
        wait_until(lambda: count() > 0, 10, "the import is under way")
        cluster.kill(leader)
        assert running.poll() is None, "the leader was killed too late to mean anything"
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
        running.wait(10)
    assert (running.returncode, err) == (0, f"{KEYS} keys imported\n")
    with SyncClient([cluster.url(follower)]) as client:
        found = [(item.key, item.value, item.version) for item in client.iterate("imported/")]
    assert found == [(f"imported/{i:05}", b"%d" % i, 1) for i in range(KEYS)]
