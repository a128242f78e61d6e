"""Access tokens of the HTTP API: what is replicated of them, and never the secret itself.

A token is `kvnode_ID_SECRET`. The cluster keeps the SHA-256 of the secret. A plain hash is enough, because the secret
is 256 random bits and no password: nobody finds it by guessing, and a slow hash would slow down the node alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from kvnode.state.commands import TOKEN_CREATE
from kvnode.state.limits import GENERATION_BYTES, TOKENS_MAX, token_fault
from kvnode.state.results import (
    Invalid,
    Result,
    TokenChanged,
    TokenMissing,
    TokensFull,
)

NAMES_LEVEL: Final = 1  # the feature level from which no two tokens share a name
NAME_TAKEN: Final = "there is a token with this name"
FIRST: Final = "first"  # the id of the token that a node was started with, which is in no log
ANONYMOUS: Final = ""  # what stands for it where a node asks for no token


class Token(NamedTuple):
    """`role` is one of `commands.ROLES`, `digest` the SHA-256 of the secret, `created_ms` is since 1970."""

    id: str
    name: str
    role: str
    digest: bytes
    created_ms: int

    def generation(self, key: bytes, cluster_id: str) -> bytes:
        """What no other token has, also not one with the same id: what its sessions are bound to.

        Nor the same token in a cluster that was made of a backup or by `recover`, with the same key: what the former
        cluster had ended since is not known there. Keyed, so that a cookie is no help in guessing a first token that
        somebody made up.
        """
        numbers = b"%b%d %b" % (self.digest, self.created_ms, cluster_id.encode())
        fields = b"%b %b %b" % (numbers, self.role.encode(), self.id.encode())
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

    def may_name(self, token_id: str) -> bool:
        """Whether sessions may be of a token with this id: one that is here, or one that no log has."""
        return token_id in self._tokens or token_id in (FIRST, ANONYMOUS)

    def view(self) -> tuple[Token, ...]:
        """All of them now, TOKENS_MAX at most; immutable."""
        return tuple(self._tokens.values())

    def change(self, kind: int, argument: Any, revision: int, level: int) -> Result:
        """Carries out a creation or a revocation that has no fault. `level`: the cluster's feature level."""
        tokens = self._tokens
        if kind == TOKEN_CREATE:
            if argument[0] in tokens:
                return Invalid(revision, "there is a token with this id")
            if len(tokens) >= TOKENS_MAX:
                return TokensFull(revision)
            # Nodes of feature level 0 take a name twice: all have to do the same.
            if level >= NAMES_LEVEL and any(token.name == argument[1] for token in tokens.values()):
                return Invalid(revision, NAME_TAKEN)
            tokens[argument[0]] = Token(*argument)
            return TokenChanged(revision, argument[0])
        return TokenMissing(revision) if tokens.pop(argument, None) is None else TokenChanged(revision, argument)

    @classmethod
    def load(cls, entries: Any) -> Tokens:
        """From what a snapshot holds of them. ValueError for anything else."""
        if type(entries) is not list or len(entries) > TOKENS_MAX:
            raise ValueError(f"a snapshot holds a list of {TOKENS_MAX} tokens at most")
        for entry in entries:
            if (fault := token_fault(entry)) is not None:
                raise ValueError(f"the snapshot breaks a limit: {fault}")
        tokens = cls(Token(*entry) for entry in entries)
        if len(tokens) != len(entries):
            raise ValueError("the snapshot holds a token twice")
        return tokens
