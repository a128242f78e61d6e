"""What is asked of etcd's gateway, case by case; `recording.py` says what the texts with a colon stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One call. `lease`: what the id that it answers is called from then on. `silent`: its answer is not compared.

    With `watches` it is a stream: its `body` is a list of messages, `first` so many answers are waited for, then those
    steps are taken beside it.
    """

    call: str
    body: Any
    lease: str = ""
    silent: bool = False
    watches: list[Step] = field(default_factory=list)
    first: int = 1
    quiet_s: float = 1.5  # how long nothing comes of it any more, while it is recorded


ALL = {"key": "k:", "range_end": "k:~"}  # all keys of a case


def put(name: str, value: str = "v", **fields: Any) -> Step:
    return Step("kv/put", {"key": f"k:{name}", "value": f"v:{value}", **fields})


def quiet(step: Step) -> Step:
    return Step(step.call, step.body, step.lease, silent=True)


def delete(name: str) -> Step:
    return Step("kv/deleterange", {"key": f"k:{name}"}, silent=True)


def get(name: str = "", **fields: Any) -> Step:
    return Step("kv/range", {"key": f"k:{name}", **fields})


def every(**fields: Any) -> Step:
    return Step("kv/range", ALL | fields)


def txn(success: Any = (), failure: Any = (), *compare: Any) -> Step:
    return Step("kv/txn", {"compare": list(compare), "success": list(success), "failure": list(failure)})


def in_txn(step: Step) -> dict[str, Any]:
    names = {"kv/put": "request_put", "kv/range": "request_range", "kv/deleterange": "request_delete_range"}
    return {names.get(step.call, "request_txn"): step.body}


def compare(name: str, target: str, result: str, **operand: Any) -> dict[str, Any]:
    return {"key": f"k:{name}", "target": target, "result": result, **operand}


def watch(*beside: Step, **fields: Any) -> Step:
    return Step("watch", [{"create_request": ALL | fields}], watches=list(beside) or [get("no")])


def _ranges() -> Iterator[Step]:
    for name, value in (("c", "1"), ("a", "3"), ("b", "2"), ("a", "0")):
        yield quiet(put(name, value))
    yield from (get("a"), get("no"), every(), every(limit=2), every(limit="3"), every(limit=-1), every(keys_only=True))
    yield from (
        every(count_only=True),
        every(countOnly=True, limit=1),
        every(serializable=True),
        get("b", range_end="k:a"),
    )
    for order in ("NONE", "ASCEND", "DESCEND"):
        for target in ("KEY", "VERSION", "CREATE", "MOD", "VALUE"):
            yield every(sort_order=order, sort_target=target, limit=2)
    for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        yield every(**{name: "r:+2", "limit": 1})
    yield quiet(put("tree/a"))
    yield quiet(put("tree/é"))
    yield quiet(put("tree0"))
    yield from (
        get("tree/", range_end="k:tree0"),
        get("tree/a", range_end="k:tree/\u00ff"),
        get("tree/b", range_end="k:u"),
    )
    for revision in range(1, 8):
        yield every(revision=f"r:+{revision}")
    yield delete("tree/a")
    yield quiet(put("a", "new"))
    for revision in range(6, 10):
        yield every(revision=f"r:+{revision}", keys_only=True)
    yield from (
        every(revision="r:+9000"),
        every(revision=-1),
        get("a", revision="r:+2"),
        get("tree/a", revision="r:+7"),
    )
    yield from (Step("kv/range", {}), Step("kv/range", {"range_end": "b:00"}), Step("kv/range", ""))


def _puts() -> Iterator[Step]:
    yield from (put("a", "1"), put("a", "2", prev_kv=True), put("new", "1", prevKv=True), put("empty", ""))
    yield from (Step("kv/put", {"key": "k:none"}), every(), Step("kv/put", {"value": "v:1"}))
    yield from (put("a", "3", lease=7), put("a", "x", ignore_value=True), put("a", "", ignore_value=True, prev_kv=True))
    yield from (put("no", "", ignore_value=True), put("no", "1", ignore_lease=True))
    yield from (put("a", "1", ignore_lease=True, lease=7), put("a", "5", ignore_lease=True), get("a"))
    gone = Step("kv/deleterange", {"key": "k:a", "prev_kv": True})
    yield from (gone, gone, Step("kv/deleterange", ALL | {"prev_kv": True}), Step("kv/deleterange", ALL))
    yield from (Step("kv/deleterange", {}), put("a", "again"), get("a"))


