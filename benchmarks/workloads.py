"""What is asked of each system: the same work in its own words, as scripts for `wrk`.

A script makes its requests once, before the clock starts, and then sends them in random order. When it is done it
prints one line of JSON: requests, microseconds, p50 and p99 in microseconds, and how many answers were not 2xx or did
not come.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

System = Literal["kvnode", "etcd", "aiohttp", "laden"]  # laden: kvnode with a million keys more
Target = Literal["leader", "follower", "haproxy"]

GATEWAY: Final = "gateway "  # before work that both are asked for in etcd's words, to the same bytes
KEYS: Final = 10_000
BATCH: Final = 100

# wrk runs `done` in a Lua state of its own: nothing of the threads is left there but these numbers.
_DONE: Final = """
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('{"requests":%d,"us":%d,"p50_us":%d,"p99_us":%d,"failed":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as text."""

    method: str
    path: str
    body: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what is asked, by how many clients, of which node, of which systems."""

    name: str
    work: str
    clients: int
    target: Target = "leader"
    value_bytes: int = 80
    systems: tuple[System, ...] = ("kvnode", "etcd")
    writes_per_request: int = 1


def rows() -> list[Row]:
    """The whole table, in the order of its lines."""
    everybody: tuple[System, ...] = ("kvnode", "etcd", "aiohttp")
    crowds = {1: "1 client", 64: "64 clients", 256: "256 clients"}
    return [
        *(Row(f"PUT, {crowd}", "put", clients, systems=everybody) for clients, crowd in crowds.items()),
        *(Row(f"PUT of 4 KiB, {crowd}", "put", clients, value_bytes=4096) for clients, crowd in crowds.items()),
        Row("PUT on a follower, 64 clients", "put", 64, "follower"),
        Row("PUT through HAProxy, 64 clients", "put", 64, "haproxy"),
        Row(f"bulk load, batches of {BATCH}, 8 clients", "batch", 8, systems=("kvnode",), writes_per_request=BATCH),
        Row("linearizable GET, 64 clients, leader", "get", 64, systems=everybody),
        Row("linearizable GET, 64 clients, follower", "get", 64, "follower"),
        Row("stale GET, 64 clients, follower", "stale get", 64, "follower"),
        *(Row(f"etcd's own put, {crowds[clients]}", f"{GATEWAY}put", clients) for clients in (64, 256)),
        Row("etcd's own range of a key, 64 clients", f"{GATEWAY}get", 64),
        Row("leader probe, 16 clients", "probe", 16),
    ]


def key(number: int) -> str:
    return f"bench/{number:06d}"


def request_of(system: System, row: Row) -> Callable[[int], Request]:
    """The row's work in a system's words. etcd's are those of its JSON gateway (v3), which kvnode has as well."""
    value = "v" * row.value_bytes
    if _in_etcds_words(system, row):
        coded = _b64(value)
        return {
            "put": lambda n: Request("POST", "/v3/kv/put", _json({"key": _b64(key(n)), "value": coded})),
            "get": lambda n: Request("POST", "/v3/kv/range", _json({"key": _b64(key(n))})),
            "stale get": lambda n: Request("POST", "/v3/kv/range", _json({"key": _b64(key(n)), "serializable": True})),
            "probe": lambda n: Request("GET", "/health"),
        }[row.work.removeprefix(GATEWAY)]
    return {
        "put": lambda n: Request("PUT", f"/v1/kv/{key(n)}", value),
        "get": lambda n: Request("GET", f"/v1/kv/{key(n)}"),
        "stale get": lambda n: Request("GET", f"/v1/kv/{key(n)}?consistency=stale"),
        "probe": lambda n: Request("GET", "/admin/healthz/leader"),
        "batch": lambda n: Request("POST", "/v1/batch", _batch(n, _b64(value))),
    }[row.work]


def script(system: System, row: Row, in_order: bool = False) -> str:
    """The Lua script of a row, which asks for keys at random or for one after the other.

    The value is a variable in it: written out ten thousand times it would be 40 MB.
    """
    make = request_of(system, row)
    count = 1 if row.work == "probe" else KEYS // row.writes_per_request
    is_coded = _in_etcds_words(system, row) or row.work == "batch"
    value = _b64("v" * row.value_bytes) if is_coded else "v" * row.value_bytes
    lines = [f"local requests, value = {{}}, {_lua(value)}", "function init(args)"]
    for number in range(count):
        asked = make(number)
        body = _with_value(asked.body, value) if asked.body else "nil"
        headers = '{["Content-Type"] = "application/json"}' if asked.body.startswith("{") else "nil"
        made = f"wrk.format({_lua(asked.method)}, {_lua(asked.path)}, {headers}, {body})"
        lines.append(f"  requests[{number + 1}] = {made}")
        if number % 500 == 499:  # a Lua function holds so many constants and no more
            lines += [f"  more{number}()", "end", f"function more{number}()"]
    following = f"last % {count} + 1" if in_order else f"math.random({count})"
    lines += ["end", "local last = 0", f"function request() last = {following}; return requests[last] end"]
    return "\n".join(lines) + "\n" + _DONE


def _in_etcds_words(system: System, row: Row) -> bool:
    return system == "etcd" or row.work.startswith(GATEWAY)


def _batch(number: int, coded: str) -> str:
    puts = [{"put": {"key": key(number * BATCH + n), "value": coded}} for n in range(BATCH)]
    return _json({"operations": puts})


def _json(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _with_value(body: str, value: str) -> str:
    """The body as a Lua expression in `value`. Lua nests concatenations, and no deeper than 200: many are replaced."""
    if body.count(value) > 1:
        return f'(({_lua(body.replace(value, "@value@"))}):gsub("@value@", value))'
    return _lua(body).replace(value, '" .. value .. "')


def _lua(text: str) -> str:
    return json.dumps(text)
