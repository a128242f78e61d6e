"""Bad input for every parameter of every operation: 400 with a sentence, and nothing changed.

The operations and their parameters are those of /openapi.json, which has them all: a new one needs a row here.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest

from kvnode.errors import BadRequest
from kvnode.http.body import read_body
from kvnode.http.openapi.operation import JSON
from kvnode.http.openapi.operations import OPERATIONS
from kvnode.http.openapi.parameters import PARAMETERS
from tests.http.serving import Reply, Served

BROKEN = ["%", "%zz", "%ff"]  # no escape, no escape, no UTF-8
LONG = "x" * 1_025
FLAGS = ["yes", "2", "True"]
LEASES = ["", "0", "-1", "x", "1.5", "1e3", "18446744073709551616", "9" * 30, "١"]
TAGS = ["", "12", '"1', "abc", '"1" "2"', ",".join(['"1"'] * 17)]
# What is none by the name of its entry in parameters.py; None: any text is one.
BAD: dict[str, list[str] | None] = {
    "key": ["", LONG, "é" * 513],
    "id": [each for each in LEASES if each.isascii()],
    "member": ["%20", "-a", "a%2Fb", "n" * 64],
    "token": ["", "x" * 65],
    "livez_check": ["leader", "x", "%00"],
    "readyz_check": ["raft_tick", "x", "a%2Fb"],
    "ttl": [*LEASES, "31622401"],
    "lease": LEASES,
    "consistency": ["", "strong", "Stale"],
    "revision": ["", "0", "-1", "x", "1.5", "99", "9" * 17],
    "prefix": None,
    "prefix_to_delete": ["", LONG],
    "watched_prefix": [LONG],
    "watched_key": ["", LONG],
    "start": None,
    "end": None,
    "limit": ["", "0", "-1", "1001", "x", "1.5", "٣"],
    "cursor": ["x", "?", "_w==", "é"],
    "lease_cursor": LEASES,
    "keys_only": FLAGS,
    "sizes": FLAGS,
    "since_ms": ["", "x", "-1", "1.5", "9" * 16],
    "key_of_history": ["", LONG],
    "limit_of_history": ["", "0", "-1", "101", "x", "1.5"],
    "count": [*FLAGS, "all"],
    "from_revision": ["", "0", "-1", "x", "1.5", "9" * 19, "99"],
    "wait": ["", "x", "30", "-1s", "61s", "2m", "1h", "1e1s"],
    "verbose": FLAGS,
    "exclude": None,
    "force": FLAGS,
    "node_to_undrain": ["", " ", "a/b", "n" * 64],
    "member_to_remove": ["", " ", "a/b", "n" * 64],
    "If-Match": TAGS,
    "If-None-Match": TAGS,
    "If-None-Match-any": ["", '"1"', "x", "*, *"],
    "Idempotency-Key": ["", "x" * 65, "é", "a\tb"],
    "Kvnode-Timeout": ["", "x", "0", "-1", "nan", "1s", "1e1", "100000"],
    "Last-Event-ID": ["", "x", "-1", "1.5", "9" * 19],
}
REPEATED = {"exclude"}
GOOD = {"key": "a", "id": "1", "member": "n1", "token": "x", "livez_check": "raft_tick", "readyz_check": "leader"}
BODIES = [b"", b" ", b"{", b"[]", b"1", b"null", b'"x"', b"\xff\xfe", b'{"what": 1}', b"[" * 4_000]


def bad_values(name: str) -> list[str]:
    parameter = PARAMETERS[name]
    values = list(BAD[name] or [])
    if parameter["in"] != "header":
        values += BROKEN
    if parameter["in"] != "path" and name not in REPEATED:
        values.append("twice")
    return values


def test_every_parameter_has_its_bad_values() -> None:
    assert set(BAD) == set(PARAMETERS), "a parameter of kvnode/http/openapi/parameters.py needs a row in BAD"


async def ask(node: Served, route: str, bad: str, value: str) -> Reply:
    """The request with this one value; all that it has to have besides is right."""
    method, path = route.split(" ")
    query: list[str] = []
    headers: dict[str, str] = {}
    for name in OPERATIONS[route].parameters:
        parameter = PARAMETERS[name]
        text = value if name == bad else GOOD.get(name, "")
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", text)
        elif name != bad:
            pass
        elif parameter["in"] == "header":
            again = '"1"\r\n' + f'{parameter["name"]}: "é' if "Match" in name else f"1\r\n{parameter['name']}: 2"
            headers[parameter["name"]] = again if value == "twice" else text
        elif value == "twice":
            query += [f"{parameter['name']}=1", f"{parameter['name']}=1"]
        else:
            query.append(f"{parameter['name']}={text}")
    target = path + ("?" + "&".join(query) if query else "")
    return await node.ask(method, target.encode(), headers, b"{}" if OPERATIONS[route].body else None)


def assert_refused(reply: Reply, status: int = 400) -> None:
    assert reply.status == status
    assert reply.json["error"] in ("bad_request", "not_found")
    assert reply.json["message"][-1] in ".?"


@pytest.fixture
async def used(node: Served) -> Served:
    """A node with one key and one lease, which bad requests leave as they are."""
    assert (await node.ask("PUT", "/v1/kv/a?ttl=60", body=b"1")).status == 200
    return node


@pytest.mark.parametrize(
    ("route", "name"), [(route, name) for route, operation in OPERATIONS.items() for name in operation.parameters]
)
async def test_a_bad_parameter_is_400_and_changes_nothing(used: Served, route: str, name: str) -> None:
    before = used.group.store.revision, used.group.proposals
    for value in bad_values(name):
        reply = await ask(used, route, name, value)
        assert_refused(reply, 404 if name.endswith("_check") and value not in BROKEN else 400)
        assert (used.group.store.revision, used.group.proposals, used.group.changes) == (*before, []), value


@pytest.mark.parametrize("route", [route for route, operation in OPERATIONS.items() if JSON in (operation.body or {})])
async def test_a_bad_body_is_refused_and_changes_nothing(used: Served, route: str) -> None:
    before = used.group.store.revision, used.group.proposals
    method, path = route.split(" ")
    path = path.replace("{member}", "n1")
    operation = OPERATIONS[route]
    for body in BODIES:
        if body.strip() or operation.body_required:
            assert_refused(await used.ask(method, path, body=body))
    packed = await used.ask(method, path, {"Content-Encoding": "gzip"}, b"{}")
    assert (packed.status, packed.json["error"]) == (415, "unsupported_media_type")
    large = await used.ask(method, path, {"Content-Length": str(8 * 1_048_576 + 1)})
    assert (large.status, large.json["error"]) == (413, "too_large")
    assert (used.group.store.revision, used.group.proposals, used.group.changes) == (*before, [])


BATCH = 1_048_576
HOSTILE = {
    "empty objects": (b'{"operations":[' + b"{}," * (BATCH // 3) + b"{}]}", 413),
    "nested objects": (b'{"operations":[' + b'{"a":{}},' * (BATCH // 9) + b"{}]}", 413),
    "many names": (b"{" + b",".join(b'"%x":1' % number for number in range(50_000)) + b"}", 413),
    "empty strings": (b'{"operations":[' + b'"",' * (BATCH // 3) + b'""]', 413),
    "small numbers": (b'{"operations":[' + b"1e1," * (BATCH // 4) + b"1]}", 413),
    "elements behind escaped quotes": (b'{"operations":["' + b"\\\\" * 99 + b'"' + b",1" * 40_000 + b"]}", 413),
    "a deep nest": (b"[" * 20_000, 400),
    "a long number": (b'{"operations":[' + b"1" * BATCH + b"]}", 400),
    "not a number": (b'{"operations":[NaN]}', 400),
    "infinity": (b'{"operations":[-Infinity]}', 400),
    "a name twice": (b'{"operations":[],"operations":[{"delete":{"key":"a"}}]}', 400),
    "a name twice inside": (b'{"operations":[{"delete":{"key":"a","key":"b"}}]}', 400),
    "a lone surrogate": (b'{"operations":[{"delete":{"key":"\\ud800"}}]}', 400),
    "no UTF-8": (b'{"operations":[{"delete":{"key":"\xff"}}]}', 400),
    "a zero byte": (b'{"operations":[]}\0', 400),
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_json_is_bounded_before_it_is_parsed(node: Served, what: str) -> None:
    body, status = HOSTILE[what]
    refused = await node.ask("POST", "/v1/batch", body=body)
    code = {400: "bad_request", 413: "too_large"}[status]
    assert (refused.status, refused.json["error"], refused.json["outcome"]) == (status, code, "not_applied")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/txn"),
        ("POST", "/v1/leases"),
        ("POST", "/admin/api/v1/tokens"),
        ("POST", "/admin/api/v1/members"),
        ("DELETE", "/admin/api/v1/members"),
        ("POST", "/admin/api/v1/leader/transfer"),
        ("POST", "/admin/api/v1/session-key/rotate"),
    ],
)
async def test_every_body_is_read_by_the_same_rules(node: Served, method: str, path: str) -> None:
    for body in (b'{"to":"n1","to":"n2"}', b"[" * 4_000, b'{"ttl":' + b"1" * 3_000 + b"}", b'{"ttl":NaN}', b"[]"):
        refused = await node.ask(method, path, body=body)
        assert (refused.status, refused.json["error"]) == (400, "bad_request"), body[:40]


async def test_what_stands_in_strings_is_no_element(node: Served) -> None:
    """The largest batch, each key of it made of what counts outside strings, and a text that is JSON itself."""
    keys = [f"{number:04}" + ',:{["\\' * 100 for number in range(999)]
    operations: list[dict[str, Any]] = [
        {"put": {"key": key, "value": "", "content_type": "a/b", "ttl": 9}} for key in keys
    ]
    operations.append({"put": {"key": "text", "text": json.dumps([{"a": ["b,c"]}] * 20_000)}})
    answer = await node.ask("POST", "/v1/batch", body=json.dumps({"operations": operations}).encode())
    assert answer.status == 200
    assert [result["key"] for result in answer.json["results"]] == [*keys, "text"]


async def test_a_client_that_went_before_its_body_was_asked_for_is_no_fault_of_the_node() -> None:
    """aiohttp raises RuntimeError for it, which was logged as a fault, with all that led to it."""
    content, protocol = mock.Mock(), mock.Mock()
    content.is_eof.return_value = content.at_eof.return_value = False
    content.readany = mock.AsyncMock(side_effect=RuntimeError("Connection closed."))
    request = mock.Mock(content=content, protocol=protocol, headers={}, content_length=10, transport=None)
    with pytest.raises(BadRequest, match="went away"):
        await read_body(request, 100)
    request.transport = object()
    with pytest.raises(RuntimeError):
        await read_body(request, 100)
