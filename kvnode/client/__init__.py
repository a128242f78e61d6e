"""The Python client: `Client` for asyncio, `SyncClient` for everything else. docs/CLIENT.md shows them at work."""

from kvnode import errors
from kvnode.client.access import Access, Unreachable, Untrusted
from kvnode.client.client import Client
from kvnode.client.leases import Lease, Leases
from kvnode.client.lock import Lock, LockLost
from kvnode.client.misuse import WrongState, WrongType, WrongValue
from kvnode.client.records import Batched, Found, Item, Listed, Page, Put, Txn
from kvnode.client.sync import SyncClient, SyncLock
from kvnode.client.transactions import delete, delete_prefix, get, put, when
from kvnode.client.watching import Event

__all__ = [
    "Access",
    "Batched",
    "Client",
    "Event",
    "Found",
    "Item",
    "Lease",
    "Leases",
    "Listed",
    "Lock",
    "LockLost",
    "Page",
    "Put",
    "SyncClient",
    "SyncLock",
    "Txn",
    "Unreachable",
    "Untrusted",
    "WrongState",
    "WrongType",
    "WrongValue",
    "delete",
    "delete_prefix",
    "errors",
    "get",
    "put",
    "when",
]
