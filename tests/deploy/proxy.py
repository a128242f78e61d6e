"""A real Caddy or nginx on loopback, run from the files in deploy/: only addresses and folders are replaced."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import Self

import pytest

from tests.cluster import PROJECT, Answer, free_ports, request, wait_until

DEPLOY = PROJECT / "deploy"
# Debian keeps nginx out of the PATH of ordinary users.
FOUND = {
    name: shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") for name in ("caddy", "nginx")
}
PACKAGES = {"caddy": "caddy", "nginx": "nginx-light"}


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(FOUND[name] is None, reason=f"needs {name}: apt-get install {PACKAGES[name]}")


def caddy_config(port: int, folder: Path) -> str:
    return (DEPLOY / "caddy" / "Caddyfile").read_text().replace(":8080 {", f"http://127.0.0.1:{port} {{")


def nginx_config(port: int, folder: Path) -> str:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text().replace("listen 8080 ", f"listen 127.0.0.1:{port} ")
    text = text.replace("/var/cache/nginx/kvnode", f"{folder}/cache")
    # Where Debian's build would keep these, only root may write.
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    return text.replace("http {\n", f"http {{\n{temporary}", 1)


@dataclass
class Proxy:
    """One proxy in front of `nodes`; its file and its log are under `folder`."""

    name: str
    folder: Path
    nodes: Mapping[str, tuple[str, int]]
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = FOUND[self.name]
        assert program is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        (port,) = free_ports(1)
        self.address = ("127.0.0.1", port)
        text = (caddy_config if self.name == "caddy" else nginx_config)(port, self.folder)
        text = re.sub(r"\b(n[123]):8001\b", lambda found: "{}:{}".format(*self.nodes[found[1]]), text)
        file = self.folder / "config"
        file.write_text(text)
        if self.name == "caddy":
            command = [program, "run", "--adapter", "caddyfile", "--config", str(file)]
        else:
            command = [program, "-c", str(file), "-g", f"daemon off; pid {self.folder}/pid; user {getuser()};"]
        environment = {"HOME": str(self.folder), "PATH": "/usr/bin:/bin"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        wait_until(
            lambda: self.node_of("PUT", "/v1/kv/a", b"1"), 10, f"{self.name} answers; its log: {self.folder}/log"
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()  # nginx takes its workers with it
            self.process.wait(10)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        return request(self.address, method, path, body, headers)

    def node_of(self, method: str, path: str, body: bytes | None = None) -> str | None:
        """The node that the request was sent to; None where it was not answered by one with 200."""
        try:
            answer = self.request(method, path, body)
        except (OSError, http.client.HTTPException):
            return None
        return answer.headers["Kvnode-Node"] if answer.status == 200 else None
