"""A real cluster on loopback, in the cluster's own verbs: `python -m kvnode serve` processes, killed and frozen by pid.

Nothing here sleeps to let something happen: every wait polls a condition and has a deadline. Each node's output is in
`<folder>/<node>.log`; tests/conftest.py shows its end when a test fails, and takes every process away afterwards.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

PROJECT = Path(__file__).resolve().parent.parent
LEADER_PROBE = "/admin/healthz/leader"

T = TypeVar("T")

_LINUX = sys.platform == "linux"


def wait_until(condition: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """The condition's first true value; AssertionError naming `what` when there was none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, below the range the kernel lends to outgoing connections.

    A port from that range (what binding port 0 gives) can be taken by any outgoing connection while its node is
    down, and the node's restart then fails now and then. Each worker of the tests takes from a part of its own, since
    the node that is to listen on a port may not have begun, or be down, while another worker looks for one.
    """
    lowest_lent = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) if _LINUX else 49152
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (lowest_lent - 10_000) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = 10_000 + worker * share
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(ports) < count:
            candidate = socket.socket()
            held.append(candidate)  # held until all are found, so that none is found twice
            try:
                candidate.bind(("127.0.0.1", random.SystemRandom().randrange(first, first + share)))
            except OSError:
                continue
            ports.append(candidate.getsockname()[1])
    finally:
        for each in held:
            each.close()
    return ports


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, whole."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Refused(Exception):
    """A put, get or transfer that was not answered with 200; `answer` is what came instead."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body[:300].decode(errors='replace')}")
        self.answer = answer


