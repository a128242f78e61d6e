"""Leases: a time to live that keys share. What is replicated of them; `node/lease_clock.py` is their clock.

A lease has an id, the ttl that it was granted with, and how often it was renewed. Ids that the store chooses rise by
one and are never chosen again. `renewals` is what decides between a renewal and an expiry that cross on their way: an
expiry names the count that its leader saw, and a renewal that stands before it in the log has raised it, on every node
alike.

A client of etcd's gateway may choose the id itself, also one that a lease had before, whose expiry may be on its way
still. So from the first such grant on all leases share one count: each grant and each renewal takes the next number
(`shared`), and no two leases of one id ever have the same one. It plays the part of a generation for each lease.

An expiry also names the generation of all leases: the revision at which a backup last took the place of everything, 0
where none did. Such a backup brings ids and renewals of before into being again, and an expiry of before that is
still on its way in the log would meet them. No two replacements have one revision, so it never does.

The keys of a lease are one ordered list for all leases: the id in 16 hexadecimal digits, then the key. It needs no
container for each lease, which the garbage collector would visit by the million, and gives a lease's keys in order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

import msgpack
from sortedcontainers import SortedList

from kvnode.state.changes import CHANGE_DELETE, CHANGE_EXPIRE
from kvnode.state.commands import GRANT, RENEW, REVOKE
from kvnode.state.items import go_on, in_order, prefix_end
from kvnode.state.key_order import forget
from kvnode.state.limits import COUNTER_MAX, LEASE_ID_MAX, LEASES_MAX, RENEWALS_SHARED_MIN, granted_fault
from kvnode.state.results import (
    Deleted,
    Granted,
    Invalid,
    LeaseExists,
    LeaseMissing,
    LeasesFull,
    Result,
    Revoked,
)
from kvnode.state.table import Table, TableView

CHUNK_LEASES: Final = 4_096
_ID_DIGITS: Final = 16
_LEASE: Final = struct.Struct("<QQ?")
_PRIVATE_AT: Final = 16  # of its bytes, which mark the lease of one key alone


class Lease(NamedTuple):
    """`ttl_s` as granted. One that a PUT made for its key alone (`private`) ends with its last key.

    `owner` is the id of the token that it was granted to, where that has prefixes, '' where not.
    """

    ttl_s: int
    renewals: int
    private: bool
    owner: str = ""


class LeasesView(NamedTuple):
    """All leases at one revision, immutable: safe to walk in any thread."""

    granted: TableView[int, bytes]
    last_id: int
    generation: int = 0
    shared: int = 0
    owners: bool = True  # whether what is written says whose each lease is

    def chunks(self, rest: Callable[[], None] = go_on) -> Iterator[bytes]:
        """`[id, ttl_s, renewals, private]` arrays in the order of their ids, CHUNK_LEASES to a chunk.

        Those that have an owner have a fifth field for it.
        """
        packer = msgpack.Packer(use_bin_type=True, autoreset=True)  # a packer belongs to one thread
        batch: list[bytes] = []
        for lease_id in in_order(self.granted, rest):
            lease = _unpacked(self.granted[lease_id])
            batch.append(packer.pack((lease_id, *(lease if lease.owner and self.owners else lease[:-1]))))
            if len(batch) == CHUNK_LEASES:
                yield packer.pack_array_header(len(batch)) + b"".join(batch)
                batch = []
        if batch:
            yield packer.pack_array_header(len(batch)) + b"".join(batch)


class Leases:
    """Lease id -> lease, and which keys hang on it.

    `touched`, where it is a list, gets the id of every lease that was granted, renewed or ended: its reader takes it.
    """

    __slots__ = (
        "_attached",
        "_counters",
        "_emptied",
        "_granted",
        "_ids",
        "before",
        "generation",
        "grantee",
        "last_id",
        "moved",
        "owned",
        "shared",
        "touched",
    )

    def __init__(self) -> None:
        self._granted: Table[int, bytes] = Table()
        self._ids: SortedList[int] = SortedList()
        self._attached: SortedList[str] = SortedList()
        self._emptied: list[int] = []  # private ones that a command took the last key of
        self.last_id = 0  # of those that the store chose
        self.generation = 0
        self.shared = 0  # the number that was counted last for all leases; 0: no id has been chosen by a client
        self.grantee = ""  # whose the leases are that are being granted; the store sets it for one command
        self.owned = False  # whether any lease that was loaded has an owner
        self.touched: list[int] | None = None
        # What a command has changed so far, for `take_back`; the store calls `keep` after each.
        self.before: dict[int, bytes | None] = {}  # leases as they were
        self._counters: tuple[int, int] | None = None  # `last_id` and `shared` before a command that has counted
        self.moved: list[str] = []  # entries of `_attached` that came or went

    def __len__(self) -> int:
        return len(self._granted)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._granted

    def cannot_grant(self, count: int, revision: int, *, chosen: bool = False) -> LeasesFull | Invalid | None:
        """Why so many more leases cannot be; None where they can. `chosen`: a client chose their ids."""
        if len(self._granted) + count > LEASES_MAX:
            return LeasesFull(revision)
        # As many ids may be in use already, where clients chose them.
        over = self.last_id + count + (len(self._granted) if self.shared else 0) > COUNTER_MAX
        return Invalid(revision, "the last id of a lease is given") if over and not chosen else None

    def get(self, lease_id: int) -> Lease | None:
        found = self._granted.get(lease_id)
        return None if found is None else _unpacked(found)

    def ids(self, after: int, limit: int) -> list[int]:
        """Up to `limit` ids greater than `after`, in order. O(log n + limit)."""
        return list(islice(self._ids.irange(after, None, (False, True)), limit))

    def keys(self, lease_id: int, limit: int | None = None) -> list[str]:
        """The keys of a lease in byte order, the first `limit` of them."""
        first, behind = _span(lease_id)
        return [entry[_ID_DIGITS:] for entry in islice(self._attached.irange(first, behind, (True, False)), limit)]

    def key_count(self, lease_id: int) -> int:
        """O(log n)."""
        first, behind = _span(lease_id)
        return int(self._attached.bisect_left(behind)) - int(self._attached.bisect_left(first))

    def usable(self, lease_id: int, owner: str, prefixes: Sequence[str]) -> bool:
        """Whether a token with this id and these prefixes, none under another one, may use a lease that is there.

        All the lease's keys have to lie under them: who renews a lease keeps these, and who ends it deletes them. While
        it has none it is its owner's alone, or anybody's without one: else a stranger's key on it would keep its owner
        out. O(prefixes * log n).
        """
        count = self.key_count(lease_id)
        if not count:
            lease = self.get(lease_id)
            return lease is None or lease.owner in ("", owner)
        attached = self._attached
        for prefix in prefixes:
            first, behind = _span(lease_id)
            end = prefix_end(prefix)
            end = behind if end is None else first + end
            count -= int(attached.bisect_left(end)) - int(attached.bisect_left(first + prefix))
        return count == 0

    def unrenewed(self, expiry: list[list[int]], generation: int) -> list[int]:
        """Those of an expiry's leases that are there and were not renewed since (`commands.Expire`)."""
        over: dict[int, None] = {}
        if generation != self.generation:
            return []
        for lease_id, renewals in expiry:
            lease = self.get(lease_id)
            if lease is not None and lease.renewals == renewals:
                over[lease_id] = None
        return list(over)

    # --- changing, by the store alone --------------------------------------------------------------------

    def grant(self, ttl_s: int, *, private: bool, lease_id: int = 0) -> int:
        """A new lease; its id: `lease_id`, which is not in use, or the next that is not (0)."""
        self._count()
        if lease_id:
            self.shared = self.shared or RENEWALS_SHARED_MIN
        else:
            lease_id = self.last_id + 1
            while lease_id in self._granted:  # chosen by a client; each such id is passed once
                lease_id += 1
            self.last_id = lease_id
        owner = "" if private else self.grantee
        record = _packed(Lease(ttl_s, self._next(0) if self.shared else 0, private, owner))
        self.before.setdefault(lease_id, None)
        self._granted[lease_id] = record
        self._ids.add(lease_id)
        self._note(lease_id)
        return lease_id

    def renew(self, lease_id: int) -> Lease | None:
        """Counts one renewal; None where the lease is gone. At COUNTER_MAX, which no lease lives to see, none more."""
        found = self._granted.get(lease_id)
        if found is None:
            return None
        self._count()
        lease = _unpacked(found)
        lease = lease._replace(renewals=self._next(lease.renewals))
        self.before.setdefault(lease_id, found)
        self._granted[lease_id] = _packed(lease)
        self._note(lease_id)
        return lease

    def _next(self, renewals: int) -> int:
        """The number of a grant or a renewal of a lease that had `renewals`."""
        if not self.shared:
            return min(renewals + 1, COUNTER_MAX)
        self.shared = min(self.shared + 1, COUNTER_MAX)
        return self.shared

    def _count(self) -> None:
        if self._counters is None:
            self._counters = (self.last_id, self.shared)

    def attach(self, lease_id: int, key: str) -> None:
        self.moved.append(entry := attached_entry(lease_id, key))
        self._attached.add(entry)

    def detach(self, lease_id: int, key: str) -> None:
        """The key has left, or has another lease now."""
        self.detach_all([lease_id], [attached_entry(lease_id, key)])

    def detach_all(self, lease_ids: list[int], entries: list[str]) -> None:
        """As above, for many keys of any leases, by their entries."""
        # One command may take a hundred thousand keys with a lease each: neighbours go together.
        self.moved += entries
        forget(self._attached, entries)
        granted = self._granted
        for lease_id in dict.fromkeys(lease_ids):
            record = granted.get(lease_id)
            if record is not None and record[_PRIVATE_AT]:
                self._emptied.append(lease_id)

    def settle(self) -> None:
        """At the end of a command: ends the private ones that it left without a key; a transaction may hand one on."""
        if not self._emptied:
            return
        emptied, self._emptied = dict.fromkeys(self._emptied), []
        still = self._with_keys(emptied)
        ended: list[int] = []
        granted, before = self._granted, self.before
        for lease_id in emptied:
            if lease_id not in still and (found := granted.discard(lease_id)) is not None:
                before.setdefault(lease_id, found)
                ended.append(lease_id)
        if self.touched is not None:
            self.touched += ended
        forget(self._ids, ended)

    def _with_keys(self, leases: dict[int, None]) -> set[int]:
        """Those of the leases that have a key.

        Each is looked up, or all that lies between them is walked once, whichever is less: a deleted prefix empties
        leases by the hundred thousand, and leaves little between them.
        """
        attached = self._attached
        first, behind = _span(min(leases))[0], _span(max(leases))[1]
        between = attached.bisect_left(behind) - attached.bisect_left(first)
        if between > len(leases):
            return {lease_id for lease_id in leases if self.keys(lease_id, 1)}
        return {int(entry[:_ID_DIGITS], 16) for entry in attached.irange(first, behind, (True, False))}

    def end(self, lease_id: int) -> None:
        """Forgets a lease; nothing happens where it is gone. Its keys are detached one by one, as they leave."""
        found = self._granted.get(lease_id)
        if found is not None:
            self.before.setdefault(lease_id, found)
            del self._granted[lease_id]
            self._ids.remove(lease_id)
            self._note(lease_id)

    def keep(self) -> None:
        """A command is carried out: nothing of it is taken back any more."""
        self.before.clear()
        self.moved.clear()
        self._counters = None

    def take_back(self, attached: list[tuple[int, str]]) -> None:
        """Undoes what a command that raised had changed. `attached`: the keys that it wrote, as they are again, with
        their leases (0: none)."""
        for lease_id, record in self.before.items():
            self._ids.discard(lease_id)
            if record is None:
                self._granted.pop(lease_id, None)
            else:
                self._granted[lease_id] = record
                self._ids.add(lease_id)
        if self._counters is not None:
            self.last_id, self.shared = self._counters
        entries = [attached_entry(lease_id, key) for lease_id, key in attached if lease_id]
        for entry in dict.fromkeys((*self.moved, *entries)):
            self._attached.discard(entry)
        self._attached.update(entries)
        self._emptied.clear()

    def _note(self, lease_id: int) -> None:
        if self.touched is not None:
            self.touched.append(lease_id)

    # --- snapshots -----------------------------------------------------------------------------------------

    def release(self) -> None:
        """Gives up everything, in steps; as the store's."""
        self._attached.clear()
        self._ids.clear()
        self._granted.release()

    def view(self) -> LeasesView:
        """O(1). The keys of each lease are not in it: every item says which lease it has."""
        return LeasesView(self._granted.view(), self.last_id, self.generation, self.shared)

    def load(self, chunks: Iterator[list[Any]], count: int, last_id: int, shared: int) -> None:
        """Takes as many unpacked chunks of `LeasesView.chunks` as hold `count` leases. ValueError for bad ones."""
        if count > LEASES_MAX:
            raise ValueError(f"a snapshot holds {LEASES_MAX} leases at most")
        loaded, previous = 0, 0
        # Nothing may be taken from the source beyond the last lease: the items follow.
        while loaded < count and (chunk := next(chunks, None)) is not None:
            for fields in chunk:
                if (fault := granted_fault(fields, previous, last_id, shared)) is not None:
                    raise ValueError(f"the snapshot breaks a limit: {fault}")
                previous, *record = fields
                self._granted[previous] = _packed(Lease(*record))
                self.owned = self.owned or len(record) > 3
            loaded += len(chunk)
        if loaded != count:
            raise ValueError(f"the snapshot promises {count} leases and holds {loaded}")
        self._ids = SortedList(in_order(self._granted))
        self.last_id, self.shared = last_id, shared

    @property
    def newest(self) -> int:
        """The highest id of those that are there, 0 without any."""
        return int(self._ids[-1]) if self._ids else 0

    def append(self, records: list[list[Any]]) -> None:
        """For `staged_restore.py`: leases without a fault, above `newest`, as a snapshot holds them."""
        self._append([(record[0], _packed(Lease(*record[1:]))) for record in records])

    def _append(self, records: list[tuple[int, bytes]]) -> None:
        self._granted.update(records)
        self._ids.update([lease_id for lease_id, _ in records])

    def attach_all(self, attached: list[tuple[int, str]]) -> None:
        """For `staged_restore.py`: keys of leases that are there."""
        self._attached.update([attached_entry(lease_id, key) for lease_id, key in attached])

    def reattach(self, attached: list[tuple[int, str]]) -> None:
        """The keys of all leases, as the items of a snapshot name them. ValueError where a lease is not there."""
        if not all(lease_id in self._granted for lease_id, _ in attached):
            raise ValueError("an item of the snapshot has a lease that the snapshot does not hold")
        self._attached = SortedList(in_order(attached_entry(lease_id, key) for lease_id, key in attached))


