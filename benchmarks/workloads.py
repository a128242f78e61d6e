"""What is asked of each system: the same work in its own words, as scripts for `wrk`.

A script makes its requests once, before the clock starts, and then sends them in random order. When it is done it
prints one line of JSON: requests, microseconds, p50 and p99 in microseconds, and how many answers were not 2xx or did
not come.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

System = Literal["kvnode", "etcd", "aiohttp", "laden"]  # laden: kvnode with a million keys more
Target = Literal["leader", "follower", "haproxy", "all"]

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
        Row("PUT spread over all nodes, 192 clients", "put", 192, "all"),
        Row("PUT through HAProxy, 64 clients", "put", 64, "haproxy"),
        Row(f"bulk load, batches of {BATCH}, 8 clients", "batch", 8, systems=("kvnode",), writes_per_request=BATCH),
        Row("linearizable GET, 64 clients, leader", "get", 64, systems=everybody),
        Row("linearizable GET, 64 clients, follower", "get", 64, "follower"),
        Row("stale GET, 64 clients, follower", "stale get", 64, "follower"),
        Row("linearizable GET spread over all nodes, 192 clients", "get", 192, "all"),
        *(
            Row(f"etcd's own {work}, {crowds[clients]}", f"{GATEWAY}{work}", clients)
            for work in ("put", "range", "txn")
            for clients in (64, 256)
        ),
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
            "range": lambda n: Request("POST", "/v3/kv/range", _json({"key": _b64(key(n))})),
            "txn": lambda n: Request("POST", "/v3/kv/txn", _txn(_b64(key(n)), coded)),
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


def command(row: Row, addresses: Sequence[tuple[str, int]], script: Path, duration_s: int) -> list[str]:
    """wrk for one slice: one thread for each address, the row's clients in equal parts on them."""
    return [
        *("wrk", "--threads", str(len(addresses)), "--connections", str(row.clients), "--duration", f"{duration_s}s"),
        *("--timeout", "10s", "--latency", "--script", str(script)),
        f"http://{addresses[0][0]}:{addresses[0][1]}/",
    ]


def spread(addresses: Sequence[tuple[str, int]]) -> str:
    """What a script needs beside so that each thread of wrk asks another address."""
    places = ", ".join(f'{{"{host}", "{port}"}}' for host, port in addresses)
    return f"""local places, thread_number = {{{places}}}, 0
function setup(thread)
  thread_number = thread_number + 1
  thread.addr = wrk.lookup(places[thread_number][1], places[thread_number][2])[1]
end
"""


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


def _txn(name: str, coded: str) -> str:
    """As Patroni and locks write: only where the key is there, else what is there instead."""
    exists = {"key": name, "target": "CREATE", "result": "GREATER", "create_revision": "0"}
    put, read = {"request_put": {"key": name, "value": coded}}, {"request_range": {"key": name}}
    return _json({"compare": [exists], "success": [put], "failure": [read]})


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
