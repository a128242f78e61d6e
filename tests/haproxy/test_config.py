"""haproxy/haproxy.cfg itself; tests/cli/test_balancer.py holds the rules of `kvnode dev` to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.balancer import HAPROXY, local_config, needs_haproxy

PORTS = {"n1": 8001, "n2": 8002, "n3": 8003}


def shipped() -> str:
    return local_config({name: ("127.0.0.1", port) for name, port in PORTS.items()}, clients=8080, statistics=8404)


@needs_haproxy
def test_haproxy_takes_the_shipped_file_without_a_warning(tmp_path: Path) -> None:
    assert HAPROXY is not None
    file = tmp_path / "haproxy.cfg"
    file.write_text(shipped())
    checked = subprocess.run([HAPROXY, "-c", "-f", str(file)], capture_output=True, text=True, timeout=10, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr
