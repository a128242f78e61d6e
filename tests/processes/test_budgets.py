"""What a client asks for, or leaves unread, costs a node no more than its budgets: real nodes, and their real memory.

Each attack runs under `watched`: no process ends, nobody is elected, no node takes more than 400 MB, and the leader
probe answers within a second throughout.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from kvnode.http.restore import ITEMS_MAX
from kvnode.state.limits import TRANSACTION_READ_BYTES_MAX
from tests.certificates import Authority
from tests.cluster import LEADER_PROBE, Answer, Cluster, request, wait_until
from tests.hostile.crafted import backup_of

MEMORY_MB_MAX = 400
PROBE_S_MAX = 1.0
MIB = 1_048_576

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux how much memory a node took"),
]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; "big/0" to "big/3" are of 1 MiB."""
    with Cluster(tmp_path_factory.mktemp("budgets")) as cluster:
        cluster.start()
        for number in range(4):
            cluster.put(f"big/{number}", b"%d" % number * MIB)
        yield cluster


def memory_mb(cluster: Cluster, name: str) -> int:
    """The most that the node's process has had in memory since `watched` began."""
    status = Path(f"/proc/{cluster.pid(name)}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1_024


def term(cluster: Cluster) -> int:
    return max(int(cluster.status(name)["term"]) for name in cluster.nodes)


@contextmanager
def watched(cluster: Cluster) -> Iterator[str]:
    """Gives the leader; afterwards says what the module promises."""
    leader, before = cluster.leader(), term(cluster)
    for name in cluster.nodes:
        Path(f"/proc/{cluster.pid(name)}/clear_refs").write_text("5")  # proc(5): the most so far is what there is now
    slowest, over = [0.0], threading.Event()

    def probed_s() -> float:
        began = time.monotonic()
        with suppress(OSError, http.client.HTTPException):
            request(cluster.nodes[leader].http, "GET", LEADER_PROBE, timeout_s=10.0, tls=cluster.tls)
        return time.monotonic() - began

    def probe() -> None:
        while not over.is_set():
            slowest[0] = max(slowest[0], probed_s())
            over.wait(0.1)

    # A few milliseconds, unless the machine is busy with something else, which slows all that follows as well.
    at_rest_s = max(probed_s() for _ in range(10))

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        yield leader
    finally:
        over.set()
        prober.join()
    assert all(node.running for node in cluster.nodes.values())
    assert slowest[0] < PROBE_S_MAX + 10 * at_rest_s
    assert (cluster.leader(), term(cluster)) == (leader, before)
    took = {name: memory_mb(cluster, name) for name in cluster.nodes}
    assert max(took.values()) < MEMORY_MB_MAX, took


def in_parallel(count: int, work: Callable[[int], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_a_transaction_reads_no_more_than_it_may(trio: Cluster) -> None:
    """3 KB of request that asks for 128 MiB, twenty times at once, on the leader and by way of a follower."""
    wait_until(lambda: feature_level(trio) >= 1, 10.0, "the cluster to know that all its members are new")
    bomb = json.dumps(
        {"success": [{"get": {"key": "big/0"}}] * 127 + [{"put": {"key": "never", "text": "x"}}]}
    ).encode()
    with watched(trio) as leader:
        found = in_parallel(
            20, lambda number: trio.request(list(trio.nodes)[number % 3], "POST", "/v1/txn", bomb, timeout_s=20)
        )
        assert {answer.status for answer in found} == {413}
        assert {(answer.json()["error"], answer.json()["outcome"]) for answer in found} == {
            ("too_large", "not_applied")
        }
        assert trio.get("never", leader) is None
        fits = json.dumps({"success": [{"get": {"key": f"big/{n}"}} for n in range(4)]}).encode()
        assert 4 * MIB == TRANSACTION_READ_BYTES_MAX
        answer = trio.request(leader, "POST", "/v1/txn", fits, timeout_s=20)
        assert [len(each["get"]["value"]) for each in answer.json()["results"]] == [-(-MIB // 3) * 4] * 4
        own = {"success": [{"put": {"key": "own", "text": "y" * MIB}}, *[{"get": {"key": "own"}}] * 5]}
        assert trio.request(leader, "POST", "/v1/txn", json.dumps(own).encode(), timeout_s=20).status == 413
        assert trio.get("own", leader) is None


def feature_level(cluster: Cluster) -> int:
    """The lowest that any node has reached."""
    return min(
        int(float(line.split()[-1]))
        for name in cluster.nodes
        for line in cluster.request(name, "GET", "/metrics").body.decode().splitlines()
        if line.startswith("kvnode_raft_feature_level")
    )


def raw(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}{headers}\r\n".encode() + body


@contextmanager
def unread(address: tuple[str, int], count: int, asked: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that ask and do not read; their kernel takes as little for them as it can."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            connection.connect(address)
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.send(asked)
            connections.append(connection)
        yield connections


def figures(cluster: Cluster, name: str) -> dict[str, float]:
    lines = cluster.request(name, "GET", "/metrics").body.decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


IN_USE = 'kvnode_http_budget_bytes{budget="answers"}'
LIMIT = 'kvnode_http_budget_limit_bytes{budget="answers"}'
REFUSED = 'kvnode_http_over_budget_total{budget="answers",what="refused"}'
CUT = 'kvnode_http_over_budget_total{budget="answers",what="cut"}'

BODIES_IN_USE = 'kvnode_http_budget_bytes{budget="bodies"}'
BODIES_OVER = 'kvnode_http_over_budget_total{budget="bodies",what="%s"}'

UNREAD = {
    # Several each: a kernel that has memory enough takes up to 4 MiB of them.
    "pages": raw("GET", "/v1/kv?prefix=big/&limit=1000") * 3,
    "pages of HTTP/1.0": b"GET /v1/kv?prefix=big/ HTTP/1.0\r\n\r\n",
    "values": raw("GET", "/v1/kv/big/0") * 6,
    "stale values": raw("GET", "/v1/kv/big/0?consistency=stale") * 6,
    "transactions": raw("POST", "/v1/txn", b'{"success":[%b]}' % b",".join([b'{"get":{"key":"big/0"}}'] * 4)) * 2,
    "polls": raw("GET", "/v1/watch?prefix=big/&from_revision=1&wait=1s") * 3,
    "pages behind one another": raw("GET", "/v1/kv?prefix=big/") * 10,
    "pages whose request is followed": raw("GET", "/v1/kv?prefix=big/", headers="X-Request-Id: a\r\n") * 3,
}


@pytest.mark.parametrize("what", UNREAD)
def test_clients_that_do_not_read_share_one_budget(trio: Cluster, what: str) -> None:
    with watched(trio) as leader:
        address, before = trio.nodes[leader].http, figures(trio, leader)[REFUSED]
        with unread(address, 120, UNREAD[what]):
            refused = trio.request(leader, "GET", "/v1/kv?prefix=big/", timeout_s=10.0)
            if "1.0" not in what:
                wait_until(lambda: figures(trio, leader)[REFUSED] > before, 10.0, "a request over the budget")
            seen = figures(trio, leader)
            assert seen[IN_USE] <= seen[LIMIT] == 64 * MIB
            assert refused.status in (200, 503)
            if refused.status == 503:
                assert (refused.json()["error"], refused.headers["Retry-After"]) == ("overloaded", "1")
            # What is small is answered, and written, as ever.
            assert trio.put("small", b"x", leader)
            assert trio.get("small", leader) == b"x"
            assert trio.probe(leader, "/readyz") == 200
        wait_until(lambda: figures(trio, leader)[IN_USE] < MIB, 10.0, "the budget to be given back")
        assert trio.request(leader, "GET", "/v1/kv?prefix=big/").status == 200


def test_watchers_that_do_not_read_share_it_too(trio: Cluster) -> None:
    """Each is sent 5 MiB of events at once; one that reads gets its own as ever."""
    with watched(trio) as leader:
        before = figures(trio, leader)[CUT]
        with unread(trio.nodes[leader].http, 120, raw("GET", "/v1/watch?prefix=big/&from_revision=1")):
            wait_until(lambda: figures(trio, leader)[CUT] > before, 10.0, "a watcher for whom there is no room")
            seen = figures(trio, leader)
            assert seen[IN_USE] <= seen[LIMIT] + 8 * MIB  # those that are being cut off count until they have gone
            reader = socket.create_connection(trio.nodes[leader].http, timeout=10.0)
            with reader, reader.makefile("rb") as lines:
                reader.sendall(raw("GET", "/v1/watch?prefix=seen/"))
                while not lines.readline().startswith(b": watching"):
                    pass
                assert trio.put("seen/a", b"x", leader)
                while b"seen/a" not in lines.readline():
                    pass
        wait_until(lambda: figures(trio, leader)[IN_USE] < MIB, 10.0, "the budget to be given back")


def test_backups_that_are_not_read_are_two(trio: Cluster) -> None:
    with watched(trio) as leader:
        address = trio.nodes[leader].http
        with unread(address, 50, raw("GET", "/admin/api/v1/backup")) as connections:
            answers = []
            for connection in connections:
                connection.settimeout(10.0)
                answers.append(connection.recv(12))
            assert Counter(answers) == {b"HTTP/1.1 200": 2, b"HTTP/1.1 503": 48}
            assert figures(trio, leader)[IN_USE] < 4 * MIB
            assert trio.put("small", b"x", leader)
        wait_until(
            lambda: trio.request(leader, "GET", "/admin/api/v1/backup").status == 200, 10.0, "room for another one"
        )


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    for name in ("n1", "n2", "n3"):
        authority.sign(name)
    here = authority.folder
    args = ["--tls-cert", f"{here}/{{node}}.pem", "--tls-key", f"{here}/{{node}}-key.pem"]
    with Cluster(tmp_path_factory.mktemp("encrypted"), args=args, tls=authority.client()) as cluster:
        cluster.start()
        for number in range(4):
            cluster.put(f"big/{number}", b"%d" % number * MIB)
        yield cluster


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (UNREAD["pages"], "refused"),
        (UNREAD["values"], "refused"),
        (raw("GET", "/v1/watch?prefix=big/&from_revision=1"), "cut"),
    ],
    ids=["pages", "values", "watches"],
)
def test_clients_that_do_not_read_by_tls(encrypted: Cluster, asked: bytes, what: str) -> None:
    """TLS takes the first write of any size, and writes by itself before anything was asked."""
    assert encrypted.tls is not None
    over = f'kvnode_http_over_budget_total{{budget="answers",what="{what}"}}'
    with watched(encrypted) as leader, ExitStack() as stack:
        before = figures(encrypted, leader)[over]
        for _ in range(120):
            plain = socket.socket()
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            plain.settimeout(10.0)
            plain.connect(encrypted.nodes[leader].http)
            connection = stack.enter_context(encrypted.tls.wrap_socket(plain, server_hostname="127.0.0.1"))
            connection.sendall(asked)
        wait_until(lambda: figures(encrypted, leader)[over] > before, 10.0, "more than the budget")
        for _ in range(20):  # each on a connection of its own
            assert encrypted.probe(leader, "/readyz") == 200
            assert encrypted.put("small", b"x", leader)
            assert encrypted.get("small", leader) == b"x"
    wait_until(lambda: figures(encrypted, leader)[IN_USE] < MIB, 10.0, "the budget to be given back")


def test_clients_that_have_stalled_make_room_for_one_that_reads(trio: Cluster) -> None:
    with watched(trio) as leader, unread(trio.nodes[leader].http, 100, UNREAD["pages"]):
        before = figures(trio, leader)[CUT]
        wait_until(
            lambda: trio.request(leader, "GET", "/v1/kv?prefix=big/").status == 200, 10.0, "room for one that reads"
        )
        assert figures(trio, leader)[CUT] > before


def test_large_json_is_refused_before_it_is_parsed(trio: Cluster) -> None:
    """Eight bodies of 8 MiB at once, each of which would hold the event loop for a second."""
    body = b'{"operations":[' + b'{"a":{}},' * 930_000 + b"{}]}"
    with watched(trio) as leader:
        found = in_parallel(8, lambda _: trio.request(leader, "POST", "/v1/batch", body, timeout_s=30.0))
        assert {answer.status for answer in found} <= {413, 503}
        assert {answer.json()["outcome"] for answer in found} == {"not_applied"}


def slow(path: str, length: int, begun: int) -> bytes:
    """A request whose body stops where so much of it has come."""
    return raw("POST", path, headers=f"Content-Length: {length}\r\n") + b" " * begun


def with_lines(asked: bytes, count: int, value: bytes) -> bytes:
    """The request, with so many header lines more."""
    return asked[:-2] + b"".join(b"x%d: %b\r\n" % (number, value) for number in range(count)) + b"\r\n"


ARRIVING = {
    "batches": slow("/v1/batch", 8 * MIB, 8 * MIB - 1),
    "transactions": slow("/v1/txn", 4 * MIB, 4 * MIB - 1),
    "chunks": raw("POST", "/v1/batch", headers="Transfer-Encoding: chunked\r\n") + b"7fffff\r\n" + b" " * (8 * MIB - 9),
    "bodies that nothing reads": raw("GET", "/v1/watch?wait=20s", headers=f"Content-Length: {MIB}\r\n") + b" " * MIB,
    "bodies behind a request": raw("GET", "/v1/watch?wait=20s") + slow("/v1/batch", 8 * MIB, 8 * MIB - 1),
    # A connection may queue 32 requests: it is not read on, and its end not seen, before the first is over.
    "heads behind a request": raw("GET", "/v1/watch?wait=8s") + with_lines(raw("GET", "/"), 3, b"y" * 8_000) * 31,
    "short lines behind a request": raw("GET", "/v1/watch?wait=8s") + with_lines(raw("GET", "/"), 120, b"") * 31,
}

CHUNKED = raw("POST", "/v1/batch", headers="Transfer-Encoding: chunked\r\n")
LONG = {
    "begun": with_lines(raw("GET", "/"), 120, b"y" * 8_000)[:-2],
    "wide letters": with_lines(raw("GET", "/"), 120, "\U0001f600".encode() + b"y" * 8_000)[:-2],
    "whole": with_lines(raw("GET", "/v1/watch?wait=20s"), 120, b"y" * 8_000),
    "before a body": with_lines(raw("POST", "/v1/batch", headers="Content-Length: 9\r\n"), 120, b"y" * 8_000),
    "after a body": with_lines(CHUNKED + b"0\r\n\r\n", 110, b"y" * 8_000)[:-2],
    "behind a request": raw("GET", "/v1/watch?wait=20s") + with_lines(raw("GET", "/"), 120, b"y" * 8_000) * 8,
}


@pytest.mark.parametrize("where", LONG)
def test_no_connection_holds_long_heads(trio: Cluster, where: str) -> None:
    with watched(trio) as leader, ExitStack() as stack:
        connections = [stack.enter_context(socket.socket()) for _ in range(250)]
        for connection in connections:
            connection.connect(trio.nodes[leader].http)
        in_parallel_sent(connections, LONG[where])
        assert trio.put("small", b"x", leader)
        assert trio.probe(leader, "/readyz") == 200
    wait_until(lambda: figures(trio, leader)[BODIES_IN_USE] < MIB, 10.0, "all to be given back")


@pytest.mark.parametrize("what", ARRIVING)
def test_requests_that_do_not_end_share_one_budget(trio: Cluster, what: str) -> None:
    with watched(trio) as leader, ExitStack() as stack:
        asked = ARRIVING[what]
        count = -(-100 * MIB // min(len(asked), MIB // 2 if "read" in what or "behind" in what else len(asked)))
        # A short line holds 50 times what was sent for it: 68 fill the budget, and 250 take long to parse.
        connections = [stack.enter_context(socket.socket()) for _ in range(250 if "short" in what else min(count, 250))]
        for connection in connections:
            connection.connect(trio.nodes[leader].http)
        in_parallel_sent(connections, asked)
        seen = figures(trio, leader)
        assert sum(seen[BODIES_OVER % how] for how in ("refused", "cut")) > 0, seen
        assert seen[BODIES_IN_USE] <= 80 * MIB
        assert trio.put("small", b"x", leader)
        assert trio.probe(leader, "/readyz") == 200
    wait_until(lambda: figures(trio, leader)[BODIES_IN_USE] < MIB, 10.0, "all to be given back")


def in_parallel_sent(connections: list[socket.socket], asked: bytes) -> None:
    """Sends as much of it as each takes within five seconds in all."""
    left = {connection: memoryview(asked) for connection in connections}
    for connection in connections:
        connection.setblocking(False)
    deadline = time.monotonic() + 5.0
    while left and time.monotonic() < deadline:
        _, ready, _ = select.select([], list(left), [], 0.1)
        time.sleep(0.02)  # or this thread would keep the interpreter from the one that probes
        for connection in ready:
            try:
                left[connection] = left[connection][connection.send(left[connection][:262_144]) :]
            except OSError:
                del left[connection]
            else:
                if not left[connection]:
                    del left[connection]


def test_watches_that_begin_in_the_past_are_told_of_it_in_turns(trio: Cluster) -> None:
    """Each of them is sent a revision of 1 MiB at once, which is made into text for it alone."""
    for number in range(16):
        trio.put(f"big/{number % 4}", b"%d" % (number % 4) * MIB)
    with watched(trio) as leader, unread(trio.nodes[leader].http, 250, raw("GET", "/v1/watch?from_revision=1")):
        for _ in range(20):
            assert trio.put("small", b"x", leader)
        wait_until(lambda: figures(trio, leader)[CUT] > 0, 10.0, "the budget to be spent")


def count_is(cluster: Cluster, name: str, number: int) -> bool:
    answer = cluster.request(name, "GET", "/v1/kv?count=only", timeout_s=30.0)
    return answer.status == 200 and bool(answer.json()["count"] == number)


def test_the_largest_restore_that_a_running_cluster_takes_costs_no_election(trio: Cluster) -> None:
    """As many keys and as many leases as it takes, by way of a follower and of the leader."""
    number = ITEMS_MAX
    leases = [[[n + 1, 600, 0, True] for n in range(at, at + 4_096)] for at in range(0, number, 4_096)]
    keys = [[[f"k{n:07}", b"", "", 1, 1, 1, n + 1] for n in range(at, at + 4_096)] for at in range(0, number, 4_096)]
    file = backup_of([[10, number, 0, number, number], *leases, *keys])
    with watched(trio) as leader:
        followers = [name for name in trio.nodes if name != leader]
        for node in (followers[0], leader):
            answer = trio.request(node, "POST", "/admin/api/v1/restore", file, timeout_s=40.0)
            assert (answer.status, answer.json().get("items")) == (200, number)
            for name in trio.nodes:  # which read it at their own pace
                wait_until(partial(count_is, trio, name, number), 30.0, "the keys of the backup")
            assert trio.put("small", b"x", leader)


def test_batches_that_wait_hold_their_values_once(tmp_path: Path) -> None:
    """120 of 8 MB, by way of all nodes, 40 at a time; what is too much is refused.

    Only memory is looked at: the senders take most of the machine.
    """
    batch = json.dumps(
        {"operations": [{"put": {"key": f"large/{n}", "text": "x" * 990_000}} for n in range(8)]}
    ).encode()
    with Cluster(tmp_path) as cluster:
        cluster.start()
        names = list(cluster.nodes)

        def send(number: int) -> int:
            try:
                return request(cluster.nodes[names[number % 3]].http, "POST", "/v1/batch", batch, timeout_s=30.0).status
            except (OSError, http.client.HTTPException):  # its body was too much beside the others
                return 0

        with ThreadPoolExecutor(40) as pool:
            found = set(pool.map(send, range(120)))
        assert 200 in found <= {0, 200, 503, 504}
        took = {name: memory_mb(cluster, name) for name in names}
        assert max(took.values()) < MEMORY_MB_MAX, took
