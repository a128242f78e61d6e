"""The one door to PySyncObj: which core it must be, and the four module-level seams that are turned.

The stock core is not safe as a store of record; kvnode runs it unmodified behind `guard`, which was argued
against every line of exactly one release. So the release is pinned, and its source is checked when this
module is first imported: another core is a reason not to start, not a surprise to find later.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Final

import msgpack
import pysyncobj.syncobj as _syncobj
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.node import Node as _Node
from pysyncobj.transport import Transport

from kvnode.errors import StartupError
from kvnode.storage.journal import Journal

__all__ = ["FAIL_REASON", "Node", "SyncObj", "SyncObjConf", "Transport", "check_release"]

_RELEASE: Final = "0.3.17"
_FILES: Final = (
    "config.py", "fast_queue.py", "journal.py", "node.py", "serializer.py", "syncobj.py", "transport.py", "version.py",
)  # fmt: skip
_SHA256: Final = "01604ec1a366a40c342cfd6e85a9e82350187bc89573bac4ad2bf41785815d1a"


class Node(str, _Node):  # type: ignore[misc]  # the core is untyped
    """A member, by its name, in the core's sets and dicts.

    The stock one is hashed and compared in Python, some fifty times for each write; text is so in C, and a member can
    be looked up by its bare name.
    """

    __slots__ = ()

    def __init__(self, name: str) -> None:
        """Nothing but the name: the stock one's attributes have no use here."""

    id = property(str.__str__)


def check_release() -> None:
    """Raises StartupError unless the installed core is, byte for byte, the one that was reviewed."""
    digest = hashlib.sha256()
    folder = Path(_syncobj.__file__).parent
    for name in _FILES:
        digest.update((folder / name).read_bytes().replace(b"\r\n", b"\n"))
    if digest.hexdigest() != _SHA256:
        raise StartupError(
            f"The installed PySyncObj is not the reviewed release {_RELEASE}: "
            f"install it again with 'pip install --force-reinstall pysyncobj=={_RELEASE}'."
        )


class _Codec:
    """Stands in for pickle everywhere in the core: bounded msgpack, where only a `Node` is more than data.

    Membership commands and code versions are the only things that the core still encodes itself.
    """

    @staticmethod
    def dumps(value: Any, protocol: object = None) -> bytes:
        packed: bytes = msgpack.packb(value, default=_pack_node, use_bin_type=True, strict_types=True)
        return packed

    @staticmethod
    def loads(data: bytes) -> Any:
        return msgpack.unpackb(data, use_list=False, ext_hook=_unpack_node, strict_map_key=False)

    @staticmethod
    def to_bytes(data: bytes) -> bytes:
        return data


def _pack_node(value: object) -> Any:
    if isinstance(value, tuple):
        return list(value)  # `strict_types` is for a Node, which is text as well, and takes tuples for strangers too
    if isinstance(value, Node):
        return msgpack.ExtType(1, str(value.id).encode())
    raise TypeError(f"{type(value).__name__} has no place in the log")


def _unpack_node(code: int, data: bytes) -> Any:
    if code != 1:
        raise ValueError(f"unknown extension {code}")
    return Node(data.decode())


def _create_journal(journal: Any) -> Any:
    return journal if isinstance(journal, Journal) else _stock_create_journal(journal)


class _NoSockets:
    """The poller of a core that has no sockets."""

    @staticmethod
    def poll(timeout_s: float) -> None:
        """Returns at once. The real one makes a system call in each tick, without the interpreter lock meanwhile."""


_stock_create_journal = _syncobj.createJournal

# Seam 1: nothing from the network or the disk is ever unpickled, also not inside the core.
_syncobj.pickle = _Codec
# Seam 2: `SyncObjConf(journalFile=…)` takes the project's own journal as an object.
_syncobj.createJournal = _create_journal
# Seam 3: no pipe to wake the core's poller. The loop that proposes also ticks, and the 65,536th proposal
# between two ticks would raise on the full pipe although it had been queued (R19).
_syncobj.PIPE_NOTIFIER_ENABLED = False
_syncobj.createPoller = lambda kind: _NoSockets
# Seam 4: one clock. The core reads CLOCK_MONOTONIC_RAW, which drifts from `time.monotonic` by seconds a day, and
# a deadline that one clock sets would be judged by the other.
_syncobj.monotonicTime = time.monotonic