def _compares() -> Iterator[Step]:
    yield quiet(put("a", "1"))
    yield quiet(put("a", "2"))
    operands: dict[str, tuple[str, tuple[Any, ...]]] = {
        "VERSION": ("version", (1, 2, 3)),
        "CREATE": ("create_revision", ("r:+0", "r:+1", "r:+2")),
        "MOD": ("mod_revision", ("r:+1", "r:+2", "r:+3")),
        "VALUE": ("value", ("v:1", "v:2", "v:3", "v:22", "v:")),
        "LEASE": ("lease", (-1, 0, 1)),
    }
    for target, (name, values) in operands.items():
        for value in values:
            for result in ("EQUAL", "NOT_EQUAL", "GREATER", "LESS"):
                yield txn((), (), compare("a", target, result, **{name: value}))
        for result in ("EQUAL", "NOT_EQUAL", "GREATER", "LESS"):
            for nothing in (0, ""):
                if (target == "VALUE") is (nothing == ""):
                    yield txn((), (), compare("no", target, result, **{name: nothing}))
    yield quiet(put("b", "2"))
    for end in ("k:c", "k:a", "b:00", "k:b"):
        for result in ("EQUAL", "GREATER"):
            yield txn((), (), compare("a", "VERSION", result, version=1) | {"range_end": end})
    yield txn((), (), compare("x", "VERSION", "EQUAL", version=0) | {"range_end": "k:y"})
    yield txn((), (), compare("a", "VERSION", "EQUAL", version=2), compare("b", "VALUE", "EQUAL", value="v:no"))
    yield from (txn((), (), {"key": "k:a"}), txn((), (), {"key": "k:a", "version": 2}), txn((), (), {"version": 2}))


def _operations() -> Iterator[Step]:
    yield quiet(put("old", "o"))
    several = [
        put("a", "1"),
        get("a"),
        put("b", "2", prev_kv=True),
        every(),
        Step("kv/deleterange", {"key": "k:old", "prev_kv": True}),
        get("old"),
    ]
    yield txn(map(in_txn, several))
    yield txn([in_txn(get("a"))], [in_txn(get("b"))], compare("a", "VERSION", "GREATER", version=5))
    yield txn([in_txn(delete("no"))])
    for first in (put("a"), delete("a")):
        for second in (put("a"), delete("a"), Step("kv/deleterange", ALL)):
            yield txn(map(in_txn, (first, second)))
    yield txn([in_txn(put("a", lease=99))])
    yield txn([in_txn(put("no", "", ignore_value=True))])
    yield txn([in_txn(put("a", "v", ignore_value=True))])
    yield txn([in_txn(get("a", revision="r:+2")), in_txn(put("z"))])
    yield txn([in_txn(get("a", revision="r:+9000"))])
    yield txn([in_txn(every(count_only=True)), in_txn(every(limit=1, keys_only=True, sort_order="DESCEND"))])
    yield txn([{}])
    yield txn([in_txn(put(f"m{number}")) for number in range(129)])
    yield txn([in_txn(Step("kv/range", {"range_end": "b:00"}))])
    yield txn()
    yield Step("kv/txn", {})
    yield every(keys_only=True)


def _nested() -> Iterator[Step]:
    yield quiet(put("lead", "other"))
    lead = in_txn(put("lead", "me"))
    inner = txn([lead], [], compare("lead", "CREATE", "EQUAL", create_revision=0))
    takes = txn([lead], [in_txn(inner)], compare("lead", "VALUE", "EQUAL", value="v:me"))
    yield takes
    yield delete("lead")
    yield from (takes, takes, get("lead"))
    yield txn([in_txn(put("a")), in_txn(txn([in_txn(put("a"))]))])
    yield txn(
        [
            in_txn(put("x", "1")),
            in_txn(txn([in_txn(get("x"))], [in_txn(delete("x"))], compare("x", "VALUE", "EQUAL", value="v:1"))),
        ]
    )
    yield txn([in_txn(txn([in_txn(txn([in_txn(put("deep"))])), in_txn(get("deep"))]))])
    yield every()


