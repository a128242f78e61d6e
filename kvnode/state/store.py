"""KeyValueStore: the replicated state machine. Pure, total, deterministic: no clock, no randomness, no I/O.

The same commands in the same order give the same items, answers and snapshot bytes on every node. So a bad command
raises nothing (it answers `Invalid` and changes nothing), and nothing depends on hash order: Python salts `hash(str)`
per process, so every iteration that leaves this file is sorted.

`apply` is total even if this program has a bug: an exception rolls the command back, every node answers the same
`Invalid`, and `failures` keeps the exception for the log. A later version must fix such a bug behind a feature level,
or it would answer the same log differently.

Two structures hold one truth. `_items` is a `Table`, so that a snapshot takes it in O(1) and walks it in another
thread while `apply` continues; each item is kept packed, which takes half the memory and is nothing to the garbage
collector (`items.py`). `_keys` keeps the keys in order for range reads. Each item says which lease it has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from sortedcontainers import SortedList

from kvnode.state.admin_commands import change_beside
from kvnode.state.changes import (
    CHANGE_DELETE,
    CHANGE_PUT,
    CHANGE_REPLACED,
    Change,
)
from kvnode.state.commands import (
    DELETE,
    DELETE_PREFIX,
    ETCD_DELETE,
    ETCD_TXN,
    FIELDS,
    PUT,
    PUT_FIELDS,
    RENEW,
    TXN,
    WITHIN,
    command_fault,
    expectation_holds,
    unknown_to_0_1,
)
from kvnode.state.ended_sessions import EndedSessions
from kvnode.state.etcd import OverBudget, delete_range, transact_etcd
from kvnode.state.etcd_requests import transaction_fault as etcd_fault
from kvnode.state.idempotency import Outcome, Outcomes, fingerprint
from kvnode.state.items import (
    LEASED,
    LEASED_AT,
    LEASED_BIT,
    MARKS,
    Batch,
    Item,
    in_order,
    lease_of,
    packed,
    prefix_end,
    unpacked,
)
from kvnode.state.key_order import forget
from kvnode.state.leases import Leases, attached_entry
from kvnode.state.limits import COUNTER_MAX
from kvnode.state.results import (
    Deleted,
    IdempotencyMismatch,
    Invalid,
    LeaseForeign,
    LeaseMissing,
    LeasesFull,
    OutcomesFull,
    ReadsTooLarge,
    Refused,
    Result,
    TxnResult,
    Written,
)
from kvnode.state.session_keys import NONE
from kvnode.state.staged_restore import Staging
from kvnode.state.table import Table
from kvnode.state.tokens import Tokens
from kvnode.state.transactions import (
    answers,
    read_again,
    transact,
    transaction_fault,
)
from kvnode.state.view import Contents, StoreView, read_contents

FAILURES_KEPT: Final = 16
FAILED: Final = "the state machine has failed at it, and changed nothing; the log of each node has the details"


class KeyValueStore:
    """The state machine. `apply` is its only way to change, apart from `restore` and `adopt`."""

    __slots__ = (
        "_before",
        "_items",
        "_keys",
        "changes",
        "ended_sessions",
        "failures",
        "former",
        "leases",
        "level",
        "outcomes",
        "replacement",
        "revision",
        "session",
        "staging",
        "tokens",
    )

    def __init__(self) -> None:
        self.revision = 0
        self.changes: list[Change] | None = None  # noted by `apply` (`changes.py`); `Hub.publish` takes and empties it
        self.failures: list[Exception] = []  # of `apply`, up to FAILURES_KEPT; their reader empties the list
        # The argument of a coming REPLACE, and the store (or the fault) that a worker decoded from it. Only saves time.
        self.replacement: tuple[bytes, KeyValueStore | str] | None = None
        self.former: KeyValueStore | None = None  # the contents that a REPLACE replaced, until a worker releases them
        self._before: dict[str, bytes | None] = {}  # keys that the command has changed so far, as they were
        self.outcomes = Outcomes()
        self.leases = Leases()  # read-only outside this class
        self.session = NONE  # read-only outside this class
        self.tokens = Tokens()  # read-only outside this class
        self.ended_sessions = EndedSessions()
        self.level = 0  # the feature level that the cluster has reached (`commands.FEATURE_LEVEL`)
        self.staging: Staging | None = None  # a backup that is being restored, as far as it has come
        self._items: Table[str, bytes] = Table()
        self._keys: SortedList[str] = SortedList()

    def __len__(self) -> int:
        return len(self._items)

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> Item | None:
        """The key's item, or None where it does not exist."""
        found = self._items.get(key)
        return None if found is None else unpacked(found)

    def packed(self, key: str) -> bytes | None:
        """The key's item as it is kept (`items.py`): the very bytes, no copy."""
        return self._items.get(key)

    def walk(self, start: str, end: str | None) -> Iterator[tuple[str, Item]]:
        """The items with start <= key < end (None: no end), in byte order, each copied when it is its turn.

        Not to be gone on with after a change. To go on after a page, start at its last key + "\\0": nothing sorts
        between the two.
        """
        for key, item in self.walk_packed(start, end):
            yield key, unpacked(item)

    def walk_packed(self, start: str, end: str | None, *, reverse: bool = False) -> Iterator[tuple[str, bytes]]:
        """The same walk, of the items as they are kept: nothing is copied. `reverse`: from the end to the start."""
        if end is None or start < end:
            for key in self._keys.irange(start, end, (True, False), reverse):
                yield key, self._items[key]

    def between(self, start: str, end: str | None) -> list[str]:
        """The keys of that walk, at once."""
        return list(self._keys.irange(start, end, (True, False))) if end is None or start < end else []

    def range(self, start: str, end: str | None, limit: int) -> list[tuple[str, Item]]:
        """Up to `limit` items of that walk. O(log n + page)."""
        return list(islice(self.walk(start, end), max(0, limit)))

    def count(self, start: str, end: str | None) -> int:
        """How many keys there are with start <= key < end. O(log n)."""
        keys = self._keys
        return max(0, (len(keys) if end is None else int(keys.bisect_left(end))) - int(keys.bisect_left(start)))

    @property
    def mark(self) -> int:
        """A number that nodes with the same state agree about: revision, keys, leases and what is beside them."""
        leases = (self.leases.last_id << 16) + (len(self.leases) << 40) + (self.leases.generation << 8)
        leases += self.leases.shared << 24
        beside = (len(self.tokens) << 52) + (len(self.ended_sessions) << 56) + (self.level << 60)
        beside += self.outcomes.clock_s << 24
        if self.staging is not None:
            beside += ((self.staging.pieces + 1) << 36) + len(self.staging.items)
        return (self.revision << 32) + len(self._items) + leases + beside

    def view(self) -> StoreView:
        """An immutable view of the present state. O(1): later changes copy the parts that they touch."""
        return StoreView(
            self.revision,
            self._items.view(),
            self.outcomes.view(),
            self.leases.view(),
            self.tokens.view(),
            self.session,
            self.level,
            self.ended_sessions.view(),
            None if self.staging is None else self.staging.view(),
        )

    # --- changing --------------------------------------------------------------------------------

    def apply(self, command: Any) -> Result:
        """Applies one decoded command (an array of `commands.py`) and answers it. Never raises but MemoryError.

        An invalid command is invalid at any time, so its idempotency key need not be remembered. Out of memory, a
        node must stop: another node may have enough and apply the command, so an answer from here would diverge.
        """
        revision = self.revision
        try:
            fault = command_fault(command)
            if fault is not None:
                return Invalid(revision, fault)
            if revision >= COUNTER_MAX:
                return Invalid(revision, "the store has reached its last revision")
            kind = command[0]
            if kind == PUT and len(command) == PUT_FIELDS:
                result: Result = self._put(command)
                if not self._before:
                    return result
            else:
                result = self._apply_in_steps(command, kind)
        except OverBudget:
            self._take_back(revision)
            return ReadsTooLarge(revision)
        except MemoryError:
            self._take_back(revision)
            raise
        except Exception as error:
            self._take_back(revision)
            if len(self.failures) < FAILURES_KEPT:
                self.failures.append(error)
            return Invalid(revision, FAILED)
        if self._before or self.leases.before:
            self._settle()
        return result

    def _apply_in_steps(self, command: list[Any], kind: int) -> Result:
        """A command without a fault whose changes are noted, so that they can be taken back."""
        if kind == WITHIN:
            return self._within(command[1], command[2])
        if kind == TXN and (fault := transaction_fault(command)) is not None:
            return Invalid(self.revision, fault)
        if kind == ETCD_TXN and (fault := etcd_fault(command)) is not None:
            return Invalid(self.revision, fault)
        if self.level < 1 and unknown_to_0_1(command):
            return Invalid(self.revision, "a lease's id is one that some member does not know")
        fields = FIELDS[kind]
        if len(command) == fields:
            return self._carry_out(command)
        idempotency_key, request = command[fields], command[:fields] + command[fields + 1 :]
        if idempotency_key is None:
            return self._carry_out(request)
        if type(idempotency_key) is str:
            return self._carry_out_once(request, idempotency_key, 0)
        if self.level < 1:
            return Invalid(self.revision, "unknown command")  # as the members say that know no such field
        return self._carry_out_once(request, *idempotency_key)

    def _within(self, token: list[Any], command: Any) -> Result:
        """Applies a command of a token with prefixes, unless the token may not use one of the leases that are named."""
        fault = "unknown command" if self.level < 1 else command_fault(command)
        if fault is not None or command[0] == WITHIN:
            return Invalid(self.revision, fault or "unknown command")
        owner, prefixes, leases = token
        if not self._is_repeated(command):
            for lease in leases:
                if not self.leases.usable(lease, owner, prefixes):
                    return LeaseForeign(self.revision, lease)
        self.leases.grantee = owner
        try:
            return self._apply_in_steps(command, command[0])
        finally:
            self.leases.grantee = ""

    def _is_repeated(self, command: list[Any]) -> bool:
        """Whether its idempotency key is known. Its outcome is decided then, even if the lease has changed hands."""
        key = command[FIELDS[command[0]] :][:1]
        named = key[0] if key and type(key[0]) is list else key
        return bool(named) and type(named[0]) is str and self.outcomes.get(named[0]) is not None

    def _settle(self) -> None:
        """The command is carried out: nothing of it is taken back any more."""
        self._before.clear()
        self.leases.keep()

    def _take_back(self, revision: int) -> None:
        """Undoes what a command that raised had changed, in the work that it took."""
        items, leases = self._items, self.leases
        for key, before in self._before.items():
            if before is None:
                items.pop(key, None)
            else:
                items[key] = before
        items.count_again()
        attached: list[tuple[int, str]] = []
        for key in self._before:
            self._keys.discard(key)
            found = items.get(key)
            if found is not None:
                self._keys.add(key)
                attached.append((lease_of(found), key))
        leases.take_back(attached)
        self.revision = revision
        while self.changes and self.changes[-1][2] > revision:
            self.changes.pop()
        self._settle()

    def _carry_out_once(self, request: list[Any], idempotency_key: str, source: int) -> Result:
        """The first outcome under the key, however often the request comes (`idempotency.py`)."""
        mark = fingerprint(request)
        first = self.outcomes.get(idempotency_key)
        if first is None:
            room = self.outcomes.has_room(source)
            if not room and request[0] != RENEW:  # to renew a lease once more does what the first renewal did
                return OutcomesFull(self.revision)
            if request[0] == PUT:  # which notes nothing where its outcome is not kept
                self._before[request[1]] = self._items.get(request[1])
            result = self._carry_out(request)
            if room and type(result) not in (LeasesFull, ReadsTooLarge, Invalid):
                self.outcomes.remember(idempotency_key, Outcome(mark, result), source)
            return result
        if first.fingerprint != mark or not answers(request, first.result):
            return IdempotencyMismatch(self.revision)
        return read_again(self, request, first.result) if type(first.result) is TxnResult else first.result

    def _carry_out(self, request: list[Any]) -> Result:
        kind = request[0]
        if kind == PUT:
            return self._put(request)
        if kind == DELETE:
            return self._delete(request)
        if kind == TXN:
            return transact(self, request)
        if kind == DELETE_PREFIX:
            return self.delete_all(self.with_prefix(request[1]))
        if kind in (ETCD_TXN, ETCD_DELETE):
            if self.level < 1:
                return Invalid(self.revision, "unknown command")  # as the members say that know no such command
            return transact_etcd(self, request) if kind == ETCD_TXN else delete_range(self, request[1])
        return change_beside(self, kind, request)

    def _put(self, request: list[Any]) -> Result:
        if len(request) > PUT_FIELDS:
            return self._put_leased(request)
        _, key, value, content_type, expect = request
        shard = self._items.shard(key)
        before = shard.get(key)
        if before is None:
            create_revision = mod_revision = version = leased = 0
        else:
            create_revision, mod_revision, version, leased = MARKS.unpack_from(before)
        if expect is not None and not expectation_holds(expect, mod_revision):
            return Refused(self.revision, mod_revision)
        revision = self.revision + 1
        if leased & LEASED:
            self.revision = revision
            return self._settled(self.write(key, value, content_type, revision))
        version += 1
        item = packed(value, content_type, create_revision or revision, revision, version)
        # Nothing raises from here on, so that nothing has to be taken back.
        self.revision = revision
        shard[key] = item
        if version == 1:
            self._items.added()
            self._keys.add(key)
        if self.changes is not None:
            self.changes.append((CHANGE_PUT, key, revision, item, before or b""))
        return Written(revision, version)

    def _put_leased(self, request: list[Any]) -> Result:
        _, key, value, content_type, expect, lease, ttl_s = request
        mod_revision = self._mod_revision(key)
        if expect is not None and not expectation_holds(expect, mod_revision):
            return Refused(self.revision, mod_revision)
        if (refusal := self.cannot_lease([[lease, ttl_s]])) is not None:
            return refusal
        self.revision += 1
        return self._settled(self.write(key, value, content_type, self.revision, lease, ttl_s))

    def _settled(self, written: Written) -> Written:
        self.leases.settle()
        return written

    def _delete(self, request: list[Any]) -> Result:
        _, key, expect = request
        if expect is not None:
            mod_revision = self._mod_revision(key)
            if not expectation_holds(expect, mod_revision):
                return Refused(self.revision, mod_revision)
        return self.delete_all([key] if key in self._items else [])

    def delete_all(self, keys: list[str], kind: int = CHANGE_DELETE) -> Deleted:
        if keys:
            self.revision += 1
            self.remove(keys, self.revision, kind)
            self.leases.settle()
        return Deleted(len(keys), self.revision)

    # --- keys, for this file, `transactions.py` and `etcd.py` alone ----------------------------------------------

    def cannot_lease(self, wanted: list[list[Any]]) -> LeaseMissing | LeasesFull | Invalid | None:
        """Why puts with these pairs of (lease, ttl) cannot be; nothing is changed before all of them can."""
        for lease, _ in wanted:
            if lease and lease not in self.leases:
                return LeaseMissing(self.revision, lease)
        granting = sum(1 for _, ttl_s in wanted if ttl_s)
        return self.leases.cannot_grant(granting, self.revision) if granting else None

    def write(
        self, key: str, value: bytes, content_type: str, revision: int, lease: int = 0, ttl_s: int = 0
    ) -> Written:
        before = self._items.get(key)
        self._before.setdefault(key, before)
        if before is None:
            create_revision, version, had_lease = revision, 1, 0
            self._keys.add(key)
        else:
            create_revision, _, version, name_bytes = MARKS.unpack_from(before)
            version, had_lease = version + 1, lease_of(before) if name_bytes & LEASED else 0
        if ttl_s:
            lease = self.leases.grant(ttl_s, private=True)
        if lease != had_lease:
            if lease:
                self.leases.attach(lease, key)
            if had_lease:
                self.leases.detach(had_lease, key)
        self._items[key] = item = packed(value, content_type, create_revision, revision, version, lease)
        if self.changes is not None:
            self.changes.append((CHANGE_PUT, key, revision, item, before or b""))
        return Written(revision, version, lease)

    def remove(self, keys: list[str], revision: int, kind: int) -> None:
        """Removes keys that are there."""
        # A million keys can go in one command, and every node stands still for it: no call that can be spared.
        shard_of, changes, before = self._items.shard, self.changes, self._before
        # Two flat lists: a list for each lease would be a hundred thousand containers for the garbage collector.
        leased: list[int] = []
        entries: list[str] = []
        for key in keys:
            before[key] = packed = shard_of(key).pop(key)
            if packed[LEASED_AT] & LEASED_BIT:
                leased.append(lease_id := lease_of(packed))
                entries.append(attached_entry(lease_id, key))
            if changes is not None:
                changes.append((kind, key, revision, b"", packed))
        self._items.removed(len(keys))
        forget(self._keys, keys)
        if leased:
            self.leases.detach_all(leased, entries)

    def with_prefix(self, prefix: str) -> list[str]:
        return list(self._keys.irange(prefix, prefix_end(prefix), (True, False)))

    def _mod_revision(self, key: str) -> int:
        """0 where the key does not exist. Never copies the value."""
        found = self._items.get(key)
        return 0 if found is None else int(MARKS.unpack_from(found)[1])

    # --- snapshots -------------------------------------------------------------------------------

    def restore(
        self,
        revision: int,
        items: Iterable[tuple[str, Item]],
        outcomes: Outcomes | None = None,
        leases: Leases | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        """Replaces everything. O(n log n), fastest for items in order. ValueError for a lease that is not there."""
        self._restore(revision, (([key], [packed(*item)]) for key, item in items), outcomes, leases, tokens)

    def _restore(
        self,
        revision: int,
        batches: Iterable[Batch],
        outcomes: Outcomes | None,
        leases: Leases | None,
        tokens: Tokens | None,
    ) -> None:
        table: Table[str, bytes] = Table()
        all_keys: list[str] = []
        attached: list[tuple[int, str]] = []
        for keys, items in batches:
            table.fill(keys, items)
            all_keys += keys
            attached += [
                (lease_of(item), key) for key, item in zip(keys, items, strict=True) if item[LEASED_AT] & LEASED_BIT
            ]
        table.count_again()
        if len(all_keys) != len(table):
            raise ValueError("a key comes twice")
        self._items = table
        self._keys = SortedList(in_order(all_keys))
        self.outcomes = Outcomes() if outcomes is None else outcomes
        self.leases = Leases() if leases is None else leases
        self.leases.reattach(attached)
        self.tokens = Tokens() if tokens is None else tokens
        self.revision = revision

    def adopt(self, other: KeyValueStore) -> None:
        """Exchanges contents with another store in O(1). What is noted of changes stays: its readers are the owner's.

        For a snapshot that was loaded in a worker thread: the loop swaps it in without a pause, references to this
        store stay valid, and a worker can free the old contents (`release`).
        """
        for name in set(self.__slots__) - {"changes", "failures", "replacement", "former"}:
            mine, others = getattr(self, name), getattr(other, name)
            setattr(self, name, others)
            setattr(other, name, mine)

    def stage(self, staging: Staging | None) -> None:
        """This one in the place of the one before it."""
        former = self.staged()
        self.staging, self.former = staging, former

    def staged(self) -> KeyValueStore | None:
        """What is staged, as a store of its keys and leases; not to be used beside it."""
        if self.staging is None:
            return None
        store, staging = KeyValueStore(), self.staging
        store._items, store._keys, store.leases = staging.items, staging.keys, staging.leases
        return store

    def replace(self, other: KeyValueStore, revision: int, last_lease_id: int) -> None:
        """Takes over the keys and leases of another store, which gets those that were here, to be released."""
        other.leases.last_id = last_lease_id
        # Before level 1 some member may know of no generation, and would end what the others keep.
        other.leases.generation = revision if self.level else 0
        other.leases.shared = max(self.leases.shared, other.leases.shared)
        for name in ("_items", "_keys", "leases"):
            mine, others = getattr(self, name), getattr(other, name)
            setattr(self, name, others)
            setattr(other, name, mine)
        self.revision = revision
        if self.changes is not None:
            self.changes[:] = [(CHANGE_REPLACED, "", revision, b"", b"")]

    def release(self) -> None:
        """Gives up everything, in steps that let other threads run in between; the store must not be used again."""
        self._keys.clear()  # only the order: the table still has each key
        self._items.release()
        self.leases.release()

    @classmethod
    def load(cls, chunks: Iterable[bytes]) -> KeyValueStore:
        """A new store from `StoreView.chunks()`, in any thread. ValueError says what is wrong with them."""
        return cls._loaded(read_contents(chunks))

    @classmethod
    def load_snapshot(cls, chunks: Iterable[bytes]) -> KeyValueStore:
        """The same from `StoreView.snapshot_chunks()`."""
        return cls._loaded(read_contents(chunks, own=True))

    @classmethod
    def _loaded(cls, contents: Contents) -> KeyValueStore:
        store = cls()
        try:
            store._restore(contents.revision, contents.items, contents.outcomes, contents.leases, contents.tokens)
            store.session, store.level = contents.session, contents.level
            store.ended_sessions = contents.ended_sessions
            store.staging = contents.staged()
        except struct.error:  # the limits let nothing through that does not fit
            raise ValueError("an item of the snapshot has a number out of bounds") from None
        if len(store) != contents.item_count:
            raise ValueError(f"the snapshot promises {contents.item_count} items and holds {len(store)}")
        return store
