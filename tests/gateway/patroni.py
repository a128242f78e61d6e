"""Two PostgreSQL nodes under Patroni, whose store of the truth is a kvnode cluster: real processes, as an operator has.

Patroni comes from PyPI into a virtual environment of its own, PostgreSQL 15 from Debian; `make patroni` installs both.
PostgreSQL refuses to run as root, so as root all of it runs as the user that Debian's package makes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.cluster import PROJECT, Cluster, free_ports, request, wait_until

PATRONI = PROJECT / ".venv" / "patroni" / "bin"
POSTGRES = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
SCOPE = "pg"
NEEDS = "needs PostgreSQL 15 and Patroni: run `make patroni` as root on Debian"
LOOK_S = 0.1


def installed() -> bool:
    return (PATRONI / "patroni").exists() and (POSTGRES / "postgres").exists()


@dataclass
class Member:
    """One PostgreSQL node: its addresses, its configuration, and its Patroni while there is one."""

    name: str
    rest: tuple[str, int]
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "patroni.yml"

    def says(self, path: str = "/patroni", method: str = "GET") -> tuple[int, Any]:
        """What Patroni's own API answers; (0, None) where it does not."""
        try:
            answer = request(self.rest, method, path, timeout_s=2.0)
            return answer.status, answer.json() if answer.body else None
        except (OSError, ValueError):
            return 0, None