def _leases() -> Iterator[Step]:
    yield Step("lease/grant", {"TTL": "60", "ID": "0"}, lease="a")
    yield Step("lease/grant", {"TTL": 50, "ID": "77001"}, lease="b")
    yield Step("lease/grant", {"TTL": 50, "ID": 77001})
    yield from (Step("lease/grant", {"TTL": 9_000_000_001}), Step("lease/grant", {"TTL": 40, "ID": "-77"}, lease="c"))
    yield from (put("k", "1", lease="l:a"), get("k"), put("n", "1", lease="l:c"), get("n"))
    yield from (
        put("k", "2", ignore_lease=True),
        get("k"),
        txn([in_txn(get("k"))], [], compare("k", "LEASE", "EQUAL", lease="l:a")),
    )
    yield from (put("k", "3", lease="l:b"), get("k"), put("k", "4"), get("k"), put("k", "5", lease="l:b"))
    yield Step("lease/timetolive", {"ID": "12345"})
    yield from (Step("lease/keepalive", {"ID": "l:b"}), Step("lease/keepalive", {"ID": "12345"}))
    yield from (Step("lease/keepalive", {}), Step("lease/keepalive", '{"ID":"1"}{"ID":"2"}'))
    yield from (
        Step("lease/revoke", {"ID": "l:b"}),
        get("k"),
        Step("lease/revoke", {"ID": "l:b"}),
        put("k", "6", lease="l:b"),
    )
    yield from (
        Step("kv/lease/revoke", {"ID": "l:a"}),
        Step("kv/lease/revoke", {"ID": "l:c"}),
        get("n"),
        Step("lease/revoke", {}),
    )


def _watches() -> Iterator[Step]:
    changes = [put("a", "1"), put("a", "2"), delete("a"), txn([in_txn(put("b")), in_txn(put("c"))]), put("e", "")]
    yield watch(*changes)
    yield watch(start_revision="r:+1")
    yield watch(start_revision="r:+2", prev_kv=True)
    yield watch(start_revision="r:+1", filters=["NOPUT"])
    yield watch(start_revision="r:+1", filters=["NODELETE"], watch_id="17", fragment=True)
    yield watch(start_revision="r:+1", key="k:b", range_end="k:d")
    yield watch(start_revision="r:+1", key="k:a", range_end="")
    yield watch(put("f"), put("f", "late"), put("g"), start_revision="r:+7")
    yield watch(start_revision="r:+100")
    yield watch(key="k:z", range_end="k:a")
    yield watch(put("h", "1"), put("h", "2"), delete("h"), put("h", "3"), prev_kv=True, key="k:h", range_end="")
    several = [{"create_request": ALL}, {"create_request": {"key": "k:i"}}, {"create_request": ALL | {"watch_id": 1}}]
    yield Step("watch", several, watches=[put("i")], first=3)
    cancels = [
        {"create_request": ALL},
        {"create_request": {"key": "k:j"}},
        {"cancel_request": {"watch_id": 0}},
        {"cancel_request": {"watch_id": 9}},
    ]
    yield Step("watch", cancels, watches=[put("j"), put("k")], first=3)
    yield Step("watch", [{"create_request": ALL}, {"progress_request": {}}], watches=[put("l")], first=2)
    yield Step("watch", [{"create_request": {}}], watches=[put("l")])


def _expiry() -> Iterator[Step]:
    yield Step("lease/grant", {"TTL": 2}, lease="a")
    yield from (put("k", "1", lease="l:a"), put("l", "1", lease="l:a"))
    yield Step("watch", [{"create_request": ALL | {"prev_kv": True}}], watches=[get("no")], quiet_s=6.0)
    yield from (Step("lease/keepalive", {"ID": "l:a"}), Step("lease/timetolive", {"ID": "l:a", "keys": True}), every())


CASES: dict[str, list[Step]] = {
    name: list(steps())
    for name, steps in (
        ("ranges", _ranges), ("puts", _puts), ("compares", _compares), ("operations", _operations), ("nested", _nested),
        ("leases", _leases), ("watches", _watches), ("expiry", _expiry),
    )
}  # fmt: skip
