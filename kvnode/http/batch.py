"""Bulk writes: POST /v1/batch. Each has an outcome of its own; `txn.py` is all or nothing."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, KeyNotFound, KvnodeError
from kvnode.http.answer import Answer, json_answer
from kvnode.http.document import checked_object, content_type_in, key_in, leasing_in, read_object, value_in
from kvnode.http.group import Group
from kvnode.http.rights import WRITE, Rights, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.http.txn import KEY_FIELDS, PUT_FIELDS, single, written_fields
from kvnode.http.writing import idempotency_key, not_written
from kvnode.metrics.recent import Traffic
from kvnode.state.commands import Delete, IdempotencyKey, Put
from kvnode.state.results import Deleted, Result, Written
from kvnode.state.store import KeyValueStore

OPERATIONS_MAX: Final = 1_000
BODY_BYTES_MAX: Final = 8 * 1_048_576  # parsing it holds the event loop for some 50 ms

_BODY: Final = frozenset(("operations",))


def routes(group: Group, traffic: Traffic | None = None) -> dict[str, Methods]:
    traffic = Traffic() if traffic is None else traffic

    async def batch(request: web.BaseRequest, rest: str, query: str) -> Answer:
        idempotency, rights = idempotency_key(request, group, batch=True), rights_of(request)
        document = await read_object(request, BODY_BYTES_MAX, _BODY)
        keys, commands = _commands(document, idempotency, rights, group.store)
        traffic.wrote_each(keys)
        results = await group.propose_each(commands)
        return json_answer(200, {"results": [_outcome(*pair) for pair in zip(keys, results, strict=True)]})

    return {"/v1/batch": {"POST": Endpoint(batch, right=WRITE, scoped=True)}}


def _commands(
    document: dict[str, Any], idempotency: IdempotencyKey, rights: Rights, store: KeyValueStore
) -> tuple[list[str], list[bytes]]:
    """The keys and the encoded commands. All of it is read before any of it is proposed: a batch that is wrong
    somewhere changes nothing. And nothing else is kept of it while it waits: it would have each value three times.
    """
    operations = document.get("operations")
    if type(operations) is not list or not 1 <= len(operations) <= OPERATIONS_MAX:
        raise BadRequest(f'"operations" is a list of 1 to {OPERATIONS_MAX} puts and deletes.')
    keys: list[str] = []
    commands: list[bytes] = []
    for number, entry in enumerate(operations):
        command = _command(entry, number, idempotency)
        rights.check_key(command.key)
        keys.append(command.key)
        encoded = command.encode()
        if isinstance(command, Put) and command.lease:
            rights.check_lease(store, command.lease)
            encoded = rights.on_leases(store, encoded, (command.lease,))
        commands.append(encoded)
    return keys, commands


def _command(entry: Any, number: int, idempotency: IdempotencyKey) -> Put | Delete:
    what = f"operations[{number}]"
    name, content = single(entry, what, ("put", "delete"))
    what = f"{what}.{name}"
    key = _key_of(idempotency, number)
    if name == "delete":
        return Delete(key_in(checked_object(content, what, KEY_FIELDS), what), None, key)
    put = checked_object(content, what, PUT_FIELDS)
    lease, ttl_s = leasing_in(put, what)
    return Put(key_in(put, what), value_in(put, what), content_type_in(put, what), None, key, lease, ttl_s)


def _key_of(idempotency: IdempotencyKey, number: int) -> IdempotencyKey:
    """Each write of a batch is remembered for itself: under a key that no client would send."""
    if idempotency is None:
        return None
    if isinstance(idempotency, tuple):
        return _digest(idempotency[0], number), idempotency[1]
    return _digest(idempotency, number)


def _digest(idempotency: str, number: int) -> str:
    return blake2b(f"{number}/{idempotency}".encode(), digest_size=24).hexdigest()


def _outcome(key: str, result: Result | KvnodeError) -> dict[str, Any]:
    if type(result) is Written:
        return written_fields(key, result)
    if type(result) is Deleted and result.deleted:
        return {"key": key, "deleted": result.deleted, "revision": result.revision}
    if isinstance(result, KvnodeError):
        error: Exception = result
    elif type(result) is Deleted:
        error = KeyNotFound("The key does not exist.")
    else:
        error = not_written(result)
    if not isinstance(error, KvnodeError):
        raise error
    return {"key": key, "error": error.code, "message": error.message, "outcome": error.outcome}
