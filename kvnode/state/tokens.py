"""Access tokens of the HTTP API: what is replicated of them, and never the secret itself.

A token is `kvnode_ID_SECRET`. The cluster keeps the SHA-256 of the secret. A plain hash is enough, because the secret
is 256 random bits and no password: it cannot be guessed, and a slow hash would only slow down the node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgpack

from kvnode.state.commands import TOKEN_CREATE
from kvnode.state.limits import (
    GENERATION_BYTES,
    ROLES_0_1,
    TOKEN_MARK_BYTES,
    TOKENS_MAX,
    scoped_token_fault,
    token_fault,
)
from kvnode.state.results import (
    Invalid,
    Result,
    TokenChanged,
    TokenMissing,
    TokensFull,
)

NAMES_LEVEL: Final = 1  # the feature level from which no two tokens share a name
NAME_TAKEN: Final = "there is a token with this name"
TOKEN_CHANGED: Final = "the token was changed meanwhile"
FIRST: Final = "first"  # the id of the token that a node was started with, which is in no log
ANONYMOUS: Final = ""  # what stands for it where a node asks for no token


class Token(NamedTuple):
    """Who may do what: `role` is one of `limits.ROLES`, `prefixes` are what its keys begin with, () for any key.

    `digest` is the SHA-256 of the secret, `former` that of the secret before it, which counts until `former_until_ms`
    (b"" and 0: there is none). Times are in milliseconds since 1970. There is no clock in the state machine: each node
    judges by its own whether `expires_ms` (0: never) and `former_until_ms` are over (`http/credentials.py`).
    """

    id: str
    name: str
    role: str
    digest: bytes
    created_ms: int
    prefixes: tuple[str, ...] = ()
    expires_ms: int = 0
    former: bytes = b""
    former_until_ms: int = 0

    @property
    def scoped(self) -> bool:
        """Whether it has what version 0.1 does not know."""
        return bool(self.prefixes or self.expires_ms or self.former) or self.role not in ROLES_0_1

    @property
    def packed(self) -> tuple[Any, ...]:
        """As a snapshot holds it: five fields where they say all, as nodes of version 0.1 read them."""
        return tuple(self) if self.scoped else tuple(self[:5])

    @property
    def mark(self) -> bytes:
        """What tells this state of the token from all others, for PutToken."""
        return hashlib.blake2b(msgpack.packb(self), digest_size=TOKEN_MARK_BYTES, person=b"kvnode token").digest()

    def generation(self, key: bytes, cluster_id: str, digest: bytes = b"") -> bytes:
        """A mark that binds sessions to exactly this token; another token with the same id has another mark.

        It differs as well for another secret (`digest`: that of the former one), role or prefixes, and in a cluster
        that was made from a backup or by `recover` with the same key, which does not know the sessions that the
        former cluster ended. Keyed, so that a cookie does not help to guess a first token that a person chose.
        """
        numbers = b"%b%d %b" % (digest or self.digest, self.created_ms, cluster_id.encode())
        fields = b"%b %b %b" % (numbers, self.role.encode(), self.id.encode())
        if self.prefixes:
            fields += bytes(msgpack.packb(self.prefixes))
        return hashlib.blake2b(fields, digest_size=GENERATION_BYTES, key=key, person=b"kvnode token").digest()


class Tokens:
    """Id -> token, in the order in which they were made."""

    __slots__ = ("_tokens",)

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self._tokens = {token.id: token for token in tokens}

    def __len__(self) -> int:
        return len(self._tokens)

    def get(self, token_id: str) -> Token | None:
        return self._tokens.get(token_id)

    def named(self, name: str) -> Token | None:
        """The first of this name; before feature level 1 there may be others. O(tokens)."""
        return next((token for token in self._tokens.values() if token.name == name), None)

    @property
    def scoped(self) -> bool:
        """Whether any has what version 0.1 does not know."""
        return any(token.scoped for token in self._tokens.values())

    def may_name(self, token_id: str) -> bool:
        """Whether sessions may be of a token with this id: one that is here, or one that no log has."""
        return token_id in self._tokens or token_id in (FIRST, ANONYMOUS)

    def view(self) -> tuple[Token, ...]:
        """All of them now, TOKENS_MAX at most; immutable."""
        return tuple(self._tokens.values())

    def change(self, kind: int, argument: Any, revision: int, level: int) -> Result:
        """Carries out a creation or a revocation that has no fault. `level`: the cluster's feature level."""
        if kind == TOKEN_CREATE:
            # Nodes of feature level 0 take a name twice: all have to do the same.
            return self._add(Token(*argument), revision, level >= NAMES_LEVEL)
        return TokenMissing(revision) if self._tokens.pop(argument, None) is None else TokenChanged(revision, argument)

    def put(self, before: bytes, fields: list[Any], revision: int) -> Result:
        """Carries out a TOKEN_PUT without a fault: a new token, or another state of one that is as `before` says."""
        token = _of(fields)
        if not before:
            return self._add(token, revision, True)
        found = self._tokens.get(token.id)
        if found is None:
            return TokenMissing(revision)
        if found.mark != before:
            return Invalid(revision, TOKEN_CHANGED)
        if token.name != found.name and self.named(token.name) is not None:
            return Invalid(revision, NAME_TAKEN)
        self._tokens[token.id] = token
        return TokenChanged(revision, token.id)

    def _add(self, token: Token, revision: int, one_name: bool) -> Result:
        if token.id in self._tokens:
            return Invalid(revision, "there is a token with this id")
        if len(self._tokens) >= TOKENS_MAX:
            return TokensFull(revision)
        if one_name and self.named(token.name) is not None:
            return Invalid(revision, NAME_TAKEN)
        self._tokens[token.id] = token
        return TokenChanged(revision, token.id)

    @classmethod
    def load(cls, entries: Any) -> Tokens:
        """From what a snapshot holds of them. ValueError for anything else."""
        if type(entries) is not list or len(entries) > TOKENS_MAX:
            raise ValueError(f"a snapshot holds a list of {TOKENS_MAX} tokens at most")
        tokens = cls(map(_read, entries))
        if len(tokens) != len(entries):
            raise ValueError("the snapshot holds a token twice")
        return tokens


def _read(entry: Any) -> Token:
    """A token as `Token.packed` gives it, as a list. ValueError."""
    if (fault := packed_fault(entry)) is not None:
        raise ValueError(f"the snapshot breaks a limit: {fault}")
    return _of(entry)


def _of(fields: list[Any]) -> Token:
    """Of five or nine fields without a fault."""
    token_id, name, role, digest, created_ms, *more = fields
    prefixes, *times = more or ((), 0, b"", 0)
    return Token(token_id, name, role, digest, created_ms, tuple(prefixes), *times)


def packed_fault(entry: Any) -> str | None:
    """What is wrong with a token of a snapshot. Only what a node writes counts: else equal tokens had two spellings."""
    if type(entry) is not list or len(entry) == 5:
        return token_fault(entry)
    if (fault := scoped_token_fault(entry)) is not None:
        return fault
    return None if _of(entry).scoped else "a token that version 0.1 knows has five fields"
