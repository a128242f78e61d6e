"""`kvnode dev`: real nodes and a real HAProxy on this machine, for trying out and for breaking."""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from kvnode.cli import balancer
from kvnode.cli.command import Command, directory
from kvnode.cli.processes import LOOK_S, Child, Say, how_it_ended, printer, stop_all
from kvnode.errors import StartupError

START_S: Final = 30.0
STOP_S: Final = 12.0  # a node bounds its own stop to 10 s
ASK_S: Final = 1.0
HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class DevPlan:
    """Who listens where, by name. `statistics_port` is HAProxy's own page."""

    http: dict[str, int]
    raft: dict[str, int]
    data_dir: Path
    haproxy: str | None
    lb_port: int

    @property
    def statistics_port(self) -> int:
        return self.lb_port + 1

    def ports(self) -> Iterator[tuple[int, str, str]]:
        """Each port with what it is for and the option that moves it."""
        for name, port in self.http.items():
            yield port, f"HTTP of {name}", "--http-port"
        for name, port in self.raft.items():
            yield port, f"Raft of {name}", "--raft-port"
        if self.haproxy:
            yield self.lb_port, "HAProxy", "--lb-port"
            yield self.statistics_port, "HAProxy's statistics", "--lb-port"


@click.command(cls=Command)
@click.option("--nodes", type=click.Choice(["1", "3", "5", "7"]), default="3", show_default=True, help="How many.")
@click.option("--data-dir", callback=directory, metavar="DIR", default="./kvnode-data/dev", show_default=True,
              help="Every node's data.")  # fmt: skip
@click.option("--http-port", type=click.IntRange(1, 65_535), default=8001, show_default=True, help="The first node's.")
@click.option("--raft-port", type=click.IntRange(1, 65_535), default=7001, show_default=True, help="The first node's.")
@click.option(
    "--lb", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True, help="HAProxy in front."
)
@click.option("--lb-port", type=click.IntRange(1, 65_534), default=8080, show_default=True, help="HAProxy's.")
def dev(nodes: str, data_dir: Path, http_port: int, raft_port: int, lb: str, lb_port: int) -> int:
    """Run a whole cluster on this machine.

    Nodes n1, n2, … take the ports from --http-port and --raft-port upwards. HAProxy listens on --lb-port where it is
    installed (--lb on insists on it), with its statistics one port above. A node that dies is started again. Ctrl-C
    stops everything; a second one stops it at once.
    """
    names = [f"n{i}" for i in range(1, int(nodes) + 1)]
    say = printer([*names, "lb", "dev"])
    try:
        plan = DevPlan(
            http={name: http_port + i for i, name in enumerate(names)},
            raft={name: raft_port + i for i, name in enumerate(names)},
            data_dir=data_dir,
            haproxy=balancer.program() if lb != "off" else None,
            lb_port=lb_port,
        )
        if lb == "on" and not plan.haproxy:
            raise StartupError("HAProxy is not installed: apt-get install haproxy, or go on without it with --lb off.")
        _check_ports(plan)
        _prepare(plan)
    except StartupError as e:
        print(f"kvnode: {e.message}", file=sys.stderr)
        return 2
    with _interrupts() as interrupts:
        return _run(plan, say, interrupts)


def _check_ports(plan: DevPlan) -> None:
    """Before anything starts: a cluster with a node missing would be a puzzle."""
    taken: dict[int, str] = {}
    for port, what, option in plan.ports():
        if port > 65_535:
            raise StartupError(f"{what} would need port {port}, and 65535 is the last: choose a lower {option}.")
        if port in taken:
            raise StartupError(f"Port {port} is both {taken[port]} and {what}: choose another {option}.")
        taken[port] = what
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                probe.listen()
            except PermissionError:
                raise StartupError(
                    f"Port {port}, for {what}, is not permitted: choose 1024 or above with {option}."
                ) from None
            except OSError:
                raise StartupError(
                    f"Port {port}, for {what}, is in use: stop what uses it, or choose another {option}."
                ) from None


def _prepare(plan: DevPlan) -> None:
    os.umask(0o077)  # for what is written here; each node sets its own
    try:
        plan.data_dir.mkdir(parents=True, exist_ok=True)
        if plan.haproxy:
            config = balancer.render(plan.http, plan.lb_port, plan.statistics_port)
            balancer.write_checked(plan.haproxy, plan.data_dir / "haproxy.cfg", config)
    except OSError as e:
        raise StartupError(f"{plan.data_dir} cannot be written: {e.strerror}; choose another --data-dir.") from None


def _children(plan: DevPlan, say: Say) -> list[Child]:
    # Whatever the user's shell says about one node must not reach all of them.
    environ = {name: text for name, text in os.environ.items() if not name.startswith("KVNODE_")}
    environ["PYTHONUNBUFFERED"] = "1"
    peers = ",".join(f"{name}={HOST}:{port}" for name, port in plan.raft.items())
    children = []
    for name in plan.http:
        command = [sys.executable, "-m", "kvnode", "serve", "--node-id", name, "--peers", peers]
        command += ["--http", f"{HOST}:{plan.http[name]}", "--raft", f"{HOST}:{plan.raft[name]}"]
        # A name instead of the addresses, so that the data stays good when the ports change.
        command += ["--data-dir", str(plan.data_dir / name), "--cluster-id", "dev"]
        children.append(Child(name, command, environ, say))
    if plan.haproxy:
        command = [plan.haproxy, "-db", "-f", str(plan.data_dir / "haproxy.cfg")]
        children.append(Child("lb", command, environ, say, balancer.readable))
    return children


