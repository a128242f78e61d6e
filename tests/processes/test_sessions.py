"""Trust ends with its reason, on every node of a real cluster: sessions, and what goes on under them or a token."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.cluster import Answer, Cluster, request, wait_until

FIRST = "the-first-token-of-this-cluster"
SECOND = "the-second-token-of-this-cluster"
SESSION = "/admin/api/v1/session"
TOKENS = "/admin/api/v1/tokens"
ROTATE = "/admin/api/v1/session-key/rotate"
ENDS_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("sessions"), env={"KVNODE_TOKEN": FIRST}, token=FIRST) as cluster:
        cluster.start()
        wait_until(lambda: all(cluster.status(name).get("feature_level") == 1 for name in cluster.nodes), 10.0, "level")
        yield cluster


def made(cluster: Cluster, role: str) -> tuple[str, dict[str, str]]:
    """A new token that every node knows: its id, and the header that shows it."""
    token = cluster.request(cluster.leader(), "POST", TOKENS, json.dumps({"name": role, "role": role}).encode()).json()
    bearer = {"Authorization": f"Bearer {token['token']}"}
    everywhere(cluster, bearer, 200)
    return token["id"], bearer


def begun(cluster: Cluster, name: str, bearer: dict[str, str]) -> dict[str, str]:
    answer = request(cluster.nodes[name].http, "POST", SESSION, headers=bearer)
    assert answer.status == 200, answer.body
    return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


def shown(cluster: Cluster, name: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
    """One request with these headers and no token beside them."""
    kind = {"Content-Type": "application/json"} if body else {}
    return request(cluster.nodes[name].http, method, path, body or None, {**headers, **kind})


def everywhere(cluster: Cluster, headers: dict[str, str], status: int) -> None:
    """Every node comes to answer so within the time in which trust ends."""

    def answers(name: str) -> bool:
        return shown(cluster, name, "GET", "/v1/kv", headers).status == status

    until = time.monotonic() + ENDS_WITHIN_S
    for name in cluster.nodes:
        wait_until(lambda n=name: answers(n), max(until - time.monotonic(), 0.1), f"{status} of {name}")  # type: ignore[misc]


class Listening:
    """A watch on one node, read as it comes."""

    def __init__(self, cluster: Cluster, name: str, query: str, headers: dict[str, str]) -> None:
        self._socket = socket.create_connection(cluster.nodes[name].http, 5.0)
        lines = "".join(f"{key}: {text}\r\n" for key, text in headers.items())
        self._socket.sendall(f"GET /v1/watch?{query} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        self.name = name
        self.told = b""

    def begun(self) -> Listening:
        while b"\n\n" not in self.told:
            self.told += self._read(5.0)
        assert self.told.startswith(b"HTTP/1.1 200"), self.told
        return self

    def end(self, until: float) -> bytes:
        """All that it was told, once the node has closed it or answered; AssertionError where that is not in time."""
        while time.monotonic() < until:
            try:
                piece = self._read(max(0.05, until - time.monotonic()))
            except TimeoutError:
                break
            self.told += piece
            if not piece or (self.told.startswith(b"HTTP/1.1 4") and self.told.endswith(b"}\n")):
                return self.told
        raise AssertionError(f"the watch on {self.name} still goes on: {self.told[-300:]!r}")

    def close(self) -> None:
        self._socket.close()

    def _read(self, seconds: float) -> bytes:
        self._socket.settimeout(seconds)
        return self._socket.recv(65_536)


def end_of(watches: list[Listening], polls: list[Listening], began: float) -> None:
    """All of them are over in time, and were told nothing of what was written meanwhile."""
    for watch in watches:
        told = watch.end(began + ENDS_WITHIN_S)
        assert b'"reason":"revoked"' in told
        assert b"event: put" not in told
    for poll in polls:
        told = poll.end(began + ENDS_WITHIN_S)
        assert told.startswith(b"HTTP/1.1 401"), told
        assert b"events" not in told


@contextmanager
def listening(cluster: Cluster, headers: dict[str, str]) -> Iterator[tuple[list[Listening], list[Listening]]]:
    """A stream and a long poll on each node."""
    with ExitStack() as stack:

        def started(name: str, query: str) -> Listening:
            return stack.enter_context(closing(Listening(cluster, name, query, headers)))

        watches = [started(name, "prefix=w").begun() for name in cluster.nodes]
        polls = [started(name, "prefix=w&wait=30s") for name in cluster.nodes]
        for name in cluster.nodes:  # a poll says nothing: it is there once the node counts it
            wait_until(lambda n=name: watchers(cluster, n) >= 2, 5.0, f"both on {name}")  # type: ignore[misc]
        yield watches, polls


def watchers(cluster: Cluster, name: str) -> int:
    page = cluster.request(name, "GET", "/metrics").body.decode()
    return next(int(float(line.split()[1])) for line in page.splitlines() if line.startswith("kvnode_watch_watchers "))


@pytest.mark.parametrize("by", ["token", "session"])
def test_streams_and_long_polls_end_on_every_node_when_their_token_is_revoked(cluster: Cluster, by: str) -> None:
    token, bearer = made(cluster, "read_only")
    headers = bearer if by == "token" else begun(cluster, "n1", bearer)
    follower = cluster.followers()[0]
    with listening(cluster, headers) as (watches, polls):
        began = time.monotonic()
        assert cluster.request(follower, "DELETE", f"{TOKENS}/{token}").status == 200
        cluster.put("w", b"written after the revocation")
        end_of(watches, polls, began)
    everywhere(cluster, headers, 401)


def test_streams_and_sessions_end_on_every_node_when_the_key_is_rotated(cluster: Cluster) -> None:
    cookie = begun(cluster, "n2", {"Authorization": f"Bearer {FIRST}"})
    with listening(cluster, cookie) as (watches, polls):
        began = time.monotonic()
        assert cluster.request("n3", "POST", ROTATE, b'{"grace_s":0}').status == 200
        everywhere(cluster, cookie, 401)
        cluster.put("w", b"written after the rotation")
        end_of(watches, polls, began)


def test_the_cookie_of_a_revoked_token_makes_no_token_anywhere(cluster: Cluster) -> None:
    token, bearer = made(cluster, "full")
    cookie = begun(cluster, "n1", bearer)
    wanted = b'{"name":"mine","role":"full"}'
    while_it_holds = shown(cluster, "n2", "POST", TOKENS, cookie, wanted)
    assert while_it_holds.status == 200
    assert cluster.request("n3", "DELETE", f"{TOKENS}/{token}").status == 200
    everywhere(cluster, cookie, 401)
    for name in cluster.nodes:
        assert shown(cluster, name, "POST", TOKENS, cookie, wanted).status == 401
        assert shown(cluster, name, "POST", SESSION, cookie).status == 401
    assert cluster.request("n1", "DELETE", f"{TOKENS}/{while_it_holds.json()['id']}").status == 200


def test_a_session_that_was_ended_on_one_node_has_ended_on_all_for_good(cluster: Cluster) -> None:
    bearer = {"Authorization": f"Bearer {FIRST}"}
    cookie, other = begun(cluster, "n1", bearer), begun(cluster, "n1", bearer)
    everywhere(cluster, cookie, 200)
    follower = cluster.followers()[0]
    with listening(cluster, cookie) as (watches, polls):
        began = time.monotonic()
        ended = shown(cluster, follower, "DELETE", SESSION, cookie)
        assert (ended.status, ended.json()) == (200, {"ended": True})
        assert "Max-Age=0" in ended.headers["Set-Cookie"]
        everywhere(cluster, cookie, 401)
        cluster.put("w", b"written after its end")
        end_of(watches, polls, began)
    everywhere(cluster, other, 200)
    # step: a node that comes back knows of it
    for name in cluster.nodes:
        cluster.kill(name)
    for name in cluster.nodes:
        cluster.spawn(name)
    cluster.wait_ready()
    everywhere(cluster, cookie, 401)
    everywhere(cluster, other, 200)


def test_a_cookie_from_before_tokens_were_asked_for_is_nobodys(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster().start()
    anonymous = begun(cluster, "n1", {})
    assert shown(cluster, "n2", "GET", SESSION, anonymous).json() == {"subject": "admin"}
    # step: an open node takes nothing from a stranger's page, nor under a stranger's name
    rebound, page = {"Host": "rebind.evil.example"}, {"Origin": "http://evil.example"}
    for headers in (rebound, page, {"Sec-Fetch-Site": "cross-site"}):
        refused = shown(cluster, "n1", "PUT", "/v1/kv/a", headers, b"1")
        assert (refused.status, refused.json()["error"]) == (403, "forbidden"), headers
    assert shown(cluster, "n1", "GET", "/v1/kv", rebound).status == 403
    assert shown(cluster, "n1", "GET", "/readyz", rebound).status == 200
    assert shown(cluster, "n1", "PUT", "/v1/kv/a", {"Host": "LOCALHOST:1"}, b"1").status == 200
    cluster.stop()
    cluster.env, cluster.token = {"KVNODE_TOKEN": FIRST}, FIRST
    cluster.start()
    for name in cluster.nodes:
        for method, path in (("GET", "/v1/kv"), ("PUT", "/v1/kv/a"), ("POST", TOKENS), ("GET", SESSION)):
            assert shown(cluster, name, method, path, anonymous, b"1" if method == "PUT" else b"").status == 401


def test_what_began_with_a_nodes_first_token_ends_when_that_is_another(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(FIRST)
    file.chmod(0o600)
    with Cluster(tmp_path, size=1, args=("--token-file", str(file)), token=FIRST) as cluster:
        cluster.start()
        bearer = {"Authorization": f"Bearer {FIRST}"}
        cookie = begun(cluster, "n1", bearer)
        with listening(cluster, cookie) as by_session, listening(cluster, bearer) as by_token:
            file.write_text(SECOND)
            began = time.monotonic()
            os.kill(cluster.pid("n1"), signal.SIGHUP)
            end_of(*by_session, began)
            end_of(*by_token, began)
        assert shown(cluster, "n1", "GET", "/v1/kv", cookie).status == 401
        cluster.token = SECOND
        assert cluster.request("n1", "GET", "/v1/kv").status == 200
