"""etcd's store, said as plainly as possible: what tests/state/test_etcd.py judges the state machine by.

One dict of keys, as bytes, and a copy of it for each revision. Follows etcd's documentation of its API and the answers
of a real etcd; shares nothing with kvnode.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

SIGNS = (operator.eq, operator.gt, operator.lt, operator.ne)


@dataclass(frozen=True)
class Kv:
    value: bytes
    create: int
    mod: int
    version: int
    lease: int


class Refused(Exception):
    """A request that etcd answers with an error; nothing has changed."""


@dataclass
class Etcd:
    """Requests are plain tuples, as are answers.

    ("range", key, end, {options})  ("put", key, value, lease, {"prev", "ignore_value", "ignore_lease"})
    ("delete", key, end, prev)      ("txn", [compare], [request], [request])
    compare = (key, end, target, sign, operand)
    """

    revision: int = 1
    kvs: dict[bytes, Kv] = field(default_factory=dict)
    leases: set[int] = field(default_factory=set)
    past: dict[int, dict[bytes, Kv]] = field(default_factory=lambda: {1: {}})

    def span(self, key: bytes, end: bytes, kvs: dict[bytes, Kv] | None = None) -> list[bytes]:
        kvs = self.kvs if kvs is None else kvs
        if not end:
            return [key] if key in kvs else []
        if end == b"\0":
            return sorted(each for each in kvs if each >= key)
        return sorted(each for each in kvs if key <= each < end)

    def answer(self, request: tuple[Any, ...]) -> Any:
        """The answer to a request at the top, or why it is refused."""
        try:
            return self._do(request)
        except Refused as refused:
            return refused

    def _do(self, request: tuple[Any, ...]) -> Any:
        kvs, revision = dict(self.kvs), self.revision
        if request[0] == "txn":
            self.check(request)
        path = self.judge(request)
        self.check_path(path)
        writes = [False]
        answer = self.run(path, writes)
        if writes[0]:
            self.revision = revision + 1
            self.past[self.revision] = dict(self.kvs)
        else:
            assert self.kvs == kvs
        return answer

    # --- a transaction's form ------------------------------------------------------------------------

    def check(self, txn: tuple[Any, ...]) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
        puts: set[bytes] = set()
        deletes: list[tuple[bytes, bytes]] = []
        for branch in txn[2:]:
            mine: list[tuple[set[bytes], list[tuple[bytes, bytes]]]] = []
            for each in branch:
                if each[0] == "txn":
                    mine.append(self.check(each))
                elif each[0] == "put":
                    mine.append(({each[1]}, []))
                elif each[0] == "delete":
                    mine.append((set(), [(each[1], each[2])]))
            for one, (some, _) in enumerate(mine):
                for other, (more, gone) in enumerate(mine):
                    if one == other:
                        continue
                    if some & more:
                        raise Refused("duplicate key")
                    for key in some:
                        for start, end in gone:
                            if key == start if not end else start <= key and (end == b"\0" or key < end):
                                raise Refused("duplicate key")
            for some, gone in mine:
                puts |= some
                deletes += gone
        return puts, deletes

    # --- comparisons first -----------------------------------------------------------------------------

    def judge(self, request: tuple[Any, ...]) -> tuple[Any, ...]:
        if request[0] != "txn":
            return request
        succeeded = all(map(self.holds, request[1]))
        return ("txn", succeeded, [self.judge(each) for each in request[2 if succeeded else 3]])

    def holds(self, compare: tuple[Any, ...]) -> bool:
        key, end, target, sign, operand = compare
        found = [self.kvs[each] for each in self.span(key, end)]
        if not found:
            return bool(target != 3 and SIGNS[sign](0, operand))
        return all(
            SIGNS[sign]((each.version, each.create, each.mod, each.value, each.lease)[target], operand)
            for each in found
        )

    def check_path(self, path: tuple[Any, ...]) -> None:
        if path[0] == "txn":
            for each in path[2]:
                self.check_path(each)
        elif path[0] == "put":
            _, key, _, lease, options = path
            if (options.get("ignore_value") or options.get("ignore_lease")) and key not in self.kvs:
                raise Refused("key not found")
            if lease and lease not in self.leases:
                raise Refused("lease not found")

    # --- then the operations, in order -------------------------------------------------------------------

    def run(self, path: tuple[Any, ...], writes: list[bool]) -> Any:
        kind = path[0]
        if kind == "txn":
            return ("txn", path[1], [self.run(each, writes) for each in path[2]])
        if kind == "put":
            _, key, value, lease, options = path
            old = self.kvs.get(key)
            if options.get("ignore_value") and old:
                value = old.value
            if options.get("ignore_lease") and old:
                lease = old.lease
            mod = self.revision + 1
            self.kvs[key] = Kv(value, old.create if old else mod, mod, old.version + 1 if old else 1, lease)
            writes[0] = True
            return ("put", mod, old if options.get("prev") else None)
        if kind == "delete":
            _, key, end, prev = path
            gone = [(each, self.kvs.pop(each)) for each in self.span(key, end)]
            writes[0] = writes[0] or bool(gone)
            return ("delete", len(gone), self.revision + writes[0], gone if prev else [])
        _, key, end, options = path
        return ("range", *self.range(self.kvs, key, end, options), self.revision + writes[0])

    def range(
        self, kvs: dict[bytes, Kv], key: bytes, end: bytes, options: dict[str, int]
    ) -> tuple[list[tuple[bytes, Kv]], int, bool]:
        found = [(each, kvs[each]) for each in self.span(key, end, kvs)]
        count = len(found)
        if options.get("count_only"):
            return [], count, False
        for name, place in (("mod", "mod"), ("create", "create")):
            if least := options.get("min_" + name):
                found = [each for each in found if getattr(each[1], place) >= least]
            if most := options.get("max_" + name):
                found = [each for each in found if getattr(each[1], place) <= most]
        by = ("key", "version", "create", "mod", "value")[options.get("sort_by", 0)]
        reverse = options.get("sort", 0) == 2
        found.sort(key=lambda each: each[0] if by == "key" else getattr(each[1], by), reverse=reverse)
        limit = options.get("limit", 0)
        more = 0 < limit < len(found)
        return (found[:limit] if limit > 0 else found), count, more
