"""What is asked of the cluster: one workload's keys, value and requests as the bytes that go out."""

from __future__ import annotations

import json
import os
import random
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal
from urllib.parse import quote

from kvnode.tools.bench.place import Place

Name = Literal["put", "get", "mixed", "probe", "batch"]
Maker = Callable[[], tuple[str, bytes]]

WRITES: Final = frozenset(("put", "batch"))
KEY_DIGITS: Final = 7


@dataclass(frozen=True)
class Workload:
    """`root` begins all of its keys and nobody else's. `reads_percent` for mixed, `batch_size` for batch alone."""

    name: Name
    root: str
    keys: int
    value_bytes: int
    stale: bool = False
    reads_percent: int = 80
    batch_size: int = 100
    value: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", os.urandom(self.value_bytes))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of its requests; each is measured for itself."""
        return ("get", "put") if self.name == "mixed" else (self.name,)

    @property
    def reads_keys(self) -> bool:
        """Whether its keys must be there before it begins."""
        return self.name in ("get", "mixed")

    @property
    def has_keys(self) -> bool:
        return self.name != "probe"

    def key(self, number: int) -> str:
        return f"{self.root}{number:0{KEY_DIGITS}}"

    @property
    def batch_body_bytes(self) -> int:
        """At most."""
        return self.batch_size * (len(self._entry) + KEY_DIGITS)

    @cached_property
    def _entry(self) -> bytes:
        root = json.dumps(self.root).encode()[1:-1].replace(b"%", b"%%")
        return b'{"put":{"key":"' + root + b'%07d","value":"' + b64encode(self.value) + b'"}}'

    def maker(self, place: Place) -> Maker:
        """Makes (kind, bytes) of one request after another, each for a key of its own choice, as `place` takes them."""
        get, put, batch = self._get(place), self._put(place), self._batch(place)
        if self.name == "put":
            return lambda: ("put", put())
        if self.name == "get":
            return lambda: ("get", get())
        if self.name == "batch":
            return lambda: ("batch", batch())
        if self.name == "probe":
            probe = place.head("GET", "/admin/healthz/leader") + b"\r\n"
            return lambda: ("probe", probe)
        share = self.reads_percent / 100
        return lambda: ("get", get()) if random.random() < share else ("put", put())

    def _get(self, place: Place) -> Callable[[], bytes]:
        before, after = self._around_key(place, "GET", "?consistency=stale" if self.stale else "")
        return lambda: b"%b%07d%b\r\n" % (before, self._number(), after)

    def _put(self, place: Place) -> Callable[[], bytes]:
        before, after = self._around_key(place, "PUT", "")
        length = b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(self.value)
        after += length + self.value
        return lambda: b"%b%07d%b" % (before, self._number(), after)

    def _batch(self, place: Place) -> Callable[[], bytes]:
        head = place.head("POST", "/v1/batch") + b"Content-Type: application/json\r\nContent-Length: "
        entry, size, keys = self._entry, self.batch_size, self.keys

        def make() -> bytes:
            first = self._number()
            body = b",".join([entry % ((first + i) % keys) for i in range(size)])
            body = b'{"operations":[' + body + b"]}"
            return b"%b%d\r\n\r\n%b" % (head, len(body), body)

        return make

    def _around_key(self, place: Place, method: str, query: str) -> tuple[bytes, bytes]:
        mark = "\0"  # a quoted root has none
        head = place.head(method, f"/v1/kv/{quote(self.root, safe='')}{mark}{query}")
        before, _, after = head.partition(mark.encode())
        return before, after

    def _number(self) -> int:
        return int(random.random() * self.keys)
