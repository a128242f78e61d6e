"""Transactions: POST /v1/txn.

    {"compare": [{"key": "a", "version": 3}, {"key": "b", "op": "!=", "text": "done"}],
     "success": [{"put": {"key": "a", "text": "hello"}}, {"get": {"key": "b"}}],
     "failure": [{"delete": {"key": "c"}}, {"delete_prefix": {"prefix": "tmp/"}}]}

A comparison names one of version, create_revision, mod_revision, exists, value (base64), text; "op" is "=" unless it
says != < > <= >=. A put takes "value" or "text", "content_type", and "ttl" or "lease".
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, TooLarge
from kvnode.http.answer import JSON_TYPE, Answer, json_string, json_text
from kvnode.http.budget import Budgets
from kvnode.http.document import checked_object, content_type_in, key_in, leasing_in, read_object, value_in
from kvnode.http.etags import refuse_conditions
from kvnode.http.group import Group
from kvnode.http.rights import WRITE, Rights, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.http.writing import idempotency_key, not_written, reads_too_large
from kvnode.metrics.recent import Traffic
from kvnode.state.commands import DELETE, DELETE_PREFIX, PUT, IdempotencyKey
from kvnode.state.items import content_of
from kvnode.state.limits import OPERATIONS_MAX, TRANSACTION_BYTES_MAX, TRANSACTION_READ_BYTES_MAX
from kvnode.state.results import (
    Deleted,
    Got,
    TxnResult,
    Written,
)
from kvnode.state.store import KeyValueStore
from kvnode.state.transactions import (
    CREATE_REVISION,
    EXISTS,
    GET,
    MOD_REVISION,
    OPERATORS,
    VALUE,
    VERSION,
    Compare,
    Operation,
    Txn,
    clash,
    read_bytes,
)

BODY_BYTES_MAX: Final = 2 * TRANSACTION_BYTES_MAX

_BODY: Final = frozenset(("compare", "success", "failure"))
_TARGETS: Final = {
    "version": VERSION, "create_revision": CREATE_REVISION, "mod_revision": MOD_REVISION,
    "exists": EXISTS, "value": VALUE, "text": VALUE,
}  # fmt: skip
_COMPARE: Final = frozenset(("key", "op", *_TARGETS))
_REVISION_MAX: Final = 2**63 - 1
_KINDS: Final = {"put": PUT, "get": GET, "delete": DELETE, "delete_prefix": DELETE_PREFIX}
_KIND_NAMES: Final = frozenset(_KINDS)
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
PUT_FIELDS: Final = frozenset(("key", "value", "text", "content_type", "ttl", "lease"))
KEY_FIELDS: Final = frozenset(("key",))
_PREFIX: Final = frozenset(("prefix",))


def routes(group: Group, budgets: Budgets, traffic: Traffic | None = None) -> dict[str, Methods]:
    traffic = Traffic() if traffic is None else traffic

    async def txn(request: web.BaseRequest, rest: str, query: str) -> Answer:
        refuse_conditions(request)
        key, rights = idempotency_key(request, group), rights_of(request)
        transaction = _transaction(await read_object(request, BODY_BYTES_MAX, _BODY), key)
        leases = _check_rights(rights, transaction, group.store)
        command, branches = transaction.encode(), [transaction.success, transaction.failure]
        del transaction
        if len(command) > TRANSACTION_BYTES_MAX:
            raise TooLarge(f"The transaction holds more than {TRANSACTION_BYTES_MAX} bytes; split it.")
        # The state machine has the last word, unless a member of 0.1.0 would carry out what the others refuse.
        store = group.store
        read = max(read_bytes(store, branch) for branch in branches)
        if store.level < 1 and read > TRANSACTION_READ_BYTES_MAX:
            raise reads_too_large()
        # Before anything is proposed: an answer that finds no room afterwards would leave its client in doubt.
        hold = budgets.answers.hold(min(read, TRANSACTION_READ_BYTES_MAX) * 4 // 3) if read else None
        branches = [tuple(operation[:2] for operation in branch) for branch in branches]  # values are in the command
        if leases:
            command = rights.on_leases(store, command, leases)
        result = await group.propose(command)
        if type(result) is not TxnResult:
            raise not_written(result)
        ran = branches[0] if result.succeeded else branches[1]
        traffic.wrote_each(operation[1] for operation in ran if operation[0] != GET)
        if hold is None:
            return _concluded(ran, result)
        await budgets.turns.take(done=True)
        return _concluded(ran, result).holding(hold)

    return {"/v1/txn": {"POST": Endpoint(txn, right=WRITE, scoped=True)}}


def _check_rights(rights: Rights, transaction: Txn, store: KeyValueStore) -> tuple[int, ...]:
    """For all that it names, whichever branch will run: what a comparison of another's key decides tells of that key.

    The leases that a token with prefixes names. Raises OutsidePrefixes.
    """
    if not rights.prefixes:
        return ()
    leases: set[int] = set()
    rights.check_keys(compare[0] for compare in transaction.compare)
    for kind, key, *rest in (*transaction.success, *transaction.failure):
        if kind == DELETE_PREFIX:
            rights.check_prefix(key)
        else:
            rights.check_key(key)
            if kind == PUT and rest[2]:
                rights.check_lease(store, rest[2])
                leases.add(rest[2])
    if len(leases) > OPERATIONS_MAX:
        raise BadRequest(f"A transaction names up to {OPERATIONS_MAX} leases.")
    return tuple(sorted(leases))


def _transaction(document: dict[str, Any], key: IdempotencyKey) -> Txn:
    compare = tuple(_compare(each, f"compare[{i}]") for i, each in enumerate(_list(document, "compare")))
    return Txn(compare, _branch(document, "success"), _branch(document, "failure"), key)


def _list(document: dict[str, Any], name: str) -> list[Any]:
    entries = document.get(name, [])
    if type(entries) is not list or len(entries) > OPERATIONS_MAX:
        raise BadRequest(f'"{name}" is a list of at most {OPERATIONS_MAX}.')
    return entries


def _compare(entry: Any, what: str) -> Compare:
    document = checked_object(entry, what, _COMPARE)
    key, sign = key_in(document, what), document.get("op", "=")
    if type(sign) is not str or sign not in OPERATORS:
        raise BadRequest(f'{what} has an "op" that is none of {" ".join(OPERATORS)}')
    named = [name for name in _TARGETS if name in document]
    if len(named) != 1:
        raise BadRequest(f"{what} compares with exactly one of {', '.join(_TARGETS)}.")
    target, operand = _TARGETS[named[0]], document[named[0]]
    if target == VALUE:
        return key, target, sign, value_in(document, what)
    if target == EXISTS:
        if type(operand) is not bool or sign not in ("=", "!="):
            raise BadRequest(f'{what} has "exists" with true or false, and the op = or !=.')
    elif type(operand) is not int or not 0 <= operand <= _REVISION_MAX:
        raise BadRequest(f'{what} has a "{named[0]}" that is not a whole number from 0 on.')
    return key, target, sign, operand


def _branch(document: dict[str, Any], name: str) -> tuple[Operation, ...]:
    branch = tuple(_operation(each, f"{name}[{i}]") for i, each in enumerate(_list(document, name)))
    if clash(branch):
        raise BadRequest(f'"{name}" writes a key twice; in one transaction a key is put once, or deleted.')
    return branch


def single(entry: Any, what: str, kinds: frozenset[str]) -> tuple[str, Any]:
    """The name and the content of an operation, which is an object with one field."""
    document = checked_object(entry, what, kinds)
    if len(document) != 1:
        raise BadRequest(f"{what} is one operation: {', '.join(sorted(kinds))}.")
    return next(iter(document.items()))


def _operation(entry: Any, what: str) -> Operation:
    name, content = single(entry, what, _KIND_NAMES)
    what = f"{what}.{name}"
    if name == "put":
        put = checked_object(content, what, PUT_FIELDS)
        return PUT, key_in(put, what), value_in(put, what), content_type_in(put, what), *leasing_in(put, what)
    if name == "delete_prefix":
        return DELETE_PREFIX, key_in(checked_object(content, what, _PREFIX), what, "prefix")
    return _KINDS[name], key_in(checked_object(content, what, KEY_FIELDS), what)


def _concluded(ran: tuple[Operation, ...], result: TxnResult) -> Answer:
    """JSON in pieces, so that a large value is copied for its base64 and for the whole, and no more often."""
    pieces = [f'{{"succeeded":{json_text(result.succeeded)},"revision":{result.revision},"results":['.encode()]
    for number, (operation, each) in enumerate(zip(ran, result.results, strict=True)):
        if number:
            pieces.append(b",")
        pieces += _outcome(operation, each)
    pieces.append(b"]}\n")
    return Answer(200, b"%bKvnode-Revision: %d\r\n" % (JSON_TYPE, result.revision), b"".join(pieces))


def _outcome(operation: Operation, result: Written | Deleted | Got) -> Iterable[bytes]:
    name, key = _NAMES[operation[0]], operation[1]
    if isinstance(result, Written):
        return (json_text({name: written_fields(key, result)}).encode(),)
    if isinstance(result, Deleted):
        return (json_text({name: {"deleted": result.deleted}}).encode(),)
    if result.version == 0:
        return (json_text({name: {"key": key, "exists": False}}).encode(),)
    marks = (
        f'"create_revision":{result.create_revision},"mod_revision":{result.mod_revision},"version":{result.version}'
    )
    begin = f'{{"{name}":{{"key":{json_string(key)},"exists":true,"value":'
    if result.packed is None:
        # A repetition under an Idempotency-Key, and the key has another value by now: this one is not kept.
        return (f"{begin}null,{marks}}}}}".encode(),)
    return f'{begin}"'.encode(), b64encode(content_of(result.packed)[1]), f'",{marks}}}}}'.encode()


def written_fields(key: str, result: Written) -> dict[str, Any]:
    """What a put answers."""
    fields = {"key": key, "revision": result.revision, "version": result.version, "created": result.created}
    return fields | {"lease": result.lease} if result.lease else fields
