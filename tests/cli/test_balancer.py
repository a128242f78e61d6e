"""The HAProxy of `kvnode dev` follows the same rules as haproxy/haproxy.cfg, and HAProxy takes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvnode.cli import balancer
from kvnode.errors import StartupError
from tests.balancer import HAPROXY, local_config, needs_haproxy

# The one difference: the nodes' own output is on the same terminal, and says why a check failed.
LEFT_OUT = "option log-health-checks"


def directives(config: str) -> list[str]:
    lines = (" ".join(line.split()) for line in config.splitlines())
    return [line for line in lines if line and not line.startswith("#") and line != LEFT_OUT]


def test_the_rules_are_those_of_the_file_to_take_along() -> None:
    ports = {"n1": 18001, "n2": 18002, "n3": 18003}
    expected = local_config({name: ("127.0.0.1", port) for name, port in ports.items()}, 18080, 18081)
    assert directives(balancer.render(ports, 18080, 18081)) == directives(expected)


@needs_haproxy
@pytest.mark.parametrize("size", [1, 3, 7])
def test_haproxy_takes_the_configuration_of_every_size(tmp_path: Path, size: int) -> None:
    assert HAPROXY is not None
    config = balancer.render({f"n{i}": 18000 + i for i in range(1, size + 1)}, 18080, 18081)
    assert not re.search(r"@\w+@", config)
    balancer.write_checked(HAPROXY, tmp_path / "haproxy.cfg", config)


@needs_haproxy
def test_a_configuration_that_haproxy_does_not_take_is_a_sentence(tmp_path: Path) -> None:
    assert HAPROXY is not None
    with pytest.raises(StartupError, match=r"HAProxy does not take .*--lb off\.$"):
        balancer.write_checked(HAPROXY, tmp_path / "haproxy.cfg", "defaults\n  no such rule\n")


def test_its_log_is_told_once_and_in_the_clusters_words() -> None:
    said = [
        "Server leader/n1 is DOWN, reason: Layer7 wrong status, code: 503, check duration: 1ms. 0 active.",
        'Server writes/n1 is DOWN, reason: Layer4 connection problem, info: "Connection refused". 2 active.',
        "Server reads/n1 is DOWN via writes/n1. 2 active and 0 backup servers left.",
        "[WARNING]  (20) : Server writes/n1 is DOWN, reason: Layer4 connection problem. 2 active.",
        "backend leader has no server available!",
        "Server leader/n2 is UP, reason: Layer7 check passed, code: 200, check duration: 1ms. 1 active.",
        "Server stale/n1 is UP, reason: Layer7 check passed.",
        "Server writes/n1 is UP, reason: Layer7 check passed.",
        "[ALERT]    (20) : config : something else",
    ]
    assert [shown for line in said if (shown := balancer.readable(line))] == [
        "n1 gets no requests (Layer4 connection problem).",
        "no leader: any ready node takes requests, to forward or to hold them.",
        "n2 leads: writes and reads go there.",
        "n1 is back.",
        "[ALERT]    (20) : config : something else",
    ]
