"""What the store tells of each change to a key: one small tuple, noted while a command is applied.

    (kind, key, revision, packed, previous)

`kind` is CHANGE_PUT, CHANGE_DELETE or CHANGE_EXPIRE (CHANGE_REPLACED is for the hub, not for watchers). `revision`
is the store's after the command: all changes of one command share it, and stand next to each other in the order in
which they were made. `packed` is the item as the store keeps it, the very bytes object and no copy (`items.unpacked`
reads it); b"" for a key that went away. `previous` is the item before it, just so; b"" for a key that was not there.

A plain tuple on purpose, not a class: the cyclic garbage collector stops looking at a tuple that holds only text,
bytes and numbers, so that a history of a hundred thousand of them costs its passes nothing.
"""

from __future__ import annotations

from typing import Final

Change = tuple[int, str, int, bytes, bytes]

CHANGE_PUT: Final = 1
CHANGE_DELETE: Final = 2
CHANGE_EXPIRE: Final = 3  # a delete by the key's lease, not by a client

CHANGE_REPLACED: Final = 4  # of no key: all contents were exchanged, and nothing before counts any more

KIND_NAMES: Final = {CHANGE_PUT: "put", CHANGE_DELETE: "delete", CHANGE_EXPIRE: "expire"}
