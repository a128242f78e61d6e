"""Ten thousand random requests of a token with prefixes, each judged by what it names and by what its answer shows.

The judge knows the keys that there are and the prefixes. A request that names a key outside of them is 403 and changes
nothing; any other is answered as the store has it; and no answer, whatever was asked, has a word of another's keys or
values in it that the request did not say itself.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from kvnode.state.commands import DELETE, GRANT, PUT
from tests.http.serving import Reply, Wire, serve
from tests.http.test_rights import FIRST, a_group, bearer, put_token

REQUESTS = 10_000
OWN = ("app/", "b/x")
OWN_KEYS = [*(f"app/{n}" for n in range(8)), *(f"b/x{n}" for n in range(4)), "app/", "b/x", "app/sub/é"]
# Others' keys have this word in them or lie right beside a prefix; their values are secrets.
WORD, SECRET = "zebra", "secret-"
OTHERS = [*(f"{WORD}/{n}" for n in range(8)), "ap", "app", "app.", "app0", "b/", "b/w", "b/y", "a", "\U0010ffff", "b"]
KEYS = OWN_KEYS + OTHERS


def is_own(text: str) -> bool:
    return any(text.startswith(prefix) for prefix in OWN)


class Asked(NamedTuple):
    """A request, whether it may be carried out (None: no key can lie in what it names), and who judges the answer."""

    method: str
    target: str
    body: bytes | None
    allowed: bool | None
    judge: Callable[[Reply], None]
    headers: dict[str, str] = {}  # noqa: RUF012


class Judge:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.group = a_group(writer="write")
        put_token(self.group, "me", "write", OWN)
        self.store = self.group.store
        self.leases = [1]
        self.repeated: dict[str, tuple[str, bytes]] = {}
        for key in KEYS:
            self._others_put(key)

    # --- what others do meanwhile ----------------------------------------------------------------------

    def _others_put(self, key: str, lease: int = 0) -> None:
        value = (SECRET if not is_own(key) else "own-") + str(self.random.randrange(99))
        name = f"key-{self.random.randrange(4)}" if self.random.random() < 0.3 else None
        extra = [name, lease, 0] if lease else [name] if name else []
        self.store.apply([PUT, key, value.encode(), "", None, *extra])
        self.group.watches.publish()

    def others_act(self) -> None:
        act = self.random.randrange(4)
        if act == 0:
            self.store.apply([DELETE, self.random.choice(OTHERS), None])
            self.group.watches.publish()
        elif act == 1:
            self.leases.append(self.store.apply([GRANT, 60]).lease)  # type: ignore[union-attr]
        else:
            self._others_put(self.random.choice(OTHERS), self.random.choice(self.leases) if act == 2 else 0)

    # --- requests --------------------------------------------------------------------------------------

    def any_text(self) -> str:
        """A key, a beginning of one, or one that has been made longer."""
        key = self.random.choice(KEYS)
        form = self.random.randrange(4)
        return key if form < 2 else key[: self.random.randrange(len(key) + 1)] if form == 2 else key + "!"

    def request(self) -> Asked:
        kinds = (
            (self.key, 6), (self.listing, 5), (self.delete_prefix, 1), (self.txn, 3), (self.batch, 2), (self.watch, 2),
            (self.lease, 3), (self.history, 1), (self.elsewhere, 1),
        )  # fmt: skip
        made: Callable[[], Asked] = self.random.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
        return made()

    def key(self) -> Asked:
        key = self.random.choice(KEYS) if self.random.random() < 0.8 else self.any_text() or "x"
        method = self.random.choice(["GET", "GET", "HEAD", "PUT", "DELETE"])
        query = self.random.choice(["", "", "?consistency=stale", "?revision=3"]) if method in ("GET", "HEAD") else ""
        headers: dict[str, str] = {}
        if self.random.random() < 0.3:
            headers["If-Match"] = f'"{self.random.randrange(60)}"'
        item, before = self.store.get(key), self.store.revision

        def judge(reply: Reply) -> None:
            assert reply.status in (200, 304, 404, 410, 412, 400)
            if method == "GET" and not query and reply.status == 200:
                assert item is not None
                assert reply.body == item.value
            if method in ("PUT", "DELETE") and reply.status == 200:
                assert self.store.revision == before + 1

        target = f"/v1/kv/{quote(key, safe='')}{query}"
        if method in ("PUT", "DELETE") and not headers and self.random.random() < 0.3:
            return self._repeatable(method, target, is_own(key))
        return Asked(method, target, b"mine" if method == "PUT" else None, is_own(key), judge, headers)

    def _repeatable(self, method: str, target: str, allowed: bool) -> Asked:
        """Under an idempotency key that others use as well: what became of theirs is not told."""
        name = f"key-{self.random.randrange(4)}"
        first = self.repeated.get(name)
        request = f"{method} {target}"

        def judge(reply: Reply) -> None:
            if first is None:
                assert reply.status in (200, 404)
                self.repeated[name] = (request, reply.body)
            elif first[0] == request:
                assert reply.body == first[1]
            else:
                assert reply.json["error"] == "idempotency_key_reused"

        return Asked(method, target, b"mine" if method == "PUT" else None, allowed, judge, {"Idempotency-Key": name})

    def listing(self) -> Asked:
        given: dict[str, str] = {}
        for name, chance in (("prefix", 0.6), ("start", 0.4), ("end", 0.4)):
            if self.random.random() < chance:
                given[name] = self.any_text()
        start = max(given.get("prefix", ""), given.get("start", ""))

        def lies_in(key: str) -> bool:
            end = given.get("end")
            return key.startswith(given.get("prefix", "")) and key >= start and (not end or key < end)

        nearby = [*KEYS, start, start + "\0", *(prefix[:-1] + chr(ord(prefix[-1]) + 1) for prefix in OWN)]
        outside = [key for key in nearby if key and lies_in(key) and not is_own(key)]
        options = {
            "keys_only": ("", "true"),
            "count": ("", "true", "only"),
            "limit": ("", "1", "3"),
            "sizes": ("", "true"),
        }
        for name, texts in options.items():
            if text := self.random.choice(texts):
                given[name] = text
        if self.random.random() < 0.2:
            last = base64.urlsafe_b64encode(self.any_text().encode()).decode()
            given["cursor"] = f"{self.random.randrange(1, 50)}.{last}"
        there = [key for key in KEYS if self.store.get(key) is not None and lies_in(key)]
        query = "&".join(f"{name}={quote(text, safe='')}" for name, text in given.items())

        def judge(reply: Reply) -> None:
            assert reply.status == 200, reply
            if not outside:
                listed = reply.json.get("items", [])
                assert {item["key"] for item in listed} <= {*there, *self.written()}
                assert all(is_own(item["key"]) for item in listed)
                assert "count" not in reply.json or reply.json["count"] >= len(listed)

        allowed = None if not outside and not any(map(lies_in, nearby)) else not outside
        return Asked("GET", f"/v1/kv?{query}", None, allowed, judge)

    def written(self) -> set[str]:
        return {key for key, _ in self.store.range("", None, 1000) if is_own(key)}

    def delete_prefix(self) -> Asked:
        prefix = self.any_text() or "app/sub/"
        count = len([key for key, _ in self.store.range("", None, 1000) if key.startswith(prefix)])
        target = f"/v1/kv?prefix={quote(prefix, safe='')}"
        return Asked("DELETE", target, None, is_own(prefix), lambda reply: _equal(reply.json["deleted"], count))

    def operation(self, names: list[str]) -> dict[str, Any]:
        kind = self.random.choice(["put", "get", "delete", "delete_prefix"])
        text = self.random.choice(OWN_KEYS) if self.random.random() < 0.85 else self.any_text() or "x"
        names.append(text)
        if kind == "delete_prefix":
            return {kind: {"prefix": text}}
        return {kind: {"key": text, **({"text": "mine"} if kind == "put" else {})}}

    def txn(self) -> Asked:
        names: list[str] = []
        document: dict[str, Any] = {
            branch: [self.operation(names) for _ in range(self.random.randrange(3))]
            for branch in ("success", "failure")
        }
        document["compare"] = []
        for _ in range(self.random.randrange(2)):
            key = self.random.choice(OWN_KEYS) if self.random.random() < 0.8 else self.random.choice(OTHERS)
            names.append(key)
            how = self.random.choice(
                [{"exists": True}, {"op": ">", "mod_revision": 9}, {"op": "<", "text": "secret-5"}]
            )
            document["compare"].append({"key": key, **how})

        def judge(reply: Reply) -> None:
            assert reply.status in (200, 400), reply  # 400: a branch may write a key twice
            for result in reply.json.get("results", []):
                for found in result.values():
                    assert "key" not in found or is_own(found["key"])

        return Asked("POST", "/v1/txn", _json(document), all(map(is_own, names)), judge)

    def batch(self) -> Asked:
        names: list[str] = []
        operations = []
        for _ in range(self.random.randrange(1, 4)):
            entry = self.operation(names)
            kind, content = next(iter(entry.items()))
            key = content.get("key", content.get("prefix"))
            operations.append({"delete": {"key": key}} if kind != "put" else entry)
        judge = lambda reply: _equal(len(reply.json["results"]), len(operations))  # noqa: E731
        return Asked("POST", "/v1/batch", _json({"operations": operations}), all(map(is_own, names)), judge)

    def watch(self) -> Asked:
        text, by_key = self.any_text(), self.random.random() < 0.3
        text = text or ("x" if by_key else "")
        revision = self.random.randrange(1, self.store.revision + 2)
        name = "key" if by_key else "prefix"
        target = f"/v1/watch?{name}={quote(text, safe='')}&from_revision={revision}&wait=1ms"

        def judge(reply: Reply) -> None:
            assert reply.status in (200, 410), reply
            for event in reply.json.get("events", []):
                assert is_own(event["key"])
                assert event["key"] == text if by_key else event["key"].startswith(text)

        return Asked("GET", target, None, is_own(text), judge)

    def lease(self) -> Asked:
        act = self.random.randrange(5)
        if act == 0:
            return Asked("POST", "/v1/leases", b'{"ttl":60}', True, lambda r: self.leases.append(r.json["id"]))
        lease = self.random.choice(self.leases)
        known, keys = self.store.leases.get(lease), self.store.leases.keys(lease)
        allowed = known is None or (all(map(is_own, keys)) if keys else known.owner in ("", "me"))

        def judge(reply: Reply) -> None:
            assert reply.status == (404 if known is None else 200), reply
            assert all(map(is_own, reply.json.get("keys", [])))

        if act == 1:
            key = self.random.choice(KEYS)
            target = f"/v1/kv/{quote(key, safe='')}?lease={lease}"
            return Asked("PUT", target, b"mine", allowed and is_own(key), judge)
        method, end = (("GET", ""), ("POST", "/keepalive"), ("DELETE", ""))[act - 2]
        return Asked(method, f"/v1/leases/{lease}{end}", None, allowed, judge)

    def history(self) -> Asked:
        key = self.random.choice(KEYS)
        target = f"/admin/api/v1/history?key={quote(key, safe='')}"
        return Asked("GET", target, None, is_own(key), lambda reply: _equal(reply.json["key"], key))

    def elsewhere(self) -> Asked:
        """What names no key is answered without a word of others', and what is an administrator's is not."""
        seen = (
            "/metrics",
            "/openapi.json",
            *(f"/admin/api/v1/{each}" for each in ("cluster", "members", "access", "heat")),
        )
        if self.random.random() < 0.7:
            return Asked("GET", self.random.choice((*seen, "/v1/leases")), None, True, lambda reply: None)
        path = self.random.choice(("backup", "tokens", "session-key/rotate", "drain", "members", "restore"))
        method = "GET" if path in ("backup", "tokens") else "POST"
        return Asked(method, f"/admin/api/v1/{path}", None, False, lambda reply: None)

    # --- the judgement -----------------------------------------------------------------------------------

    async def ask(self, wire: Wire) -> None:
        asked = self.request()
        before = (self.store.mark, self.group.proposals)
        reply = await wire.ask(asked.method, asked.target, {**bearer("me"), **asked.headers}, asked.body)
        said = asked.target + (asked.body or b"").decode()
        shown = reply.body.decode("utf-8", "replace") + json.dumps(reply.headers)
        assert SECRET not in shown or SECRET in said, (asked, reply)
        assert WORD not in shown or WORD in said, (asked, reply)
        if asked.allowed is None and reply.status == 403:
            return
        if asked.allowed is not False:
            assert reply.status not in (401, 403, 500), (asked, reply)
            asked.judge(reply)
        else:
            is_senseless = asked.target == "/v1/txn" and reply.status == 400  # found before its keys are looked at
            assert reply.status == 403 or is_senseless, (asked, reply)
            assert (self.store.mark, self.group.proposals) == before, asked
        if self.random.random() < 0.2:
            self.others_act()


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _equal(found: object, expected: object) -> None:
    assert found == expected


@pytest.mark.parametrize("seed", range(4))
async def test_a_token_with_prefixes_sees_nothing_outside_of_them(seed: int) -> None:
    judge = Judge(seed)
    async with serve(judge.group, token=FIRST) as node, node.connect() as wire:
        for _ in range(REQUESTS // 4):
            await judge.ask(wire)
