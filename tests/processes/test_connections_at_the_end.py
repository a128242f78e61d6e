"""A node that drains or stops: each connection ends with an answer that says so, and none before one that is owed."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.cluster import Cluster, wait_until

CLIENTS = 40


class Client:
    """One keep-alive connection that sends raw requests and reads their answers in order."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, 10.0)
        self._socket.settimeout(10.0)
        self._data = b""

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> bytes:
        """The head of the next answer; what of it came where the connection ended before it was whole."""
        while b"\r\n\r\n" not in self._data:
            if not self._more():
                return b"lost: " + self._data
        head, _, rest = self._data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        while len(rest) < length:
            if not self._more():
                return b"lost: " + self._data
            rest = self._data.partition(b"\r\n\r\n")[2]
        self._data = rest[length:]
        return head

    def _more(self) -> bool:
        try:
            data = self._socket.recv(65_536)
        except OSError:
            return False
        self._data += data
        return bool(data)

    def at_end(self) -> bool:
        return not self._data and not self._more()

    def close(self) -> None:
        self._socket.close()


def put(key: str) -> bytes:
    return b"PUT /v1/kv/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv" % key.encode()


def says_close(head: bytes) -> bool:
    return head.lower().count(b"\r\nconnection: close") == 1


def run_all(work: Callable[[int], str]) -> tuple[list[threading.Thread], list[str]]:
    """CLIENTS threads; what became of each."""
    ends: list[str] = []
    threads = [threading.Thread(target=lambda number=number: ends.append(work(number))) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    return threads, ends


def ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()


@pytest.mark.parametrize(("size", "pace_s"), [(1, 0.0), (1, 0.3), (3, 0.02)])
def test_a_stopping_node_loses_no_request_of_a_busy_connection(
    make_cluster: Callable[..., Cluster], size: int, pace_s: float
) -> None:
    cluster = make_cluster(size=size).start()
    name = cluster.leader()

    def work(number: int) -> str:
        client = Client(cluster.nodes[name].http)
        try:
            while True:
                client.send(put(f"c{number}"))
                head = client.answer()
                if not head.startswith(b"HTTP/1.1 200"):
                    return f"lost {head[:200]!r}"
                if says_close(head):
                    return "told" if client.at_end() else "goes on"
                time.sleep(pace_s)
        except OSError as error:
            return repr(error)
        finally:
            client.close()

    threads, ends = run_all(work)
    wait_until(lambda: _all_began(cluster, name), 10.0, "all clients at work")
    os.kill(cluster.pid(name), signal.SIGTERM)
    ended(threads)
    assert ends == ["told"] * CLIENTS
    assert cluster.wait_exit(name, 12.0) == 0


def _all_began(cluster: Cluster, name: str) -> bool:
    answer = cluster.request(name, "GET", "/v1/kv?count=only&prefix=c")
    return bool(answer.json()["count"] == CLIENTS)


def test_a_stopping_node_answers_all_requests_that_came_in_one_piece(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(size=1).start()
    depth = 50

    def work(number: int) -> str:
        client = Client(cluster.nodes["n1"].http)
        try:
            while True:
                client.send(put(f"c{number}") * depth)
                heads = [client.answer() for _ in range(depth)]
                if not all(head.startswith(b"HTTP/1.1 200") for head in heads):
                    return f"lost {[head[:20] for head in heads]}"
                told = [says_close(head) for head in heads]
                if any(told):
                    # From the first that says so to the last, which ends it.
                    return "told" if told == sorted(told) and client.at_end() else f"goes on {told}"
        except OSError as error:
            return repr(error)
        finally:
            client.close()

    threads, ends = run_all(work)
    wait_until(lambda: _all_began(cluster, "n1"), 10.0, "all clients at work")
    os.kill(cluster.pid("n1"), signal.SIGTERM)
    ended(threads)
    assert ends == ["told"] * CLIENTS
    assert cluster.wait_exit("n1", 12.0) == 0


def test_a_drained_node_says_with_every_answer_that_the_connection_ends(cluster: Cluster) -> None:
    name = cluster.followers()[0]
    before = Client(cluster.nodes[name].http)
    before.send(put("a"))
    assert not says_close(before.answer())
    assert cluster.request(name, "POST", "/admin/api/v1/drain").status == 200
    before.send(put("a"))
    assert says_close(before.answer())
    assert before.at_end()
    for target in ("/v1/kv/a", "/v1/kv/missing", "/v1/kv", "/livez", "/readyz", "/metrics", "/nowhere", "/v1/kv/a?x=1"):
        for method in ("GET", "HEAD"):
            client = Client(cluster.nodes[name].http)
            client.send(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head and (data := client._socket.recv(65_536)):
                head += data
            assert says_close(head.partition(b"\r\n\r\n")[0]), (method, target)
            while client._more():
                pass  # to the end, which comes
            client.close()
    old = Client(cluster.nodes[name].http)
    old.send(b"GET /v1/kv/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert says_close(old.answer())
    assert old.at_end()
    for client in (before, old):
        client.close()


def test_an_idle_connection_ends_in_order_and_a_first_request_is_waited_for(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(size=1).start()
    idle, new = Client(cluster.nodes["n1"].http), Client(cluster.nodes["n1"].http)
    idle.send(put("a"))
    assert idle.answer().startswith(b"HTTP/1.1 200")
    os.kill(cluster.pid("n1"), signal.SIGTERM)
    wait_until(lambda: "Stopping" in cluster.log("n1"), 5.0, "it stops")
    new.send(put("b"))
    assert says_close(new.answer())
    assert idle.at_end(), "an end, no reset"
    assert cluster.wait_exit("n1", 12.0) == 0
    for client in (idle, new):
        client.close()


def test_what_is_still_under_way_is_answered_before_the_node_goes(cluster: Cluster) -> None:
    """Nobody confirms the write any more: the node says that nobody knows, before it closes."""
    leader = cluster.leader()
    client = Client(cluster.nodes[leader].http)
    client.send(put("a"))
    assert client.answer().startswith(b"HTTP/1.1 200")
    others = cluster.followers()
    for other in others:
        cluster.freeze(other)
    os.kill(cluster.pid(leader), signal.SIGTERM)
    wait_until(lambda: "Leadership was not handed over" in cluster.log(leader), 10.0, "it gives up handing over")
    client.send(put("a"))
    head = client.answer()
    assert head.startswith((b"HTTP/1.1 503", b"HTTP/1.1 504")), head
    assert says_close(head)
    assert cluster.wait_exit(leader, 12.0) == 0
    for other in others:
        cluster.thaw(other)
    client.close()