@dataclass
class Postgres:
    """The PostgreSQL cluster. `settings` goes into Patroni's dynamic configuration, beside its defaults."""

    store: Cluster
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int = 2

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kvnode-patroni-"))
        self.folder.chmod(0o755)
        ports = free_ports(2 * self.size)
        self.members = {
            name: Member(name, ("127.0.0.1", ports[2 * at]), ports[2 * at + 1], self.folder / name)
            for at, name in enumerate(f"pg{number}" for number in range(1, self.size + 1))
        }
        for member in self.members.values():
            member.folder.mkdir()
            member.config.write_text(json.dumps(self._configuration(member)))  # YAML holds all of JSON
            if os.geteuid() == 0:
                shutil.chown(member.folder, USER, USER)

    def _configuration(self, member: Member) -> dict[str, Any]:
        hosts = [f"{host}:{port}" for host, port in (node.http for node in self.store.nodes.values())]
        local = f"127.0.0.1:{member.port}"
        return {
            "scope": SCOPE,
            "name": member.name,
            "restapi": {"listen": f"127.0.0.1:{member.rest[1]}", "connect_address": f"127.0.0.1:{member.rest[1]}"},
            "etcd3": {"hosts": hosts},
            "bootstrap": {
                "dcs": {"postgresql": {"use_pg_rewind": True, "parameters": {"wal_log_hints": "on"}}, **self.settings},
                "initdb": [{"encoding": "UTF8"}],
            },
            "postgresql": {
                "listen": local,
                "connect_address": local,
                "data_dir": f"{member.folder}/data",
                "bin_dir": f"{POSTGRES}",
                "pgpass": f"{member.folder}/pgpass",
                "parameters": {"unix_socket_directories": f"{member.folder}", "fsync": "off"},
                "pg_hba": ["local all all trust", "host all all 127.0.0.1/32 trust",
                           "host replication all 127.0.0.1/32 trust"],
                "authentication": {name: {"username": user, "password": "x"} for name, user in
                                   (("superuser", USER), ("replication", "replicator"), ("rewind", "rewinder"))},
            },
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            self.kill(member.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- processes ---------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        member = self.members[name]
        with (member.folder / "log").open("ab") as log:
            member.process = subprocess.Popen(
                unprivileged([PATRONI / "patroni", member.config]),
                stdout=log, stderr=subprocess.STDOUT, cwd=member.folder, start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """Patroni and its PostgreSQL at once, as a machine dies."""
        member = self.members[name]
        if member.process is None:
            return
        pids = [member.process.pid]
        pid_file = member.folder / "data" / "postmaster.pid"
        if pid_file.exists():
            # First the postmaster: it would tell its children, and a shutdown is not what is tried here.
            postmaster = int(pid_file.read_text().split()[0])
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children")
            pids += [postmaster, *map(int, children.read_text().split())] if children.exists() else []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        member.process.wait(10)
        member.process = None

    def move(self, store: Cluster) -> None:
        """Stops Patroni alone on each member, which leaves PostgreSQL running in a pause, and starts it on another
        store."""
        self.store = store
        for member in self.members.values():
            assert member.process is not None
            member.process.terminate()
            member.process.wait(30)
            member.config.write_text(json.dumps(self._configuration(member)))
        for name in self.members:
            self.start(name)

    def ctl(self, *args: str, timeout_s: float = 60.0) -> str:
        """patronictl, as an operator calls it; its output."""
        config = next(iter(self.members.values())).config
        done = subprocess.run(
            unprivileged([PATRONI / "patronictl", "-c", config, *args]),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s, check=False, cwd=self.folder,
        )  # fmt: skip
        output = done.stdout.decode(errors="replace")
        assert done.returncode == 0, f"patronictl {' '.join(args)}: {output}"
        return output

    def sql(self, name: str, query: str) -> str:
        member = self.members[name]
        done = subprocess.run(
            [POSTGRES / "psql", "-h", "127.0.0.1", "-p", str(member.port), "-U", USER, "-Atc", query, "postgres"],
            capture_output=True, timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode().strip()

    # --- what is so ----------------------------------------------------------------------------------

    def primary(self) -> str | None:
        """The one member that says that it is the primary."""
        found = [member.name for member in self.members.values() if member.says("/primary")[0] == 200]
        return found[0] if len(found) == 1 else None

    def streams(self, name: str) -> bool:
        """Whether the member is a replica that follows."""
        status, said = self.members[name].says("/replica")
        return status == 200 and said.get("replication_state") == "streaming"

    def timeline(self, name: str) -> int:
        return int(self.members[name].says()[1]["timeline"])

    def log(self, name: str) -> str:
        return (self.members[name].folder / "log").read_text(errors="replace")

    def configuration(self, name: str) -> dict[str, Any]:
        """The dynamic configuration, as the member has it."""
        return dict(self.members[name].says("/config")[1])

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """PostgreSQL does not fail over inside: the same primary, the same timeline, and no member's log speaks of a
        demotion or a promotion."""
        name = wait_until(self.primary, 30, "there is a primary")
        timeline, begun = self.timeline(name), {each: len(self.log(each)) for each in self.members}
        yield
        assert self.primary() == name
        assert self.timeline(name) == timeline, "PostgreSQL has failed over"
        since = "".join(self.log(each)[length:] for each, length in begun.items())
        for word in ("demot", "promot"):
            assert word not in since, since

    def watch_for(self, seconds: float) -> float:
        """Asks the primary for so long whether it is one; the longest time between two answers of yes."""
        name = wait_until(self.primary, 30, "there is a primary")
        ends, said, longest = time.monotonic() + seconds, time.monotonic(), 0.0
        while time.monotonic() < ends:
            if self.members[name].says("/primary")[0] == 200:
                longest, said = max(longest, time.monotonic() - said), time.monotonic()
            time.sleep(LOOK_S)
        return max(longest, time.monotonic() - said)


def unprivileged(command: Sequence[str | Path]) -> list[str | Path]:
    """As root: as the user that PostgreSQL runs as, who may still read what the checkout and its Python lie under."""
    if os.geteuid() != 0:
        return [*command]
    capabilities = (
        "--inh-caps=-all,+dac_override",
        "--ambient-caps=+dac_override",
        "--bounding-set=-all,+dac_override",
    )
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *capabilities, "--", *command]


def timed(what: str, condition: Callable[[], Any], timeout_s: float) -> float:
    """How long it takes until the condition holds; printed."""
    begun = time.monotonic()
    wait_until(condition, timeout_s, what)
    took_s = time.monotonic() - begun
    print(f"{took_s:7.1f} s  {what}", flush=True)
    return took_s
