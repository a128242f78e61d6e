"""What a token may: its role, and the prefixes that its keys lie under. The one place that decides.

Two questions are asked before anything is read or proposed, so that a refusal says nothing about what is there:

1. May this role use this route? Each route says which role it takes (`route.Endpoint`), and `door.Door` asks before the
   handler runs. A route that says nothing takes an administrator's token.
2. Does every key that the request names lie under one of the token's prefixes? Only the handler knows which keys these
   are: once it has understood the request it asks here for each of them, with `check_key`, `check_prefix` or
   `check_range`, and with `check_write` where one route takes reads and writes. For leases there are `check_lease` and
   `on_leases`: whose keys are on a lease is the state machine's to decide (`state/leases.py`). A route whose handler
   does not ask, and which does not name keys either, takes no token with prefixes (`Endpoint.scoped`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, cast

from kvnode.errors import Forbidden, Unavailable
from kvnode.state.commands import encode_within
from kvnode.state.items import prefix_end
from kvnode.state.store import KeyValueStore
from kvnode.state.tokens import Token

if TYPE_CHECKING:
    from aiohttp import web

    from kvnode.http.connection import Connection

# What roles may, each what those before it may: a route is for those whose number is its own or above.
READ: Final = 0
WRITE: Final = 1
ADMIN: Final = 2
ROLE_NAMES: Final = ("read", "write", "admin")
_ROLES: Final = {"read": READ, "write": WRITE, "admin": ADMIN, "read_only": READ, "full": ADMIN}
SHOWN_CHARS_MAX: Final = 256  # of a key that a client named; a refusal repeats no more of it
_OWN_KEY_BYTES: Final = 24  # as hexadecimal digits it is an idempotency key


class OutsidePrefixes(Forbidden):
    """A key of the request lies under none of the token's prefixes. The sentence names it, and nothing else."""


class Rights:
    """Of one token. `prefixes` () means any key; `owner` is the token's id where it has prefixes, '' where not."""

    __slots__ = ("owner", "prefixes", "role")

    def __init__(self, role: int, prefixes: tuple[str, ...], owner: str) -> None:
        self.role = role
        self.prefixes = prefixes
        self.owner = owner

    def check_key(self, key: str) -> None:
        """Raises OutsidePrefixes."""
        if self.prefixes and not key.startswith(self.prefixes):
            raise OutsidePrefixes(f"This token has no right to the key {_shown(key)}.")

    def check_keys(self, keys: Iterable[str]) -> None:
        """As `check_key`, for each."""
        if self.prefixes:
            for key in keys:
                self.check_key(key)

    def check_prefix(self, prefix: str) -> None:
        """For all keys that begin with `prefix`, '' for all that there are. Raises OutsidePrefixes."""
        if self.prefixes and not prefix.startswith(self.prefixes):
            raise OutsidePrefixes(_no_right_to_prefix(prefix))

    def covers(self, prefix: str) -> bool:
        """Whether all keys that begin with `prefix` are the token's to see."""
        return not self.prefixes or prefix.startswith(self.prefixes)

    def check_range(self, start: str, end: str | None) -> None:
        """For all keys with start <= key < end (None: no end), which have to lie under one prefix.

        Raises OutsidePrefixes.
        """
        for prefix in self.prefixes:
            behind = prefix_end(prefix)
            if start >= prefix and (behind is None or (end is not None and end <= behind)):
                return
        if self.prefixes:
            whole = end is not None and prefix_end(start) == end
            if whole or (not start and end is None):
                raise OutsidePrefixes(_no_right_to_prefix(start))
            until = "on" if end is None else f"to {_shown(end)}"
            raise OutsidePrefixes(f"This token has no right to the keys from {_shown(start)} {until}.")

    def check_write(self) -> None:
        """For a route that takes reads and writes, where the request is a write. Raises Forbidden."""
        if self.role < WRITE:
            raise Forbidden("This token may only read, and this takes one with the role write.")

    def check_lease(self, store: KeyValueStore, lease: int) -> None:
        """For a lease that a request names, 0 for none, as far as this node knows it. Raises OutsidePrefixes."""
        if self.prefixes and lease and not store.leases.usable(lease, self.owner, self.prefixes):
            raise lease_outside(lease)

    def on_leases(self, store: KeyValueStore, command: bytes, leases: tuple[int, ...] = ()) -> bytes:
        """An encoded command that grants a lease, or names some: with the rights that it is carried out under.

        What this node knows of a lease may be old, so it is the state machine that decides. Raises Unavailable where
        some member does not know such a command.
        """
        if not self.prefixes:
            return command
        if store.level < 1:
            raise Unavailable("Some member of this cluster is of a version that knows no prefixes: update it first.")
        return encode_within(self.owner, self.prefixes, leases, command)

    def idempotency_key(self, key: str) -> str:
        """What a request's Idempotency-Key is remembered by.

        A token with prefixes has names of its own, so that no outcome of another's request is ever the answer to its
        own, and it takes up no name that another one might use.
        """
        if not self.owner:
            return key
        return blake2b(f"{self.owner}/{key}".encode(), digest_size=_OWN_KEY_BYTES).hexdigest()

    def may(self) -> list[str]:
        """The roles whose requests it may make, for people and programs."""
        return list(ROLE_NAMES[: self.role + 1])


# The rights of an open node's clients, and of the probe port: no credentials are needed.
ALL: Final = Rights(ADMIN, (), "")


def of_token(token: Token) -> Rights:
    prefixes = token.prefixes
    return Rights(_ROLES[token.role], prefixes, token.id if prefixes else "")


def rights_of(request: web.BaseRequest) -> Rights:
    """The rights of the request that is being answered."""
    credential = cast("Connection", request.protocol).credential
    return ALL if credential is None else credential[1].rights


def lease_outside(lease: int) -> OutsidePrefixes:
    return OutsidePrefixes(f"This token has no right to the lease {lease}.")


def _no_right_to_prefix(prefix: str) -> str:
    if prefix:
        return f"This token has no right to the keys that begin with {_shown(prefix)}."
    return "This token has no right to all keys: name a prefix that it has a right to."


def _shown(text: str) -> str:
    return json.dumps(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…", ensure_ascii=False)
