"""`make compose-test`: the containers of docker-compose.yml: up, kill the leader's, restart all, no write lost.

Then the same with docker-compose.secure.yml over it: TLS everywhere, tokens, the secret from a file.

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
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

PROJECT = Path(__file__).resolve().parent.parent.parent
COMPOSE = shlex.split(os.environ.get("COMPOSE") or "docker compose")
NODES = {"n1": 8001, "n2": 8002, "n3": 8003}
BALANCER = 8080
ENVIRONMENT = os.environ | {"COMPOSE_PROJECT_NAME": "kvnode-test", "KVNODE_CLUSTER_SECRET": secrets.token_hex(32)}
BEGAN = time.monotonic()
READ_S = 30.0

T = TypeVar("T")


@dataclass
class Access:
    """How the present containers are run and asked."""

    files: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = None

    def connection(self, port: int) -> http.client.HTTPConnection:
        if self.context is None:
            return http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        return http.client.HTTPSConnection("localhost", port, timeout=20, context=self.context)


ACCESS = Access()


class Failed(Exception):
    """The test's verdict, in a sentence."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", flush=True)


def compose(*arguments: str, timeout_s: float, must: bool = True) -> str:
    """Runs one compose command; its output. Raises Failed with the output's end if it fails and `must`."""
    command = [*COMPOSE, *ACCESS.files, *arguments]
    say("$ " + shlex.join(command))
    try:
        done = subprocess.run(
            command,
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
    connection = ACCESS.connection(port)
    try:
        connection.request(method, path, body=body, headers=ACCESS.headers)
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


def check(port: int, acknowledged: dict[str, bytes], where: str) -> None:
    """Reads each acknowledged write. Raises Failed with what was seen: missing, different, or not answered."""
    seen = {key: fate(port, key, value) for key, value in acknowledged.items()}
    wrong = {key: what for key, what in seen.items() if what}
    if wrong:
        counts = ", ".join(f"{list(wrong.values()).count(what)} {what}" for what in sorted(set(wrong.values())))
        raise Failed(f"of {len(acknowledged)} acknowledged writes, {where}: {counts}; {sorted(wrong)[:5]}")
    say(f"all {len(acknowledged)} acknowledged writes are there {where}")


def fate(port: int, key: str, value: bytes) -> str:
    """What became of a write that was acknowledged; '' where it is there. A refusal (503) or no answer is tried again:
    it says nothing of the write.
    """
    deadline = time.monotonic() + READ_S
    while (status := (answer := ask(port, "GET", f"/v1/kv/{key}"))[0]) in (0, 503) and time.monotonic() < deadline:
        time.sleep(0.1)
    if status == 200:
        return "" if answer[1] == value else "differ"
    return "are missing" if status == 404 else f"could not be read within {READ_S:g} s (status {status})"


def run() -> None:
    acknowledged: dict[str, bytes] = {}
    compose("up", "--build", "--detach", timeout_s=560)
    until(all_ready, 60, "/readyz of all three nodes")
    first = until(leader, 20, "a confirmed leader")
    status, body = ask(NODES[first], "GET", "/admin/api/v1/cluster")
    say(f"{first} leads, term {json.loads(body)['groups'][0]['term'] if status == 200 else '?'}")
    write(range(100), acknowledged)
    say(f"{len(acknowledged)} writes acknowledged through HAProxy")
    if ACCESS.context is not None:
        check_that_strangers_are_refused()

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


def secured() -> Access:
    """Makes the secrets where there are none yet, as `make compose-up-secure` does."""
    try:
        subprocess.run(["sh", str(PROJECT / "deploy" / "compose-secrets.sh")], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failed(f"the secrets could not be made, which takes sh and openssl ({error})") from None
    made = PROJECT / "secrets"
    ENVIRONMENT["KVNODE_SECRETS_GID"] = str(made.stat().st_gid)
    return Access(
        ["-f", "docker-compose.yml", "-f", "docker-compose.secure.yml"],
        {"Authorization": f"Bearer {(made / 'token').read_text().strip()}"},
        ssl.create_default_context(cafile=str(made / "ca.pem")),
    )


def check_that_strangers_are_refused() -> None:
    """No answer without TLS, and nothing but 401 without the token, at each door."""
    told, ACCESS.headers = ACCESS.headers, {}
    for port in (BALANCER, *NODES.values()):
        if (status := ask(port, "GET", "/v1/kv/compose/0")[0]) != 401:
            raise Failed(f"port {port} answers {status} to a client without a token")
        if (status := ask(port, "GET", "/admin/healthz")[0]) != 200:
            raise Failed(f"port {port} answers {status} to a probe")
    ACCESS.headers = told
    context, ACCESS.context = ACCESS.context, None
    for port in (BALANCER, *NODES.values()):
        if (status := ask(port, "GET", "/v1/kv/compose/0")[0]) not in (0, 400):
            raise Failed(f"port {port} answers {status} to a client that does not speak TLS")
    ACCESS.context = context
    say("without TLS or token nobody is let in")


def main() -> int:
    return one(Access) or one(secured)


def one(access: Callable[[], Access]) -> int:
    global ACCESS
    try:
        ACCESS = access()
        run()
    except Failed as verdict:
        print(compose("logs", "--tail", "40", timeout_s=60, must=False), file=sys.stderr)
        print(f"compose-test failed: {verdict}", file=sys.stderr)
        return 1
    finally:
        compose("down", "--volumes", timeout_s=200, must=False)
    say(f"compose-test passed{', secured' if ACCESS.files else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
