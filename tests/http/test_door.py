"""What the door does that takes no cluster: tokens come and go under requests and watches that go on."""

from __future__ import annotations

import asyncio
import hashlib
from ipaddress import ip_network

import pytest

from kvnode.http.app import create_probe_server
from kvnode.http.budget import Budgets
from kvnode.http.door import Rates
from kvnode.http.probes import LeaderProbe
from kvnode.metrics.meters import HttpMeters
from kvnode.net.proxies import Proxies
from kvnode.state.commands import LEVEL, TOKEN_CREATE, TOKEN_REVOKE
from kvnode.state.store import KeyValueStore
from tests.http.serving import DEADLINE_S, serve
from tests.http.single import SingleGroup

FIRST = "the-first-token-of-this-cluster"
READER = {"Authorization": "Bearer kvnode_ab12_secret_with_its_own_underscores"}


def with_reader(level: int = 1) -> SingleGroup:
    group = SingleGroup()
    if level:
        group.store.apply([LEVEL, level])
    digest = hashlib.sha256(b"secret_with_its_own_underscores").digest()
    group.store.apply([TOKEN_CREATE, ["ab12", "reader", "read_only", digest, 1]])
    return group


async def test_a_revoked_token_ends_its_watch_with_the_next_heartbeat() -> None:
    group = with_reader()
    async with serve(group, heartbeat_s=0.2, token=FIRST) as node, node.connect() as wire, node.connect() as other:
        for each, token in ((wire, READER["Authorization"]), (other, f"Bearer {FIRST}")):
            each.send(f"GET /v1/watch?prefix= HTTP/1.1\r\nHost: n\r\nAuthorization: {token}\r\n\r\n".encode())
            assert (await each.reader.readuntil(b"\n\n")).startswith(b"HTTP/1.1 200")
        group.store.apply([TOKEN_REVOKE, "ab12"])
        async with asyncio.timeout(DEADLINE_S):
            assert b'"reason":"revoked"' in await wire.reader.read(-1)
            assert b"heartbeat" in await other.reader.readuntil(b"\n\n"), "the first token is not in the store"
        assert group.watches.ended["revoked"] == 1


async def test_a_token_is_known_by_what_it_is_not_by_which_object() -> None:
    """A snapshot that a node installs brings every token anew."""
    group = with_reader()
    async with serve(group, token=FIRST) as node, node.connect() as wire:
        assert (await wire.ask("GET", "/v1/kv/a", READER)).status == 404
        group.store.adopt(KeyValueStore.load(list(group.store.view().chunks())))
        assert (await wire.ask("GET", "/v1/kv/a", READER)).status == 404
        group.store.apply([TOKEN_REVOKE, "ab12"])
        assert (await wire.ask("GET", "/v1/kv/a", READER)).status == 401
        assert (await wire.ask("GET", "/v1/kv/a", {"authorization": f"bearer  {FIRST}"})).status == 404


async def test_a_node_that_asks_for_nothing_takes_any_header() -> None:
    async with serve(SingleGroup()) as node:
        assert (await node.ask("PUT", "/v1/kv/a", {"Authorization": "Bearer nonsense"}, b"1")).status == 200


async def test_the_port_for_probes_knows_nothing_else() -> None:
    group = SingleGroup()
    server = create_probe_server(group, "n1", LeaderProbe(group, 0.2), 0.2, "1", HttpMeters(), Budgets())
    assert set(server.app._table.methods) == {
        *("/admin/healthz", "/admin/healthz/leader", "/healthz", "/livez", "/livez/{check}"),
        *("/readyz", "/readyz/{check}", "/metrics"),
    }


def test_a_rate_is_kept_and_forgotten_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(10)
    assert [rates.wait_s("a", 0.0) for _ in range(20)] == [0.0] * 20, "two seconds' worth at once"
    assert rates.wait_s("a", 0.0) == pytest.approx(0.1)
    assert rates.wait_s("b", 0.0) == 0.0
    assert [rates.wait_s("a", 0.5) for _ in range(5)] == [0.0] * 5
    assert rates.wait_s("a", 0.5) > 0
    monkeypatch.setattr("kvnode.http.door.CLIENTS_MAX", 3)
    for number in range(100):
        rates.wait_s(str(number), 1.0)
    assert len(rates._buckets) == 3


def test_who_is_a_trusted_proxy() -> None:

    proxies = Proxies((ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")), prefaced=False)
    trusted = ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "fe80::1%eth0", "192.0.2.1", "name", ""]
    assert [proxies.trusts(each) for each in trusted] == [True, True, True, False, False, False, False]
    assert proxies.client_of("1.1.1.1, 2.2.2.2, 10.0.0.9", "10.0.0.1") == "2.2.2.2"
    assert proxies.client_of("10.0.0.9", "10.0.0.1") == "10.0.0.9"
    assert proxies.client_of("1.1.1.1, unknown", "10.0.0.1") == "10.0.0.1"
