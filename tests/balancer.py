"""A real HAProxy on loopback, run from haproxy/haproxy.cfg itself: only addresses are replaced."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.cluster import PROJECT, free_ports, request, wait_until

CONFIG = PROJECT / "haproxy" / "haproxy.cfg"
# Debian keeps it out of the PATH of ordinary users.
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="needs HAProxy: apt-get install haproxy")


def local_config(nodes: Mapping[str, tuple[str, int]], clients: int, statistics: int) -> str:
    """haproxy/haproxy.cfg with the nodes' real addresses, ports of its own on loopback, and no name server."""
    text = CONFIG.read_text()
    text = re.sub(r"^resolvers names\n(?:[ \t]+.*\n)+", "", text, flags=re.MULTILINE)
    text = text.replace(" resolvers names init-addr last,libc,none", "")
    text = text.replace("bind :8080", f"bind 127.0.0.1:{clients}")
    text = text.replace("bind 127.0.0.1:8404", f"bind 127.0.0.1:{statistics}")
    return re.sub(r"(?<= )(n\d+):8001\b", lambda found: "{}:{}".format(*nodes[found[1]]), text)


@dataclass
class Balancer:
    """HAProxy in front of `nodes`; its file and its log are under `folder`."""

    folder: Path
    nodes: Mapping[str, tuple[str, int]]
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        clients, statistics = free_ports(2)
        self.address = ("127.0.0.1", clients)
        self.statistics = ("127.0.0.1", statistics)

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    @property
    def log_path(self) -> Path:
        return self.folder / "haproxy.log"

    def start(self) -> Self:
        """Starts HAProxy and returns once its statistics answer."""
        assert HAPROXY is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "haproxy.cfg"
        config.write_text(self.config())
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [HAPROXY, "-db", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        wait_until(self._answers, 5, f"HAProxy answers; its log: {self.log_path}")
        return self

    def config(self) -> str:
        return local_config(self.nodes, self.address[1], self.statistics[1])

    def close(self) -> None:
        """Never raises: this is the way out of a failed test too."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def states(self, backend: str) -> dict[str, str]:
        """Each server's state in the backend as the statistics page names it: UP, DOWN, NOLB, …"""
        page = request(self.statistics, "GET", "/stats;csv").body.decode().removeprefix("# ")
        rows = csv.DictReader(io.StringIO(page))
        return {
            row["svname"]: row["status"] for row in rows if row["pxname"] == backend and row["svname"] in self.nodes
        }

    def leads(self) -> list[str]:
        """The nodes that HAProxy takes for the leader now."""
        return [name for name, state in self.states("leader").items() if state == "UP"]

    def settles_on(self, leader: str, timeout_s: float = 5.0) -> None:
        """Returns once HAProxy takes this node, and no other, for the leader."""
        wait_until(
            lambda: self.leads() == [leader], timeout_s, f"HAProxy takes {leader} for the leader; log: {self.log_path}"
        )

    def has_up(self, backend: str, names: Iterable[str], timeout_s: float = 5.0) -> None:
        """Returns once these nodes take new requests in the backend."""
        wanted = set(names)
        wait_until(
            lambda: wanted <= {name for name, state in self.states(backend).items() if state == "UP"},
            timeout_s,
            f"{sorted(wanted)} up in {backend}; log: {self.log_path}",
        )

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_path.read_text()
        try:
            return request(self.statistics, "GET", "/stats;csv", timeout_s=1).status == 200
        except OSError:
            return False