def _run(plan: DevPlan, say: Say, interrupts: list[int]) -> int:
    """Starts all, looks after them until Ctrl-C, stops all; the exit code."""
    began = time.monotonic()
    children = _children(plan, say)
    try:
        try:
            nodes, rest = children[: len(plan.http)], children[len(plan.http) :]
            _start(nodes, plan.http, interrupts)
            _start(rest, {"lb": plan.lb_port}, interrupts)  # after the nodes: it would begin by finding them all down
            leader = _wait_for_leader(plan, interrupts)
        except (StartupError, OSError) as e:
            print(f"kvnode: {e.message if isinstance(e, StartupError) else e}", file=sys.stderr)
            return 2
        if leader:
            print(_welcome(plan, children, leader, time.monotonic() - began), flush=True)
        while not interrupts:
            for child in children:
                child.look_after()
            if all(child.given_up for child in children if child.name in plan.http):
                print("kvnode: No node is left; their last lines above say why.", file=sys.stderr)
                return 1
            time.sleep(LOOK_S)
        say("dev", "Stopping; Ctrl-C once more stops at once.")
        return 0
    finally:
        stop_all(children, STOP_S, lambda: len(interrupts) > 1)
        if interrupts:
            say("dev", "Everything has stopped.")


def _start(children: list[Child], ports: Mapping[str, int], interrupts: list[int]) -> None:
    """Starts them and returns once /readyz answers 200 on each one's port, or after Ctrl-C. Raises StartupError."""
    for child in children:
        child.start()
    deadline, waiting = time.monotonic() + START_S, children
    while waiting and not interrupts:
        for child in children:
            if (code := child.exit_code()) is not None:
                words = child.last_line.removeprefix("kvnode: ") or f"It {how_it_ended(code)}."
                raise StartupError(f"{child.name} did not start: {words}")
        waiting = [child for child in waiting if _status(ports[child.name], "/readyz") != 200]
        if waiting and time.monotonic() > deadline:
            late = ", ".join(child.name for child in waiting)
            raise StartupError(f"Not ready within {START_S:g} s: {late}; the lines above may say why.")
        time.sleep(LOOK_S)


def _wait_for_leader(plan: DevPlan, interrupts: list[int]) -> str | None:
    """The node that leads by the word of a majority; None if Ctrl-C came first."""
    deadline = time.monotonic() + START_S
    while not interrupts:
        for name, port in plan.http.items():
            if _status(port, "/admin/healthz/leader") == 200:
                return name
        if time.monotonic() > deadline:
            raise StartupError(f"No leader within {START_S:g} s; the lines above may say why.")
        time.sleep(LOOK_S)
    return None


def _status(port: int, path: str) -> int | None:
    """The status of a GET, None where nothing answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=ASK_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _welcome(plan: DevPlan, children: list[Child], leader: str, took_s: float) -> str:
    """Who listens where, and what to try next."""
    pids = {child.name: child.pid for child in children}
    front = plan.lb_port if plan.haproxy else plan.http["n1"]
    kvnode = _this_program()
    lines = ["", f"{len(plan.http)} node{'s'[: len(plan.http) > 1]} up after {took_s:.1f} s.", ""]
    if plan.haproxy:
        page = f"statistics: http://{HOST}:{plan.statistics_port}/stats"
        lines.append(f"  lb   http://{HOST}:{plan.lb_port}   pid {pids['lb']:<7} {page}")
    for name, port in plan.http.items():
        leads = "   leader" if name == leader else ""
        lines.append(f"  {name}   http://{HOST}:{port}   pid {pids[name]:<7} raft {HOST}:{plan.raft[name]}{leads}")
    lines += [f"  data in {plan.data_dir}", ""]
    if not plan.haproxy:
        lines += ["  No HAProxy in front (not installed, or --lb off): every node takes every request.", ""]
    lines += [
        "Try in another terminal:",
        "",
        f"  export KVNODE_URL=http://{HOST}:{front}",
        f"  {kvnode} put greeting hello",
        f"  {kvnode} get greeting",
        f"  {kvnode} status",
        "",
    ]
    if len(plan.http) > 1:
        lines += [
            "Kill the leader, and write at once:",
            "",
            f"  kill -9 {pids[leader]}; {kvnode} put greeting again",
            f"  {kvnode} leader",
            "",
        ]
    lines += ["A node that dies is started again and follows. Ctrl-C stops everything.", ""]
    return "\n".join(lines)


def _this_program() -> str:
    """How the user called this, so that the lines can be copied."""
    program = sys.argv[0]
    if Path(program).name == "kvnode":
        return shlex.quote(program)
    return f"{shlex.quote(sys.executable)} -m kvnode"


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The signals that ask to stop, as they come in; a closed terminal asks too."""
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