class Holder(Protocol):
    """What the commands on leases need of the store."""

    revision: int
    level: int
    leases: Leases

    def delete_all(self, keys: list[str], kind: int = CHANGE_DELETE) -> Deleted: ...


def change_lease(store: Holder, kind: int, argument: Any, appended: int | None = None) -> Result:
    """Carries out a grant, renewal, revocation or expiry that has no fault. `appended`: the id of a grant, or the
    generation of an expiry, from feature level 1 on."""
    leases = store.leases
    if appended is not None and store.level < 1:
        return Invalid(store.revision, "unknown command")  # as the members say that know no such field
    if kind == GRANT:
        if appended and appended in leases:
            return LeaseExists(store.revision, appended)
        if (refusal := leases.cannot_grant(1, store.revision, chosen=bool(appended))) is not None:
            return refusal
        return Granted(leases.grant(argument, private=False, lease_id=appended or 0), argument)
    if kind == RENEW:
        renewed = leases.renew(argument)
        return LeaseMissing(store.revision, argument) if renewed is None else Granted(argument, renewed.ttl_s)
    if kind == REVOKE:
        if (lease := leases.get(argument)) is None:
            return LeaseMissing(store.revision, argument)
        deleted = store.delete_all(leases.keys(argument))
        leases.end(argument)
        return Revoked(argument, lease.ttl_s, deleted.deleted, store.revision)
    over = leases.unrenewed(argument, appended or 0)
    deleted = store.delete_all([key for lease_id in over for key in leases.keys(lease_id)], CHANGE_EXPIRE)
    for lease_id in over:
        leases.end(lease_id)
    return deleted


def _packed(lease: Lease) -> bytes:
    return _LEASE.pack(*lease[:3]) + lease.owner.encode()


def _unpacked(record: bytes) -> Lease:
    ttl_s, renewals, private = _LEASE.unpack_from(record)
    return Lease(ttl_s, renewals, private, record[_LEASE.size :].decode())


def attached_entry(lease_id: int, key: str) -> str:
    return f"{lease_id:016x}{key}"


def _span(lease_id: int) -> tuple[str, str]:
    return f"{lease_id:016x}", f"{lease_id + 1:016x}" if lease_id < LEASE_ID_MAX else "g"  # behind every digit