def request(
    address: tuple[str, int],
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One request on a connection of its own; the path goes out exactly as given. Raises OSError or HTTPException."""
    if tls is None:
        connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    else:
        connection = http.client.HTTPSConnection(*address, timeout=timeout_s, context=tls)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


@dataclass
class Node:
    """One member: its addresses, its folder, and its process while there is one."""

    id: str
    http: tuple[str, int]
    raft: tuple[str, int]
    data_dir: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass
class Cluster:
    """`size` nodes n1, n2, … with their data under `folder`; `args` and `env` are added to what every node gets.

    `{node}` in an argument stands for the node's name. `tls` and `token` are what requests to the nodes need.
    """

    folder: Path
    size: int = 3
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    token: str = ""

    def __post_init__(self) -> None:
        ports = free_ports(2 * self.size)
        self.nodes = {
            name: self._node(name, ports[2 * i], ports[2 * i + 1])
            for i, name in enumerate(f"n{number}" for number in range(1, self.size + 1))
        }
        self.first = list(self.nodes)  # the members of the first cluster; others join it
        self.joined: set[str] = set()  # of these: those that have come back by joining

    def _node(self, name: str, http: int, raft: int) -> Node:
        return Node(
            id=name,
            http=("127.0.0.1", http),
            raft=("127.0.0.1", raft),
            data_dir=self.folder / name,
            log=self.folder / f"{name}.log",
        )

    def enlist(self, name: str) -> None:
        """Addresses and a folder for a node that is to join the cluster."""
        self.nodes[name] = self._node(name, *free_ports(2))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the whole cluster -----------------------------------------------------------------------

    def start(self, timeout_s: float = 15.0) -> Self:
        """Starts every node and returns once a leader is confirmed and every node is ready."""
        for name in self.nodes:
            self.spawn(name)
        self.wait_ready(timeout_s)
        return self

    def wait_ready(self, timeout_s: float = 15.0) -> None:
        """Returns once every node that runs (and is not frozen) answers 200 on /readyz, and one of them leads."""
        wait_until(lambda: all(self.is_ready(name) for name in self.awake()), timeout_s, "every node ready")
        self.leader(timeout_s)

    def stop(self, timeout_s: float = 20.0) -> dict[str, int]:
        """SIGTERM to every node at once; each one's exit code. A node that does not end in time fails the test."""
        running = [node for node in self.nodes.values() if node.running]
        for node in running:
            self.thaw(node.id)
            self._signal(node.id, signal.SIGTERM)
        return {node.id: self.wait_exit(node.id, timeout_s) for node in running}

    def close(self) -> None:
        """SIGKILL to whatever still runs. Never raises: this is the way out of a failed test too."""
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
                node.process.wait(10)
            node.process = None

    # --- one node --------------------------------------------------------------------------------

    def command(self, name: str) -> list[str]:
        node = self.nodes[name]
        first = [self.nodes[each] for each in self.first]
        peers = ",".join(f"{each.id}={each.raft[0]}:{each.raft[1]}" for each in first)
        if name in self.first and name not in self.joined:
            origin = ("--peers", peers)
        else:
            origin = ("--join", ",".join(self.url(each) for each in self.first if each != name))
        return [
            *(sys.executable, "-m", "kvnode", "serve", "--node-id", name),
            *("--http", f"{node.http[0]}:{node.http[1]}", "--raft", f"{node.raft[0]}:{node.raft[1]}"),
            *(*origin, "--data-dir", str(node.data_dir)),
            *(argument.replace("{node}", name) for argument in self.args),
        ]

    def spawn(self, name: str, output: int | None = None) -> None:
        """Starts the node's process and does not wait for it. `output`: where its output goes, instead of its log."""
        node = self.nodes[name]
        assert not node.running, f"{name} runs already"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("KVNODE_")}
        environment = inherited | {"PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"} | dict(self.env)
        node.log.parent.mkdir(parents=True, exist_ok=True)
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                self.command(name),
                stdin=subprocess.DEVNULL,
                stdout=log if output is None else output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        node.frozen = False

    def kill(self, name: str) -> None:
        """SIGKILL: the process is gone, with whatever was not on the disk."""
        self._signal(name, signal.SIGKILL)
        self.wait_exit(name, 10)

    def terminate(self, name: str, timeout_s: float = 20.0) -> int:
        """SIGTERM, and the exit code."""
        self._signal(name, signal.SIGTERM)
        return self.wait_exit(name, timeout_s)

    def freeze(self, name: str) -> None:
        """SIGSTOP: its ports still accept connections, and nothing answers."""
        self._signal(name, signal.SIGSTOP)
        self.nodes[name].frozen = True

    def thaw(self, name: str) -> None:
        if self.nodes[name].frozen:
            self._signal(name, signal.SIGCONT)
            self.nodes[name].frozen = False

    def restart(self, name: str, timeout_s: float = 15.0) -> None:
        """Starts a node that was stopped, on the same data and ports, and returns once it is ready."""
        self.spawn(name)
        wait_until(lambda: self.is_ready(name), timeout_s, f"{name} ready after its restart")

    def pid(self, name: str) -> int:
        process = self.nodes[name].process
        assert process is not None, f"{name} does not run"
        return process.pid

    def wait_exit(self, name: str, timeout_s: float) -> int:
        process = self.nodes[name].process
        assert process is not None, f"{name} does not run"
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} still ran after {timeout_s:g} s") from None

    def log(self, name: str) -> str:
        path = self.nodes[name].log
        return path.read_text(errors="replace") if path.exists() else ""

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self.nodes[name].process
        assert process is not None, f"{name} does not run"
        assert process.poll() is None, f"{name} ended by itself with exit code {process.returncode}"
        process.send_signal(number)

    # --- what the nodes say ----------------------------------------------------------------------

    def awake(self) -> list[str]:
        """The nodes that run and are not frozen."""
        return [node.id for node in self.nodes.values() if node.running and not node.frozen]

    def url(self, name: str, path: str = "") -> str:
        host, port = self.nodes[name].http
        return f"{'http' if self.tls is None else 'https'}://{host}:{port}{path}"

    def request(
        self,
        name: str,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> Answer:
        if self.token:
            headers = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        return request(self.nodes[name].http, method, path, body, headers, timeout_s, self.tls)

    def probe(self, name: str, path: str, timeout_s: float = 2.0) -> int | None:
        """The status that a probe path answers with; None where nobody answers."""
        try:
            return self.request(name, "GET", path, timeout_s=timeout_s).status
        except (OSError, http.client.HTTPException):
            return None

    def is_ready(self, name: str) -> bool:
        node = self.nodes[name]
        assert node.running, f"{name} ended by itself: {self.log(name)[-2000:]}"
        return self.probe(name, "/readyz") == 200

    def leader(self, timeout_s: float = 10.0) -> str:
        """The node whose leadership a majority has just confirmed."""
        return wait_until(
            lambda: next((name for name in self.awake() if self.probe(name, LEADER_PROBE) == 200), None),
            timeout_s,
            "a confirmed leader",
        )

    def followers(self, timeout_s: float = 10.0) -> list[str]:
        leader = self.leader(timeout_s)
        return [name for name in self.nodes if name != leader]

    def status(self, name: str) -> dict[str, Any]:
        """`GET /admin/api/v1/cluster` of one node: its first group."""
        groups: list[dict[str, Any]] = self.request(name, "GET", "/admin/api/v1/cluster").json()["groups"]
        return groups[0]

    # --- clients' verbs --------------------------------------------------------------------------

    def put(self, key: str, value: bytes, via: str | None = None, timeout_s: float = 10.0) -> dict[str, Any]:
        """Writes through one node (any that is awake); the answer's JSON. Raises Refused."""
        answer = self.request(via or self.awake()[0], "PUT", key_path(key), value, timeout_s=timeout_s)
        if answer.status != 200:
            raise Refused(answer)
        result: dict[str, Any] = answer.json()
        return result

    def get(self, key: str, via: str | None = None, consistency: str = "linearizable") -> bytes | None:
        """Reads through one node (any that is awake); None where the key does not exist. Raises Refused."""
        answer = self.request(via or self.awake()[0], "GET", f"{key_path(key)}?consistency={consistency}")
        if answer.status == 404 and answer.json()["error"] == "key_not_found":
            return None
        if answer.status != 200:
            raise Refused(answer)
        return answer.body

    def transfer(self, to: str | None = None, via: str | None = None) -> str:
        """Hands leadership over; the new leader. Raises Refused."""
        body = json.dumps({} if to is None else {"to": to}).encode()
        headers = {"Content-Type": "application/json"}
        answer = self.request(via or self.awake()[0], "POST", "/admin/api/v1/leader/transfer", body, headers)
        if answer.status != 200:
            raise Refused(answer)
        new_leader: str = answer.json()["leader_id"]
        return new_leader


def key_path(key: str) -> str:
    """The path of a key, percent-encoded; a slash stays a slash."""
    return "/v1/kv/" + quote(key, safe="/")
