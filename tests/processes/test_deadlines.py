"""How long a sender waits, on real nodes: without a majority the answer is definite where it can be, and in time."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.cli.command import kvnode
from tests.cluster import Cluster, wait_until

WRITES: list[tuple[str, str, Any]] = [
    ("PUT", "/v1/kv/k", b"v"),
    ("DELETE", "/v1/kv/k", b""),
    ("DELETE", "/v1/kv?prefix=k", b""),
    ("POST", "/v1/txn", {"success": [{"put": {"key": "k", "text": "v"}}]}),
    ("POST", "/v1/leases", {"ttl": 60}),
    ("POST", "/admin/api/v1/leader/transfer", {}),
]


def test_without_a_majority_every_answer_is_definite_and_before_the_sender_gives_up(cluster: Cluster) -> None:
    stays, *gone = [*cluster.followers(), cluster.leader()]
    for name in gone:
        cluster.kill(name)
    wait_until(lambda: "Kvnode-Leader" not in cluster.request(stays, "GET", "/livez").headers, 10, "a missed leader")
    for method, path, document in WRITES:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        began_at = time.monotonic()
        answer = cluster.request(stays, method, path, body, {"Kvnode-Timeout": "0.6"})
        assert time.monotonic() - began_at < 0.6, (method, path)
        assert (answer.status, answer.json()["outcome"]) == (503, "not_applied"), (method, path)
        assert answer.headers["Kvnode-Timeout"] == "honoured"
    batch = {"operations": [{"put": {"key": "k", "value": ""}}, {"delete": {"key": "k"}}]}
    began_at = time.monotonic()
    answer = cluster.request(stays, "POST", "/v1/batch", json.dumps(batch).encode(), {"Kvnode-Timeout": "0.6"})
    assert time.monotonic() - began_at < 0.6
    assert [each["outcome"] for each in answer.json()["results"]] == ["not_applied"] * 2
    for path in ("/v1/kv/k", "/v1/kv?prefix=k"):
        began_at = time.monotonic()
        assert cluster.request(stays, "GET", path, headers={"Kvnode-Timeout": "0.6"}).status == 503
        assert time.monotonic() - began_at < 0.6, path
    # As a person sees it, with the one node that is left and with those that are gone.
    everywhere = ",".join(cluster.url(name) for name in cluster.nodes)
    for url, timeout_s in ((cluster.url(stays), "1.5"), (everywhere, "2")):
        done = kvnode("put", "k", "v", "--url", url, "--timeout", timeout_s)
        assert done.code == 5, done.err


def test_a_forwarded_write_that_is_in_doubt_says_so_in_time(cluster: Cluster) -> None:
    follower, other = cluster.followers()
    cluster.freeze(cluster.leader())
    cluster.freeze(other)
    began_at = time.monotonic()
    answer = cluster.request(follower, "PUT", "/v1/kv/k", b"v", {"Kvnode-Timeout": "0.5"})
    assert time.monotonic() - began_at < 0.5
    # The leader is believed for an election timeout: by then the write has left this node, and nobody can tell.
    assert (answer.status, answer.json()["outcome"]) == (504, "unknown")
