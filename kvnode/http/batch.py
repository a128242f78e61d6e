"""Many operations in one request: POST /v1/batch. Each has an outcome of its own; `txn.py` is all or nothing.

    {"operations": [{"put": {"key": "a", "text": "1"}}, {"delete": {"key": "b"}}]}

A batch that is wrong somewhere changes nothing and is refused whole. One that says `"independent": true` is how a
client sends calls together that know nothing of each other: what is wrong with an operation is that operation's
outcome, there are gets as well, and each write may carry an `idempotency_key` of its own. It is remembered then as it
would be by itself under that Idempotency-Key: sent again as a PUT or DELETE, it has the outcome that it had here.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

from aiohttp import web

from kvnode.errors import BadRequest, KeyNotFound, KvnodeError, TooLarge
from kvnode.http.answer import JSON_TYPE, Answer, json_string
from kvnode.http.budget import SMALL_BYTES, Budgets
from kvnode.http.consistency import stale
from kvnode.http.credentials import check_still_admitted
from kvnode.http.document import checked_object, content_type_in, key_in, leasing_in, read_object, value_in
from kvnode.http.etags import refuse_conditions
from kvnode.http.group import Group
from kvnode.http.leases import remaining_s
from kvnode.http.rights import WRITE, Rights, rights_of
from kvnode.http.route import Endpoint, Methods
from kvnode.http.txn import KEY_FIELDS, PUT_FIELDS, single
from kvnode.http.writing import idempotency_key, named, not_written, source_of
from kvnode.metrics.recent import Traffic
from kvnode.state.commands import Delete, IdempotencyKey, encode_put
from kvnode.state.items import content_of, unpacked
from kvnode.state.results import Deleted, Result, Written

OPERATIONS_MAX: Final = 1_000
BODY_BYTES_MAX: Final = 8 * 1_048_576  # parsing it holds the event loop for some 50 ms
READ_BYTES_MAX: Final = 1_048_576  # of the values that a batch reads, all together

_BODY: Final = frozenset(("operations", "independent"))
_WRITES: Final = frozenset(("put", "delete"))
# Of an independent batch.
_KINDS: Final = _WRITES | {"get"}
_PUT: Final = PUT_FIELDS | {"idempotency_key"}
_DELETE: Final = KEY_FIELDS | {"idempotency_key"}
_GET: Final = KEY_FIELDS | {"consistency"}

Outcome = Result | KvnodeError | None  # None: not known yet


def routes(group: Group, budgets: Budgets, traffic: Traffic | None = None) -> dict[str, Methods]:
    batches = Batches(group, budgets, Traffic() if traffic is None else traffic)
    return {"/v1/batch": {"POST": Endpoint(batches.carry_out, right=WRITE, scoped=True)}}


class Batches:
    """The handler."""

    __slots__ = ("_budgets", "_group", "_traffic")

    def __init__(self, group: Group, budgets: Budgets, traffic: Traffic) -> None:
        self._group = group
        self._budgets = budgets
        self._traffic = traffic

    async def carry_out(self, request: web.BaseRequest, rest: str, query: str) -> Answer:
        group = self._group
        rights = rights_of(request)
        refuse_conditions(request)
        batch = Batch(group, rights, idempotency_key(request, group, batch=True), source_of(request, group))
        document = await read_object(request, BODY_BYTES_MAX, _BODY)
        batch.take(document)
        del document  # what follows waits, and it holds each value once more
        writes = batch.writes
        self._traffic.wrote_each([batch.keys[number] for number in writes])
        written = group.propose_each(batch.commands) if writes else None
        batch.commands = []
        if batch.reads or batch.stale:
            for number in (*batch.reads, *batch.stale):
                self._traffic.left -= 1
                if self._traffic.left <= 0:
                    self._traffic.read(batch.keys[number])
            await self._read(request, batch)
        if written is not None:
            for number, result in zip(writes, await written, strict=True):
                batch.outcomes[number] = result
        shown = [batch.shown[number] if number in batch.shown else _outcome(key, batch.outcomes[number])
                 for number, key in enumerate(batch.keys)]  # fmt: skip
        return Answer(200, JSON_TYPE, f'{{"results":[{",".join(shown)}]}}\n'.encode())

    async def _read(self, request: web.BaseRequest, batch: Batch) -> None:
        """One barrier for all linearizable reads. What fails is their outcome; the writes have theirs."""
        group = self._group
        try:
            if batch.stale:
                stale(group)  # a node that is still loading has no state to read from
                self._show(batch, batch.stale)
            if batch.reads:
                await group.read_barrier()
                check_still_admitted(request)  # the right may have ended meanwhile
                self._show(batch, batch.reads)
        except KvnodeError as error:
            for number in (*batch.stale, *batch.reads):
                if number not in batch.shown:
                    batch.outcomes[number] = error

    def _show(self, batch: Batch, numbers: Sequence[int]) -> None:
        store = self._group.store
        for number in numbers:
            key = batch.keys[number]
            packed = store.packed(key)
            if packed is None:
                batch.outcomes[number] = KeyNotFound("The key does not exist.")
                continue
            batch.read_bytes += len(packed)
            if batch.read_bytes > READ_BYTES_MAX:
                batch.outcomes[number] = TooLarge(
                    f"The values that the batch reads are more than {READ_BYTES_MAX} bytes: read this key by itself."
                )
                continue
            if batch.read_bytes > SMALL_BYTES:
                self._budgets.answers.require(batch.read_bytes * 4 // 3)
            batch.shown[number] = self._item(key, packed)

    def _item(self, key: str, packed: bytes) -> str:
        item = unpacked(packed)
        fields = (
            f'{{"key":{json_string(key)},"value":"{b64encode(content_of(packed)[1]).decode()}",'
            f'"create_revision":{item.create_revision},"mod_revision":{item.mod_revision},"version":{item.version},'
            f'"revision":{self._group.store.revision}'
        )
        if item.content_type:
            fields += f',"content_type":{json_string(item.content_type)}'
        if item.lease:
            fields += f',"lease":{item.lease},"ttl":{remaining_s(self._group, item.lease)}'
        return fields + "}"


class Batch:
    """What one request asks for. All of it is read before any of it is proposed, and nothing else is kept of it while
    it waits: it would have each value three times.
    """

    __slots__ = (
        "_group", "_idempotency", "_rights", "_source", "commands", "independent", "keys", "outcomes", "read_bytes",
        "reads", "shown", "stale", "writes",
    )  # fmt: skip

    def __init__(self, group: Group, rights: Rights, idempotency: IdempotencyKey, source: int) -> None:
        self._group = group
        self._rights = rights
        self._idempotency = idempotency  # of the batch
        self._source = source  # of writes with a key of their own
        self.independent = False
        self.keys: list[str] = []
        self.outcomes: list[Outcome] = []
        self.commands: list[bytes] = []
        self.writes: list[int] = []  # numbers of the operations whose commands these are
        self.reads: list[int] = []
        self.stale: list[int] = []
        self.shown: dict[int, str] = {}
        self.read_bytes = 0

    def take(self, document: dict[str, Any]) -> None:
        """Raises BadRequest, TooLarge or Forbidden for what is wrong somewhere; see above for what is independent."""
        self.independent = independent = document.get("independent", False)
        if type(independent) is not bool:
            raise BadRequest('"independent" is true or false.')
        operations = document.get("operations")
        if type(operations) is not list or not 1 <= len(operations) <= OPERATIONS_MAX:
            raise BadRequest(f'"operations" is a list of 1 to {OPERATIONS_MAX} puts and deletes.')
        for number, entry in enumerate(operations):
            self.keys.append("")
            self.outcomes.append(None)
            try:
                self._take(number, entry)
            except KvnodeError as error:
                if not independent:
                    raise
                self.outcomes[number] = error

    def _take(self, number: int, entry: Any) -> None:
        what = f"operations[{number}]"
        independent = self.independent
        kind, content = single(entry, what, _KINDS if independent else _WRITES)
        what = f"{what}.{kind}"
        if kind == "get":
            self.keys[number] = key = key_in(checked_object(content, what, _GET), what)
            self._rights.check_key(key)
            wanted = content.get("consistency", "linearizable")
            if wanted not in ("linearizable", "stale"):
                raise BadRequest(f"{what} has a \"consistency\" that is neither 'linearizable' nor 'stale'.")
            (self.stale if wanted == "stale" else self.reads).append(number)
            return
        rights = self._rights
        if kind == "delete":
            self.keys[number] = key = key_in(
                checked_object(content, what, _DELETE if independent else KEY_FIELDS), what
            )
            rights.check_key(key)
            command = Delete(key, None, self._key_of(number, content, what)).encode()
        else:
            put = checked_object(content, what, _PUT if independent else PUT_FIELDS)
            self.keys[number] = key = key_in(put, what)
            rights.check_key(key)
            lease, ttl_s = leasing_in(put, what)
            idempotency = self._key_of(number, put, what)
            command = encode_put(key, value_in(put, what), content_type_in(put, what), None, idempotency, lease, ttl_s)
            if lease:
                rights.check_lease(self._group.store, lease)
                command = rights.on_leases(self._group.store, command, (lease,))
        self.commands.append(command)
        self.writes.append(number)

    def _key_of(self, number: int, content: dict[str, Any], what: str) -> IdempotencyKey:
        """Its own key; or, under the batch's, one that no client would send, for it alone."""
        own = content.get("idempotency_key")
        if own is not None:
            if type(own) is not str:
                raise BadRequest(f'{what} has an "idempotency_key" that is not a text.')
            return named(own, self._rights, self._source)
        idempotency = self._idempotency
        if idempotency is None:
            return None
        if isinstance(idempotency, tuple):
            return _digest(idempotency[0], number), idempotency[1]
        return _digest(idempotency, number)


def _digest(idempotency: str, number: int) -> str:
    return blake2b(f"{number}/{idempotency}".encode(), digest_size=24).hexdigest()


def _outcome(key: str, result: Outcome) -> str:
    """As JSON, by hand: it is made for each of many."""
    if type(result) is Written:
        revision, version, lease = result
        created = "true" if version == 1 else "false"
        end = f',"lease":{lease}}}' if lease else "}"
        return f'{{"key":{json_string(key)},"revision":{revision},"version":{version},"created":{created}{end}'
    if type(result) is Deleted and result.deleted:
        return f'{{"key":{json_string(key)},"deleted":{result.deleted},"revision":{result.revision}}}'
    if isinstance(result, KvnodeError):
        error: Exception = result
    elif type(result) is Deleted:
        error = KeyNotFound("The key does not exist.")
    else:
        assert result is not None
        error = not_written(result)
    if not isinstance(error, KvnodeError):
        raise error
    return (
        f'{{"key":{json_string(key)},"error":{json_string(error.code)},"message":{json_string(error.message)},'
        f'"outcome":"{error.outcome}"}}'
    )
