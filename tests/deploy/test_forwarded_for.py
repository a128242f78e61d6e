"""No balancer in the project passes a client's own X-Forwarded-For on: limits and the audit log do not believe it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvnode.cli import balancer
from tests.balancer import HAPROXY, Balancer, needs_haproxy
from tests.cluster import Cluster, free_ports, wait_until
from tests.deploy.proxy import DEPLOY, Proxy, needs

FORGED = "203.0.113.66"
RATE = 3


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    args = ["--trusted-proxies", "127.0.0.1/32", "--rate-limit", str(RATE)]
    with Cluster(tmp_path_factory.mktemp("forwarded"), args=args) as cluster:
        yield cluster.start()


NAMES = [
    pytest.param("haproxy", marks=needs_haproxy),
    pytest.param("dev", marks=needs_haproxy),
    pytest.param("caddy", marks=needs("caddy")),
    pytest.param("nginx", marks=needs("nginx")),
]


@pytest.fixture(params=NAMES)
def address(request: pytest.FixtureRequest, trio: Cluster, tmp_path: Path) -> Iterator[tuple[str, int]]:
    nodes = {node.id: node.http for node in trio.nodes.values()}
    with ExitStack() as stack:
        if request.param in ("caddy", "nginx"):
            yield stack.enter_context(Proxy(request.param, tmp_path, nodes)).address
        else:
            front = Balancer(tmp_path, nodes) if request.param == "haproxy" else Dev(tmp_path, nodes)
            stack.callback(front.close)
            front.start()
            front.has_up("writes", nodes)
            yield front.address


class Dev(Balancer):
    """The one of `kvnode dev`."""

    def config(self) -> str:
        ports = {name: port for name, (_, port) in self.nodes.items()}
        return balancer.render(ports, self.address[1], self.statistics[1])


def logs(cluster: Cluster) -> str:
    return "".join(cluster.log(name) for name in cluster.nodes)


def ask(address: tuple[str, int], source: str, forged: str) -> int:
    with socket.create_connection(address, 5.0, source_address=(source, 0)) as connection:
        connection.settimeout(10.0)
        head = f"POST /admin/api/v1/members HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{forged}"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
        return int(answer.split(b" ")[1])


@pytest.mark.parametrize(
    "forged",
    [f"X-Forwarded-For: {FORGED}\r\n", f"x-forwarded-for: 1.2.3.4, {FORGED}\r\nX-FORWARDED-FOR: {FORGED}\r\n"],
)
def test_a_forged_header_is_believed_by_no_limit_and_no_log(
    trio: Cluster, address: tuple[str, int], forged: str
) -> None:
    source = f"127.0.0.{sum(map(ord, forged + str(address))) % 200 + 5}"
    statuses = [ask(address, source, forged.replace(FORGED, f"203.0.113.{n}")) for n in range(30 * RATE)]
    assert 429 in statuses, "each request came with another address, and all count as one client's"
    logs = "".join(trio.log(name) for name in trio.nodes)
    wait_until(
        lambda: f"anonymous at {source}" in "".join(trio.log(name) for name in trio.nodes), 5.0, "the audit line"
    )
    assert "203.0.113." not in logs
    assert ask(address, "127.0.0.3", "") != 429, "another client"


def test_envoy_sets_the_header_too() -> None:
    """Envoy itself is not run: no Debian package has it."""
    document = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())["static_resources"]
    manager: dict[str, Any] = document["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert (manager["use_remote_address"], manager["skip_xff_append"]) == (True, True)
    (added,) = manager["route_config"]["request_headers_to_add"]
    assert added["header"]["key"] == "X-Forwarded-For"
    assert "DIRECT_REMOTE_ADDRESS" in added["header"]["value"]
    assert added["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"


@needs_haproxy
def test_statistics_are_on_loopback_wherever_haproxy_is_configured(tmp_path: Path) -> None:
    shipped = (DEPLOY.parent / "haproxy" / "haproxy.cfg").read_text()
    for text in (shipped, balancer.render({"n1": free_ports(1)[0]}, 18080, 18081)):
        found = re.findall(r"^frontend statistics\n  bind (\S+):\d+$", text, flags=re.MULTILINE)
        assert found == ["127.0.0.1"]
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())
    assert compose["services"]["haproxy"]["ports"] == ["127.0.0.1:8080:8080"]
    assert HAPROXY is not None
