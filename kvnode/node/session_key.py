"""One node's part in the cluster's session key: adopts it, proposes it while there is none, ends the time of the last.

A node never makes up a key of its own: one that leads proposes, and what is applied counts, for it too. The previous
key's time is kept by the leader's monotonic clock and begins again with each leader, so it never ends early.

What was adopted is also written down beside the journal. A node that restarts while the majority is away cannot know
which entries of its log are committed, and would otherwise have no key, though it had one a minute ago. What is
written counts until the node has applied an entry of the present term; from then on the replicated state does.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgpack

from kvnode.errors import Conflict
from kvnode.host import Host
from kvnode.node.lease_clock import Leader
from kvnode.state import session_keys
from kvnode.state.entries import encode_entry, encode_unawaited
from kvnode.state.results import KeyRotated, Result
from kvnode.state.session_keys import SessionKeys
from kvnode.state.store import KeyValueStore
from kvnode.storage.disk import Disk

log = logging.getLogger("kvnode.raft")

FILE: Final = "session-key"
LOOK_S: Final = 0.05
MISSING: Final = "Session key not resolved yet"

_CRC_BYTES: Final = 4


class SessionKey:
    """`given`: the keys that this node was configured with, the newest first. `look` is called every LOOK_S.

    `secret` is the cluster's, which what signs is derived with (`session.signing_key`); empty, on loopback alone, the
    session key itself signs.

    `keys`: the one that signs, then the one that is still accepted; empty while this node may sign nothing, and then
    `error` says why. `warning`: a sentence for the operator where the node goes on all the same.
    """

    def __init__(
        self, store: KeyValueStore, given: tuple[bytes, ...], secret: bytes = b"", host: Host | None = None
    ) -> None:
        self._store = store
        self._given = given
        self._secret = secret
        self._node: Leader | None = None
        self._clock: Callable[[], float] = float
        self._disk: Disk | None = None
        self._current = False
        self._host = host or Host()
        self._writing = self._host.lock()
        self._proposed_in: int | None = None
        self._kept: tuple[int, int, float] = (0, 0, 0.0)  # term, number of the key, since when
        self._timer: asyncio.TimerHandle | None = None
        self.known = session_keys.NONE
        self.keys: tuple[bytes, ...] = ()
        self.error: str | None = MISSING
        self.blocking: str | None = None
        self.warning: str | None = None

    def run(self, node: Leader, clock: Callable[[], float], disk: Disk) -> None:
        """Looks from now on, until `stop`."""
        self._node, self._clock, self._disk = node, clock, disk
        self._adopt(_written(disk), keep=False)
        self._look_again(asyncio.get_running_loop())

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(LOOK_S, self._look_again, loop)
        self.look()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        node, replicated = self._node, self._store.session
        assert node is not None
        self._current = self._current or node.is_current()
        if replicated != self.known and (self._current or replicated.number > self.known.number):
            self._adopt(replicated, keep=True)
        term = node.serving_term()
        if term is None:
            return
        if not replicated.number and self._proposed_in != term:
            self._proposed_in = term
            self._propose(self._next(0))
        elif replicated.previous is not None:
            self._keep_time(term, replicated)

    async def rotate(self, propose: Callable[[bytes], Awaitable[Result]], grace_s: int) -> SessionKeys:
        """Another key for the whole cluster: the one that this node was given and the cluster does not use yet, or a
        new one. `grace_s`: how long the one before it is accepted. Raises Conflict, and what `propose` raises.
        """
        known, given = self._store.session, self._given
        if not known.number:
            raise Conflict(f"{MISSING}: there is nothing to change from.")
        if known.previous is not None and grace_s:
            raise Conflict("The key before this one is still accepted: wait for the end of its time, or give none.")
        if given and known.fingerprint == session_keys.fingerprint_of(given[0]):
            raise Conflict(
                "The session key is the one that this node was given: give each node the new one first and this one "
                "second in KVNODE_SESSION_KEY, restart them one by one, then rotate."
            )
        if self.blocking is not None:
            raise Conflict(f"{self.blocking}.")
        result = await propose(self._next(grace_s))
        if not isinstance(result, KeyRotated) or not result.adopted:
            raise Conflict("Somebody else has just changed the session key: look, then try again.")
        return self._store.session

    def _next(self, grace_s: int) -> bytes:
        """The command after which another key signs: the configured one, whose bytes stay here, or a new one."""
        key = self._given[0] if self._given else self._host.token_bytes(session_keys.KEY_BYTES)
        shown = b"" if self._given else key
        return _packed(
            session_keys.command(self._store.session.number, shown, session_keys.fingerprint_of(key), grace_s)
        )

    def _adopt(self, known: SessionKeys, keep: bool) -> None:
        self.known = known
        self.keys = self._signing(known)
        self.error = None if self.keys else MISSING
        self.blocking, self.warning = None, None
        if not known.number:
            return
        used, mine = known.fingerprint.hex(), [session_keys.fingerprint_of(key).hex() for key in self._given]
        if not self.keys and mine:
            self.error = self.blocking = (
                f"This node was given the session key {mine[0]}, the cluster uses {used}: "
                "give all nodes the same KVNODE_SESSION_KEY and restart this one"
            )
        elif not self.keys:
            self.blocking = (
                f"The session key {used} was given to the cluster's nodes and not to this one: "
                "restart it with the same KVNODE_SESSION_KEY"
            )
        elif mine and used not in mine:
            self.warning = (
                f"This node was given the session key {mine[0]}, the cluster uses {used}, which it made: once all "
                "nodes have the given one, 'kvnode session-key rotate' changes to it"
            )
        log.log(logging.ERROR if self.blocking else logging.INFO, "%s.", self.blocking or f"The session key is {used}")
        if self.warning is not None:
            log.warning("%s.", self.warning)
        if keep:
            asyncio.get_running_loop().run_in_executor(None, self._write)

    def _signing(self, known: SessionKeys) -> tuple[bytes, ...]:
        keys = session_keys.usable(known, self._given)
        return keys if not self._secret else tuple(session_keys.signing_key(self._secret, key) for key in keys)

    def _write(self) -> None:
        """In a worker, one at a time. Where there is no room, nothing is lost but the memory of it."""
        disk, part = self._disk, f"{FILE}.part"
        assert disk is not None
        with self._writing:
            packed = _packed(self.known.packed)
            try:
                if part in disk.names():
                    disk.unlink(part)
                disk.append(part, [zlib.crc32(packed).to_bytes(_CRC_BYTES, "big"), packed])
                disk.sync(part)
                disk.rename(part, FILE)
            except OSError as error:
                log.warning("The session key could not be written down (%s); the log has it.", error.strerror)

    def _keep_time(self, term: int, known: SessionKeys) -> None:
        kept_term, number, since = self._kept
        now = self._clock()
        if (kept_term, number) != (term, known.number):
            self._kept = (term, known.number, now)
        elif now - since >= known.grace_s:
            self._kept = (term, known.number, now)  # should it come to nothing, it is proposed again after as long
            self._propose(_packed(session_keys.command(known.number, b"", b"", 0)))

    def _propose(self, command: bytes) -> None:
        assert self._node is not None
        self._node.propose(encode_entry([encode_unawaited(command)]))


def _written(disk: Disk) -> SessionKeys:
    """What this node had adopted before it was stopped."""
    try:
        data = disk.read(FILE)
        if zlib.crc32(data[_CRC_BYTES:]) == int.from_bytes(data[:_CRC_BYTES], "big"):
            return session_keys.read_session_keys(msgpack.unpackb(data[_CRC_BYTES:], max_ext_len=0))
    except FileNotFoundError:
        return session_keys.NONE
    except (OSError, ValueError, msgpack.exceptions.UnpackException):
        pass
    log.warning("The file %s cannot be read: the session key comes from the log.", disk.where(FILE))
    return session_keys.NONE


def _packed(fields: object) -> bytes:
    return bytes(msgpack.packb(fields, use_bin_type=True))
