"""Rights on real nodes: where a right ends, all that was let in with it ends, within two seconds on every node.

And client certificates, each as good as the token that has its name.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.certificates import Authority
from tests.cluster import Answer, Cluster, request, wait_until

SECRET, FIRST = "0123456789abcdef0123456789abcdef", "the-first-token-of-this-cluster"
TOKENS = "/admin/api/v1/tokens"
ENDS_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("certificates"))
    for name in ("n1", "n2", "n3"):
        made.sign(name)
    return made


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs clients' certificates: another authority than the nodes' own."""
    made = Authority(tmp_path_factory.mktemp("clients"))
    for name in ("app", "stranger"):
        made.sign(name, common_name=name)
    return made


@pytest.fixture(scope="module")
def cluster(authority: Authority, clients: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("rights")
    (folder / "token").write_text(FIRST)
    (folder / "token").chmod(0o600)
    here = authority.folder
    args = [
        *("--tls-cert", f"{here}/{{node}}.pem", "--tls-key", f"{here}/{{node}}-key.pem"),
        *("--tls-client-ca", str(clients.ca), "--token-file", str(folder / "token")),
    ]
    with Cluster(folder, args=args, env={"KVNODE_CLUSTER_SECRET": SECRET}, tls=authority.client(), token=FIRST) as made:
        made.start()
        wait_until(lambda: all(feature_level(made, name) == 1 for name in made.nodes), 10.0, "feature level 1")
        yield made


def feature_level(cluster: Cluster, name: str) -> int:
    group = cluster.request(name, "GET", "/admin/api/v1/cluster").json()["groups"][0]
    return int(group.get("feature_level", 0))


def made(cluster: Cluster, **document: Any) -> dict[str, Any]:
    answer = cluster.request("n1", "POST", TOKENS, json.dumps(document).encode())
    assert answer.status == 200, answer
    token: dict[str, Any] = answer.json()
    for name in cluster.nodes:  # a node that is behind knows of it a moment later
        wait_until(lambda name=name: ask(cluster, name, "GET", "/v1/kv/app/1", bearer(token)).status != 401, 5.0, name)  # type: ignore[misc]
    return token


def bearer(token: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {token['token']}"}


def ask(
    cluster: Cluster,
    name: str,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    return request(cluster.nodes[name].http, method, path, body, headers or {}, tls=tls or cluster.tls)


class Going:
    """On every node: a stream, a long poll and a session, let in with one token."""

    def __init__(self, cluster: Cluster, token: dict[str, Any]) -> None:
        self.cluster, self.ended_at = cluster, {}
        self.cookies: dict[str, dict[str, str]] = {}
        self.threads: list[threading.Thread] = []
        for name in cluster.nodes:
            began = ask(cluster, name, "POST", "/admin/api/v1/session", bearer(token))
            self.cookies[name] = {"Cookie": began.headers["Set-Cookie"].partition(";")[0]}
            for query in ("", "&wait=50s"):
                thread = threading.Thread(target=self._follow, args=(name, query, bearer(token)), daemon=True)
                thread.start()
                self.threads.append(thread)

    def _follow(self, name: str, query: str, headers: dict[str, str]) -> None:
        host, port = self.cluster.nodes[name].http
        with (
            suppress(ConnectionError, http.client.HTTPException),
            closing(http.client.HTTPSConnection(host, port, timeout=60, context=self.cluster.tls)) as connection,
        ):
            connection.request("GET", f"/v1/watch?prefix=app/{query}", headers=headers)
            connection.getresponse().read()
        self.ended_at[name + query] = time.monotonic()

    def all_ended(self) -> bool:
        answers = [
            ask(self.cluster, name, "GET", "/v1/kv/app/1", cookie).status for name, cookie in self.cookies.items()
        ]
        return answers == [401] * 3 and not any(thread.is_alive() for thread in self.threads)

    def all_go_on(self) -> bool:
        statuses = [
            ask(self.cluster, name, "GET", "/v1/kv/app/1", cookie).status for name, cookie in self.cookies.items()
        ]
        return 401 not in statuses and all(thread.is_alive() for thread in self.threads)


def test_the_list_of_tokens_knows_of_a_use_on_any_node(cluster: Cluster) -> None:
    token = made(cluster, name="roaming", role="read")  # and used once on each node
    made_ms = int(time.time() * 1000)
    wait_until(lambda: time.time() * 1000 > made_ms + 1, 1.0, "the next use is a later one in milliseconds")
    assert ask(cluster, "n3", "GET", "/v1/kv/app/1", bearer(token)).status in (200, 404)

    def used_ms() -> int:
        listed = cluster.request("n1", "GET", TOKENS).json()
        assert listed["unanswered"] == []
        return int(next(each["last_used_ms"] for each in listed["tokens"] if each["name"] == "roaming"))

    wait_until(lambda: used_ms() > made_ms, 3.0, "the use on n3 in the list of n1")
    assert cluster.request("n1", "DELETE", f"{TOKENS}/roaming").status == 200


def change(cluster: Cluster, how: str, token: dict[str, Any]) -> None:
    path = f"{TOKENS}/{quote(token['name'])}"  # by its name
    if how == "revoked":
        answer = cluster.request("n2", "DELETE", path)
    elif how == "narrowed":
        answer = cluster.request("n2", "PATCH", path, json.dumps({"prefixes": ["app/sub/"]}).encode())
    elif how == "rotated":
        answer = cluster.request("n2", "POST", f"{path}/rotate", b'{"grace_s":0}')
    elif how == "rotated with grace":
        answer = cluster.request("n2", "POST", f"{path}/rotate", b'{"grace_s":3}')
    else:
        answer = cluster.request("n2", "PATCH", path, b'{"expires_s":1}')
    assert answer.status == 200, answer


@pytest.mark.parametrize("how", ["revoked", "narrowed", "rotated", "rotated with grace", "expired"])
def test_what_a_token_let_in_ends_with_its_right_on_every_node(cluster: Cluster, how: str) -> None:
    token = made(cluster, name=f"to be {how}", role="write", prefixes=["app/"])
    going = Going(cluster, token)
    time.sleep(0.5)  # the watches are under way; nothing is waited for that this could hide
    assert going.all_go_on()
    change(cluster, how, token)
    grace_s = 3.0 if how == "rotated with grace" else 1.0 if how == "expired" else 0.0
    if how == "rotated with grace":
        assert going.all_go_on(), "both secrets count for a while"
    ends_at = time.monotonic() + grace_s + ENDS_WITHIN_S
    wait_until(going.all_ended, grace_s + ENDS_WITHIN_S + 1.0, f"everything of a token ends that was {how}")
    assert max(going.ended_at.values()) < ends_at
    if how != "narrowed":
        assert ask(cluster, "n3", "GET", "/v1/kv/app/1", bearer(token)).status == 401


def test_a_certificate_is_as_good_as_the_token_of_its_name(
    cluster: Cluster, authority: Authority, clients: Authority
) -> None:
    def shows(name: str) -> ssl.SSLContext:
        context = authority.client()
        context.load_cert_chain(clients.folder / f"{name}.pem", clients.folder / f"{name}-key.pem")
        return context

    app, stranger = shows("app"), shows("stranger")
    nobody = ask(cluster, "n1", "GET", "/v1/kv/app/1", tls=app)
    assert nobody.status == 401
    assert "'app'" in nobody.json()["message"]
    token = made(cluster, name="app", role="write", prefixes=["app/"])
    for name in cluster.nodes:
        assert ask(cluster, name, "PUT", "/v1/kv/app/1", body=b"1", tls=app).status == 200
        assert ask(cluster, name, "PUT", "/v1/kv/other", body=b"1", tls=app).status == 403
        assert ask(cluster, name, "GET", "/v1/kv/app/1", tls=stranger).status == 401
        assert ask(cluster, name, "GET", "/v1/kv/app/1").status == 401, "without a certificate a token is asked for"
        assert ask(cluster, name, "GET", "/readyz").status == 200
        # step: a token beside it counts, also one that is wrong
        assert ask(cluster, name, "PUT", "/v1/kv/other", {"Authorization": f"Bearer {FIRST}"}, b"1", app).status == 200
        assert ask(cluster, name, "GET", "/v1/kv/app/1", {"Authorization": "Bearer x"}, tls=app).status == 401
    # step: a browser shows a certificate by itself, also to what a page of another origin sends
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert ask(cluster, "n1", "POST", "/v1/txn", foreign, b"{}", app).status == 403
    # step: one of another authority does not get in at all
    other = authority.client()
    other.load_cert_chain(authority.folder / "n1.pem", authority.folder / "n1-key.pem")
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        ask(cluster, "n1", "GET", "/v1/kv/app/1", tls=other)
    # step: a rotation changes the secret, not the right; a revocation ends it, also for a session that it began
    assert cluster.request("n1", "POST", f"{TOKENS}/app/rotate", b'{"grace_s":0}').status == 200
    began = ask(cluster, "n2", "POST", "/admin/api/v1/session", tls=app)
    cookie = {"Cookie": began.headers["Set-Cookie"].partition(";")[0]}
    # n3 may know of the rotation a moment later than n2, and the session is of the secret after it.
    wait_until(lambda: ask(cluster, "n3", "GET", "/v1/kv/app/1", cookie).status == 200, 2.0, "the session on n3")
    assert cluster.request("n1", "DELETE", f"{TOKENS}/{token['id']}").status == 200
    for name in cluster.nodes:
        wait_until(
            lambda name=name: ask(cluster, name, "GET", "/v1/kv/app/1", tls=app).status == 401,  # type: ignore[misc]
            ENDS_WITHIN_S,
            f"{name} lets nobody in by the name of a token that was revoked",
        )
        assert ask(cluster, name, "GET", "/v1/kv/app/1", cookie).status == 401


def test_the_authority_of_clients_is_read_again_on_sighup(
    cluster: Cluster, authority: Authority, clients: Authority, tmp_path: Path
) -> None:
    token = made(cluster, name="late", role="read")
    new = Authority(tmp_path / "new")
    new.sign("late", common_name="late")
    late = authority.client()
    late.load_cert_chain(new.folder / "late.pem", new.folder / "late-key.pem")
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        ask(cluster, "n1", "GET", "/v1/kv/app/1", tls=late)
    both = clients.folder / "both.part"
    before = clients.ca.read_bytes()
    both.write_bytes(before + new.ca.read_bytes())
    both.replace(clients.ca)
    os.kill(cluster.pid("n1"), signal.SIGHUP)

    def let_in() -> bool:
        try:
            return ask(cluster, "n1", "GET", "/v1/kv/app/none", tls=late).status == 404
        except (ssl.SSLError, ConnectionError, http.client.HTTPException):
            return False

    wait_until(let_in, 5.0, "n1 takes certificates of the authority that its file names now")
    assert cluster.request("n1", "DELETE", f"{TOKENS}/{token['name']}").status == 200
