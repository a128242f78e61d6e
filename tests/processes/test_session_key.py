"""One session key for the whole cluster, with real nodes: none has one before the cluster, and then all the same."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import msgpack

from kvnode.state.session_keys import signing_key
from tests.cli.command import kvnode
from tests.cluster import Answer, Cluster, wait_until

SESSION = "/admin/api/v1/session"
SECRET = "a secret that this cluster shares"
MISSING = "Session key not resolved yet"
KEY, OTHER = "0123456789abcdef-of-all-nodes", "fedcba9876543210-of-one-alone"


def signed_in(cluster: Cluster, name: str) -> dict[str, str]:
    answer = cluster.request(name, "POST", SESSION)
    assert answer.status == 200, answer.body
    cookie = str(answer.headers["Set-Cookie"])
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Path=/"))
    return {"Cookie": "theme=dark; " + cookie.partition(";")[0]}


def whose(cluster: Cluster, name: str, cookie: dict[str, str]) -> Answer:
    return cluster.request(name, "GET", SESSION, headers=cookie)


def key_of(cluster: Cluster, name: str) -> dict[str, Any]:
    state: dict[str, Any] = cluster.request(name, "GET", "/admin/api/v1/session-key").json()
    return state


def message(cluster: Cluster, name: str, path: str) -> str:
    """Empty while nobody answers."""
    return "" if cluster.probe(name, path) is None else str(cluster.request(name, "GET", path).json()["message"])


def test_the_cluster_makes_one_key_and_each_node_accepts_what_another_signed(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster()
    # Its ports are bound first; and alone it knows no key, and makes up none.
    cluster.spawn("n1")
    for path in ("/healthz", "/readyz"):
        wait_until(lambda path=path: message(cluster, "n1", path), 5.0, "n1 answers")  # type: ignore[misc]
        answer = cluster.request("n1", "GET", path)
        assert (answer.status, answer.json()["status"], answer.json()["message"]) == (503, "error", MISSING)
    refused = cluster.request("n1", "POST", SESSION)
    assert (refused.status, refused.json()["message"]) == (503, MISSING + ".")
    assert cluster.probe("n1", "/livez") == 200
    for name in ("n2", "n3"):
        cluster.spawn(name)
    cluster.wait_ready()
    assert len({key_of(cluster, name)["fingerprint"] for name in cluster.nodes}) == 1
    cookie = signed_in(cluster, "n1")
    for name in cluster.nodes:
        assert whose(cluster, name, cookie).json() == {"subject": "admin"}
        assert cluster.probe(name, "/healthz") == 200
    forged = {"Cookie": cookie["Cookie"][:-4] + "AAAA"}
    assert (whose(cluster, "n2", forged).status, whose(cluster, "n2", {}).status) == (401, 401)

    # Rotated on any node: all sign with the new key, and accept what the old one signed for its time alone.
    before = key_of(cluster, "n2")
    rotated = kvnode("session-key", "rotate", "--grace", "2", "--url", cluster.url("n2"), "-o", "json")
    assert rotated.code == 0, rotated.err
    after = json.loads(rotated.out)
    assert (after["previous"], after["number"]) == (before["fingerprint"], before["number"] + 1)
    for name in cluster.nodes:
        wait_until(lambda name=name: key_of(cluster, name)["number"] == 2, 5.0, f"{name} has it")  # type: ignore[misc]
        assert whose(cluster, name, cookie).status == 200
    second = signed_in(cluster, "n3")
    for name in cluster.nodes:
        wait_until(lambda name=name: whose(cluster, name, cookie).status == 401, 10.0, f"{name} forgets")  # type: ignore[misc]
        assert whose(cluster, name, second).status == 200

    # What was adopted outlives a restart, also of one node alone, which then has a key and no leader.
    cluster.stop()
    cluster.spawn("n2")
    wait_until(lambda: cluster.probe("n2", "/healthz") == 200, 5.0, "n2 has started")
    assert message(cluster, "n2", "/readyz") == "No leader is known"
    assert whose(cluster, "n2", second).status == 200


def test_a_key_that_nodes_are_given_and_one_that_was_given_another(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(env={"KVNODE_SESSION_KEY": KEY})
    for name in ("n1", "n2"):
        cluster.spawn(name)
    wait_until(lambda: cluster.probe("n1", "/readyz") == 200 == cluster.probe("n2", "/readyz"), 10.0, "two are ready")
    cluster.env = {"KVNODE_SESSION_KEY": OTHER}
    cluster.spawn("n3")
    wait_until(lambda: "was given the session key" in message(cluster, "n3", "/readyz"), 10.0, "n3 says so")
    ours, theirs = key_of(cluster, "n1"), key_of(cluster, "n3")
    assert (ours["origin"], ours["error"], theirs["fingerprint"]) == ("given", None, ours["fingerprint"])
    sentence = message(cluster, "n3", "/readyz")
    assert ours["fingerprint"] in sentence
    for path in ("/healthz", "/readyz/session_key", "/readyz/blocking_errors"):
        assert (cluster.probe("n3", path), message(cluster, "n3", path)) == (503, sentence)
    assert sentence in cluster.log("n3")
    assert cluster.request("n3", "POST", SESSION).status == 503  # it signs nothing
    assert whose(cluster, "n3", signed_in(cluster, "n1")).status == 401
    for name in cluster.nodes:
        for file in cluster.nodes[name].data_dir.iterdir():
            assert KEY.encode() not in file.read_bytes(), "the key is in no file"
    cluster.terminate("n3")
    cluster.env = {"KVNODE_SESSION_KEY": f"{OTHER} {KEY}"}
    cluster.restart("n3")
    assert whose(cluster, "n3", signed_in(cluster, "n1")).status == 200


def test_whoever_reads_the_journal_can_forge_no_session(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(env={"KVNODE_CLUSTER_SECRET": SECRET}).start()
    written = (cluster.nodes["n1"].data_dir / "session-key").read_bytes()
    _, key, *_ = msgpack.unpackb(written[4:])
    assert any(key in file.read_bytes() for file in cluster.nodes["n2"].data_dir.glob("journal-*")), "the log has it"
    genuine = signed_in(cluster, "n1")
    name, _, cookie = genuine["Cookie"].rpartition("; ")[2].partition("=")
    payload = urlsafe_b64decode(cookie.partition(".")[0] + "==")

    def signed_with(key: bytes) -> dict[str, str]:
        signature = hmac.digest(key, b"kvnode session\x00" + payload, "sha256")
        parts = (urlsafe_b64encode(part).decode().rstrip("=") for part in (payload, signature))
        return {"Cookie": f"{name}={'.'.join(parts)}"}

    assert signed_with(signing_key(SECRET.encode(), key)) == {"Cookie": f"{name}={cookie}"}
    for node in cluster.nodes:
        assert whose(cluster, node, genuine).status == 200
        assert whose(cluster, node, signed_with(key)).status == 401
