"""`make compose-test`: the containers of docker-compose.yml: up, kill the leader's, restart all, no write lost.

Standard library alone, so that it runs before anything is installed. COMPOSE names the command (`docker compose`, or
`podman-compose`). Its containers and volumes have a project name of their own and are removed at the end; the ports are
the file's, so a cluster from `make compose-up` has to be down. Exit code 0: every acknowledged write was there.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PROJECT = Path(__file__).resolve().parent.parent.parent
COMPOSE = shlex.split(os.environ.get("COMPOSE") or "docker compose")
NODES = {"n1": 8001, "n2": 8002, "n3": 8003}
BALANCER = 8080
ENVIRONMENT = os.environ | {"COMPOSE_PROJECT_NAME": "kvnode-test", "KVNODE_CLUSTER_SECRET": secrets.token_hex(32)}
BEGAN = time.monotonic()

T = TypeVar("T")


class Failed(Exception):
    """The test's verdict, in a sentence."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", flush=True)


def compose(*arguments: str, timeout_s: float, must: bool = True) -> str:
    """Runs one compose command; its output. Raises Failed with the output's end if it fails and `must`."""
    say("$ " + shlex.join([*COMPOSE, *arguments]))
    try:
        done = subprocess.run(
            [*COMPOSE, *arguments],
            cwd=PROJECT,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
    except FileNotFoundError:
        raise Failed(
            f"{COMPOSE[0]} is not installed; name another with make COMPOSE=podman-compose compose-test"
        ) from None
    except subprocess.TimeoutExpired:
        raise Failed(f"compose {arguments[0]} took longer than {timeout_s:g} s") from None
    if must and done.returncode != 0:
        raise Failed(f"compose {arguments[0]} failed with exit code {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """One request; status 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body=body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def until(condition: Callable[[], T | None], timeout_s: float, what: str) -> T:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)
    return value


def leader() -> str | None:
    return next((name for name, port in NODES.items() if ask(port, "GET", "/admin/healthz/leader")[0] == 200), None)


def all_ready() -> bool:
    return all(ask(port, "GET", "/readyz")[0] == 200 for port in NODES.values())


def write(names: range, acknowledged: dict[str, bytes]) -> None:
    """Writes each key through HAProxy until it is acknowledged; a 503 or a lost answer is sent again."""
    for name in names:
        key, value = f"compose/{name}", secrets.token_bytes(64)

        def put(key: str = key, value: bytes = value) -> bool:
            return ask(BALANCER, "PUT", f"/v1/kv/{key}", value)[0] == 200

        until(put, 30, f"PUT {key} through HAProxy")
        acknowledged[key] = value


def check(port: int, acknowledged: dict[str, bytes], where: str, query: str = "") -> None:
    missing = [key for key, value in acknowledged.items() if ask(port, "GET", f"/v1/kv/{key}{query}") != (200, value)]
    if missing:
        raise Failed(
            f"{len(missing)} of {len(acknowledged)} acknowledged writes are missing or differ {where}: {missing[:5]}"
        )
    say(f"all {len(acknowledged)} acknowledged writes are there {where}")


def run() -> None:
    acknowledged: dict[str, bytes] = {}
    compose("up", "--build", "--detach", timeout_s=560)
    until(all_ready, 60, "/readyz of all three nodes")
    first = until(leader, 20, "a confirmed leader")
    status, body = ask(NODES[first], "GET", "/admin/api/v1/cluster")
    say(f"{first} leads, term {json.loads(body)['groups'][0]['term'] if status == 200 else '?'}")
    write(range(100), acknowledged)
    say(f"{len(acknowledged)} writes acknowledged through HAProxy")

    compose("kill", "-s", "SIGKILL", first, timeout_s=60)
    killed = time.monotonic()
    write(range(100, 101), acknowledged)
    say(f"the leader's container is killed; the next write was acknowledged {time.monotonic() - killed:.2f} s later")
    write(range(101, 200), acknowledged)
    second = until(lambda: (found := leader()) != first and found, 20, "another leader")
    say(f"{second} leads")
    check(BALANCER, acknowledged, "through HAProxy, with one node gone")

    compose("restart", *NODES, timeout_s=200)
    compose("restart", "haproxy", timeout_s=60)
    until(all_ready, 60, "/readyz of all three nodes after the restart")
    say(f"all restarted; {until(leader, 20, 'a confirmed leader')} leads")
    write(range(200, 220), acknowledged)
    check(BALANCER, acknowledged, "through HAProxy")
    for name, port in NODES.items():
        check(port, acknowledged, f"on {name}")


def main() -> int:
    try:
        run()
    except Failed as verdict:
        print(compose("logs", "--tail", "40", timeout_s=60, must=False), file=sys.stderr)
        print(f"compose-test failed: {verdict}", file=sys.stderr)
        return 1
    finally:
        compose("down", "--volumes", timeout_s=200, must=False)
    say("compose-test passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
