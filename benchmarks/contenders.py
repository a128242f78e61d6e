"""Clusters of three on loopback that are measured side by side, kvnode and etcd, in the same verbs."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

from benchmarks.writer import Outcome
from tests.cluster import Cluster, key_path, request, wait_until

READY_S: Final = 60.0
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
NO_ETCD: Final = (
    "etcd is not installed: kvnode is measured alone. Debian and Ubuntu: apt-get install etcd-server; one that is "
    "only unpacked: ETCD=PATH."
)


def cpu_s(pid: int) -> float:
    """User and system time of a process so far (proc(5), fields 14 and 15 of its stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


class Contender(ABC):
    """Three nodes, each an own process with its data under `folder`; every option at its default."""

    name: ClassVar[str]

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.ids = list(cluster.nodes)

    def start(self) -> None:
        """Starts the nodes that do not run; returns once every node is ready and one leads."""
        for node in self.ids:
            if not self._cluster.nodes[node].running:
                self._cluster.spawn(node)
        wait_until(lambda: all(self.is_ready(node) for node in self.ids), READY_S, f"every {self.name} node ready")
        self.leader()

    def address(self, node: str) -> tuple[str, int]:
        return self._cluster.nodes[node].http

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by node."""
        return {node: cpu_s(self._cluster.pid(node)) for node in self.ids}

    def kill(self, node: str) -> None:
        self._cluster.kill(node)

    def freeze(self, node: str) -> None:
        self._cluster.freeze(node)

    def thaw(self, node: str) -> None:
        self._cluster.thaw(node)

    def close(self) -> None:
        self._cluster.close()

    @abstractmethod
    def is_ready(self, node: str) -> bool: ...
    @abstractmethod
    def leader(self) -> str: ...
    @abstractmethod
    def put(self, connection: http.client.HTTPConnection, key: str, value: bytes) -> tuple[Outcome, str]:
        """See `writer.Put`."""

    @abstractmethod
    def keys(self) -> set[str]:
        """Every key, read linearizably."""

    @abstractmethod
    def transfer(self, to: str) -> None:
        """Returns once the node `to` leads, as far as the system's own answer says so."""


class Kvnode(Contender):
    name = "kvnode"

    def __init__(self, folder: Path) -> None:
        # Compiled modules are kept, as they are where kvnode is installed: restarts are measured.
        super().__init__(Cluster(folder, env={"PYTHONDONTWRITEBYTECODE": ""}))

    def is_ready(self, node: str) -> bool:
        return self._cluster.is_ready(node)

    def leader(self) -> str:
        return self._cluster.leader(READY_S)

    def put(self, connection: http.client.HTTPConnection, key: str, value: bytes) -> tuple[Outcome, str]:
        connection.request("PUT", key_path(key), body=value)
        response = connection.getresponse()
        body = response.read()
        if response.status == 200:
            return "acknowledged", ""
        answer = json.loads(body)
        outcome: Outcome = "refused" if answer.get("outcome") == "not_applied" else "unknown"
        return outcome, f"{response.status} {answer['error']}"

    def keys(self) -> set[str]:
        found: set[str] = set()
        cursor = ""
        while True:
            path = f"/v1/kv?limit=1000&keys_only=true&cursor={quote(cursor)}" if cursor else _FIRST_PAGE
            page = request(self.address(self.ids[0]), "GET", path).json()
            found.update(item["key"] for item in page["items"])
            cursor = page.get("cursor", "")
            if not cursor:
                return found

    def transfer(self, to: str) -> None:
        self._cluster.transfer(to, via=self.leader())


class Etcd(Contender):
    """Its HTTP is the JSON gateway: a proxy within each node to its gRPC, which costs it well below a millisecond.

    `binary` is what runs: the `etcd` of the PATH, or what `use` names.
    """

    name = "etcd"
    binary: ClassVar[str] = "etcd"

    def __init__(self, folder: Path) -> None:
        super().__init__(_EtcdProcesses(folder))

    @classmethod
    def use(cls, path: str) -> None:
        """Another etcd than the one of the PATH: its executable, or the folder with it. Ends the program without."""
        binary = shutil.which(path) or shutil.which("etcd", path=path)
        if binary is None:
            sys.exit(f"There is no etcd at {path}: name the executable or the folder that it lies in.")
        cls.binary = binary

    @classmethod
    def version(cls) -> str | None:
        """Such as `etcd 3.5.30 (JSON gateway)`; None where it is not installed."""
        binary = shutil.which(cls.binary)
        if binary is None:
            return None
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
        return f"etcd {said.splitlines()[0].rpartition(' ')[2]} (JSON gateway)"

    def is_ready(self, node: str) -> bool:
        try:
            return request(self.address(node), "GET", "/health", timeout_s=2.0).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def leader(self) -> str:
        """A node that says of itself that it leads; etcd asks nobody before it says so."""

        def leads() -> str | None:
            for node in self._cluster.awake():
                status = self._status(node)
                if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                    return node
            return None

        return wait_until(leads, READY_S, "an etcd leader")

    def put(self, connection: http.client.HTTPConnection, key: str, value: bytes) -> tuple[Outcome, str]:
        connection.request("POST", "/v3/kv/put", body=json.dumps({"key": _b64(key.encode()), "value": _b64(value)}))
        response = connection.getresponse()
        body = response.read()
        if response.status == 200:
            return "acknowledged", ""
        said = str(json.loads(body).get("error", ""))
        # "no leader" is said before anything is proposed; every other failure leaves the outcome open.
        return "refused" if said.endswith("no leader") else "unknown", f"{response.status} {said}"

    def keys(self) -> set[str]:
        everything = {"key": _b64(b"\0"), "range_end": _b64(b"\0"), "keys_only": True}
        found = self._call(self.ids[0], "/v3/kv/range", everything).get("kvs", [])
        return {base64.b64decode(each["key"]).decode() for each in found}

    def transfer(self, to: str) -> None:
        member = self._status(to)["header"]["member_id"]
        self._call(self.leader(), "/v3/maintenance/transfer-leadership", {"targetID": member})

    def _status(self, node: str) -> Any:
        try:
            return self._call(node, "/v3/maintenance/status", {})
        except (OSError, http.client.HTTPException):
            return {}

    def _call(self, node: str, path: str, document: Mapping[str, Any]) -> Any:
        answer = request(self.address(node), "POST", path, json.dumps(document).encode(), timeout_s=20.0)
        assert answer.status == 200, f"etcd answered {answer.status} to {path}: {answer.body[:200]!r}"
        return answer.json()


class _EtcdProcesses(Cluster):
    """The test cluster's ports, processes and logs, with etcd in them."""

    def command(self, name: str) -> list[str]:
        node = self.nodes[name]
        peers = ",".join(f"{each.id}={_url(each.raft)}" for each in self.nodes.values())
        return [
            *(Etcd.binary, "--name", name, "--data-dir", str(node.data_dir), "--log-level", "error"),
            *("--listen-client-urls", _url(node.http), "--advertise-client-urls", _url(node.http)),
            *("--listen-peer-urls", _url(node.raft), "--initial-advertise-peer-urls", _url(node.raft)),
            *("--initial-cluster", peers, "--initial-cluster-state", "new"),
        ]


_FIRST_PAGE = "/v1/kv?limit=1000&keys_only=true"


def _url(address: tuple[str, int]) -> str:
    return f"http://{address[0]}:{address[1]}"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
