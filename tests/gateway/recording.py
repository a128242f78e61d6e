"""Plays the cases of `cases.py` on a server with etcd's JSON gateway, and puts its answers into a form to compare.

    python -m tests.gateway.recording http://127.0.0.1:2379     # an etcd of 3.5 that nobody else writes to

writes `recorded.json`. In cases and answers a text with a letter and a colon stands for what differs between runs:

    k:a    a key below the case's prefix, in base64     b:61   any bytes, in base64, given in hexadecimal
    v:a    a value, in base64                           r:+2   a revision, counted from the case's beginning
    l:a    a lease's id, from when an answer brings it

Numbers of clusters, members and terms are `#`, what is left of a ttl is `~`. Standard library alone.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.gateway.cases import CASES, Step

RECORDED = Path(__file__).with_name("recorded.json")
REVISIONS = {"revision", "create_revision", "mod_revision", "compact_revision", "start_revision"}
REVISIONS |= {"min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"}
NUMBERED = {"cluster_id", "member_id", "raft_term"}
DEADLINE_S = 10.0
QUIET_S = 0.3  # how long nothing more may come of a stream that has all that is wanted


class Player:
    """One case on one server."""

    def __init__(self, address: tuple[str, int], case: str) -> None:
        self.address = address
        self.prefix = f"recorded/{time.time_ns()}/{case}/".encode()
        self.leases: dict[str, str] = {}
        self.base = 0
        self.base = int(self._post("kv/range", {"key": "k:"})[1]["header"].get("revision", 0))

    def play(self, steps: list[Step], wanted: list[Any] | None = None) -> list[Any]:
        """The answers, in the form that is compared. `wanted`: how much is waited for of each stream."""
        answers = []
        for number, step in enumerate(steps):
            if step.watches:
                answers.append(self._stream(step, None if wanted is None else wanted[number][2]))
                continue
            status, answer = self._post(step.call, step.body)
            if step.lease and status == 200:
                self.leases[answer["ID"]] = step.lease
            if isinstance(answer, dict) and "code" in answer:  # which a newer grpc-gateway gives once
                answer = {"error": answer["message"], **answer}
            if not step.silent:
                answers.append([status, self.shown(answer)])
        return answers

    def _post(self, call: str, body: Any) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(*self.address, timeout=DEADLINE_S)
        try:
            connection.request("POST", f"/v3/{call}", body if isinstance(body, str) else json.dumps(self.sent(body)))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        found = [json.loads(line) for line in text.splitlines() if line]
        return response.status, found[0] if len(found) == 1 else found

    def _stream(self, step: Step, wanted: list[Any] | None) -> list[Any]:
        """[status, whether the server ended it, messages] of a stream, beside which other steps are taken."""
        stream = Stream(self.address, f"/v3/{step.call}", [self.sent(each) for each in step.body])
        try:
            stream.until(lambda: len(stream.messages) >= step.first)
            self.play(step.watches)
            if wanted is None:
                stream.settle(step.quiet_s)
            else:
                stream.until(lambda: weight(stream.messages) >= weight(wanted))
                stream.settle(QUIET_S)
        finally:
            stream.close()
        return [stream.status, stream.ended, merged([self.shown(message) for message in stream.messages])]

    # --- what is sent, what is compared ----------------------------------------------------------------

    def sent(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self.sent(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.sent(inner) for inner in value]
        if not isinstance(value, str) or value[1:2] != ":":
            return value
        kind, text = value[0], value[2:]
        if kind == "r":
            return str(self.base + int(text))
        if kind == "l":
            return next(lease for lease, name in self.leases.items() if name == text)
        raw = {"k": lambda: self.prefix + text.encode(), "v": text.encode, "b": lambda: bytes.fromhex(text)}[kind]()
        return base64.b64encode(raw).decode()

    def shown(self, value: Any, name: str = "", beside: Any = ()) -> Any:
        if isinstance(value, dict):
            return {field: self.shown(inner, field, value) for field, inner in value.items()}
        if isinstance(value, list):
            return [self.shown(inner, name) for inner in value]
        if name in NUMBERED:
            return "#"
        if name == "TTL" and "grantedTTL" in beside:
            return "~"
        if not isinstance(value, str):
            return value
        if name in ("ID", "lease") and value in self.leases:
            return f"l:{self.leases[value]}"
        if name == "ID":
            return "#"
        if name in REVISIONS and re.fullmatch(r"[0-9]+", value):
            return f"r:{int(value) - self.base:+d}"
        if name in ("key", "keys"):
            return "k:" + base64.b64decode(value).removeprefix(self.prefix).decode()
        return "v:" + base64.b64decode(value).decode() if name == "value" else value


class Stream:
    """A POST whose answer goes on, read chunk by chunk."""

    def __init__(self, address: tuple[str, int], path: str, bodies: list[Any]) -> None:
        self.messages: list[Any] = []
        self.chunks: list[bytes] = []
        self.status = 0
        self.ended = False
        self._buffer = b""
        self._headers_read = False
        self._socket = socket.create_connection(address, DEADLINE_S)
        body = "".join(map(json.dumps, bodies)).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {address[0]}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)

    def until(self, come: Any) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not come() and not self.ended and time.monotonic() < deadline:
            self._read(deadline - time.monotonic())

    def settle(self, quiet_s: float) -> None:
        while not self.ended and self._read(quiet_s):
            pass

    def close(self) -> None:
        self._socket.close()

    def _read(self, timeout_s: float) -> bool:
        self._socket.settimeout(max(0.01, timeout_s))
        try:
            came = self._socket.recv(65_536)
        except TimeoutError:
            return False
        except ConnectionError:
            came = b""
        if not came:
            self.ended = True
            return False
        self._buffer += came
        if not self._headers_read and b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            self.status, self._headers_read = int(head.split()[1]), True
            assert b"transfer-encoding: chunked" in head.lower(), head
        while self._headers_read and (match := re.match(rb"([0-9a-f]+)\r\n", self._buffer)):
            size, at = int(match[1], 16), match.end()
            if len(self._buffer) < at + size + 2:
                break
            data, self._buffer = self._buffer[at : at + size], self._buffer[at + size + 2 :]
            self.ended = self.ended or not size
            if data.strip():  # etcd sends the newline of a large message as a chunk of its own
                self.chunks.append(data)
                self.messages.append(json.loads(data))
        return True


def weight(messages: list[Any]) -> int:
    """How many events, and messages without any: how they are put together is not promised."""
    return sum(len(message.get("result", {}).get("events", ())) or 1 for message in messages)


def merged(messages: list[Any]) -> list[Any]:
    """With the events of neighbours of one watch in one message, and what several watches are told of one revision in
    the order of their ids: neither is promised."""
    found: list[Any] = []
    for message in messages:
        result, before = message.get("result", {}), found[-1].get("result", {}) if found else {}
        if "events" in result and "events" in before and result.get("watch_id") == before.get("watch_id"):
            before["events"] += result["events"]
            before["header"] = result["header"]
        else:
            found.append(message)
        for at in range(len(found) - 1, 0, -1):
            if not _order(found[at - 1]) > _order(found[at]):
                break
            found[at - 1], found[at] = found[at], found[at - 1]
    return found


def _order(message: Any) -> tuple[int, int]:
    result = message.get("result", {})
    revision = int(result["header"].get("revision", "r:0")[2:]) if "events" in result else -1
    return revision, int(result.get("watch_id", 0)) if revision >= 0 else 0


def main() -> None:
    parts = urlsplit(sys.argv[1])
    address = parts.hostname or "127.0.0.1", parts.port or 2379
    recorded = {case: Player(address, case).play(steps) for case, steps in CASES.items()}
    lines = ",\n".join(
        f"{json.dumps(case)}: [\n" + ",\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers) + "\n]"
        for case, answers in recorded.items()
    )
    RECORDED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    print(sum(map(len, recorded.values())), "answers recorded")


if __name__ == "__main__":
    main()
