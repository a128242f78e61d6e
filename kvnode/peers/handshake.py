"""How two nodes make sure of each other before a single Raft message passes.

    dialer    "KVN1" | frame [version, cluster id, from, to, nonce]
    acceptor  frame [true, nonce]                                     or  frame [false, reason]
    dialer    frame [http url, instance, index, level, fresh, directory, proof]
    acceptor  frame [true, http url, instance, level, fresh, directory, proof]   or  frame [false, reason]
                                                          or  frame [false, reason, code, members, proof]

The dialer proves itself first: a stranger that connects to a node gets nothing that is made with the secret, so it
has nothing to guess secrets against. (One that listens on the way, or is dialled in a peer's place, gets a proof to
try secrets on: hence secrets of 128 random bits.)

All keys come from the cluster's secret by HKDF (RFC 5869, SHA-256), salted with the first two frames: both nonces, both
names, the cluster's id. Each use has a key of its own, so that nothing said in one role is of use in another: a proof
of the dialer, one of the acceptor, a refusal, the frames that follow. A proof is an HMAC-SHA256 over all frames so far
and the fields beside it: it shows the secret is known without showing the secret, and it cannot be used again on
another connection, by the other side, or with other fields.

A refusal counts for more than its sentence (`PeerRefused.code`, `PeerRefused.told`) only where it is proved.

`index` is that of the latest configuration that the dialer knows to be committed. An acceptor that knows a later one,
or as late a one, in which the dialer is no member refuses it and hands it that one, proved: so a node that was
removed while it was away learns of it. One that knows more than the acceptor is let in, and tells it.

`level` is the highest feature level that a node knows (`commands.FEATURE_LEVEL`). A node that knows less than the
cluster has reached is refused by those that know what the cluster has reached.

`fresh`: the node's data directory was empty when it was started as one of a first cluster, and it has not taken part in
one since. What it has promised before, if it ever did, is forgotten (`promises.py`). `directory` is that directory's
id, drawn when it was first used, by which those that have met the node notice that it has another one.

Frames are at most `FRAME_BYTES_MAX` here; a longer length ends the connection. The stream that follows is the dialer's
alone: each node sends on the connection that it dialled, so that frames of one node never overtake each other. Each of
those frames carries a tag (`frames.Sealer`); the acceptor sends nothing more, and any byte from its side ends the
connection.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgpack

from kvnode.logs.rate_limited import printable
from kvnode.state.commands import FEATURE_LEVEL

MAGIC: Final = b"KVN1"
FRAME_BYTES_MAX: Final = 8_192
DEADLINE_S: Final = 3.0
VERSION_0_1: Final = 2  # `handshake_0_1.py`
_VERSION: Final = 4  # 3 was never used
NONCE_BYTES: Final = 16
# The fields of the dialer's second frame: HTTP URL, instance, index, level, fresh, directory's id, proof.
_PROOF: Final = (str, bytes, int, int, bool, bytes, bytes)
# Those of the acceptor's second: true, HTTP URL, instance, level, fresh, directory's id, proof.
_WELCOME: Final = (bool, str, bytes, int, bool, bytes, bytes)

# Why a node is refused, where it should know which of the reasons it is.
OTHER_CLUSTER: Final = "other_cluster"
STRANGER: Final = "stranger"
DUPLICATE: Final = "duplicate"
TOO_OLD: Final = "too_old"
FORGETFUL: Final = "forgetful"

NO_SECRET: Final = "it does not know this cluster's secret: give all nodes the same one"
NO_PROTOCOL: Final = "it does not speak this protocol"
OTHER_VERSION: Final = "it speaks another version of the protocol: upgrade the older node"  # as kvnode 0.1 says it too


class PeerRefused(Exception):
    """The other side is not one to talk to, or says that about us. The text is one sentence for the log.

    `told` is the packed configuration that the other side refers to, or empty; where it came from there, it is proved.
    `code` is one of those above, or empty; where it came from the other side, it is proved.
    `heard`: the other side says that of this node; otherwise this node says it of the other side. `level`: the feature
    level that the other side knows, where it has proved that and is refused for what it has forgotten.
    `kind` is what log lines are counted by, without a word of the other side's: the reason, where that has none.
    """

    def __init__(self, reason: str, told: bytes = b"", code: str = "", kind: str = "", heard: bool = False) -> None:
        super().__init__(reason)
        self.heard = heard
        self.level = 0
        self.kind = kind or reason
        self.told = told
        self.code = STRANGER if told else code


class Circle(Protocol):
    """Whom a node knows to be members (`membership.Roster`)."""

    def __contains__(self, node_id: object, /) -> bool: ...
    @property
    def index(self) -> int: ...
    @property
    def packed(self) -> bytes: ...
    def told(self, packed: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """What a node says about itself. `instance` is drawn anew each time the process starts.

    `level` is the highest feature level that it knows, and `cluster_level` the one that the cluster has reached, as far
    as it knows. `peers_0_1`: nodes of kvnode 0.1 are talked to as well (`handshake_0_1.py`).
    """

    node_id: str
    cluster_id: bytes
    http_url: str
    instance: bytes
    secret: bytes = field(repr=False)
    level: int = FEATURE_LEVEL
    cluster_level: Callable[[], int] = int
    fresh: Callable[[], bool] = bool
    directory_id: bytes = b""
    meet: Callable[[str, bytes, bool], None] = lambda node_id, directory_id, fresh: None  # may raise PeerRefused
    peers_0_1: bool = False
    token_bytes: Callable[[int], bytes] = os.urandom


@dataclass(frozen=True, slots=True)
class Peer:
    """What was learned and proved about the other side. `level`: the highest feature level that it knows.

    `frame_key` is for the tags of the dialer's frames (`frames.Sealer`); empty: they have none, as in kvnode 0.1.
    """

    node_id: str
    http_url: str
    instance: bytes
    level: int = 0
    frame_key: bytes = field(default=b"", repr=False)


class Dialer:
    """The dialling side: `hello()` first, then `challenged(body)` gives the proof, then `welcomed(body)` the peer."""

    def __init__(self, me: LocalPeer, peer_id: str, circle: Circle) -> None:
        self._me = me
        self._peer_id = peer_id
        self._index = circle.index
        self._said = b""
        self._keys: _Keys | None = None

    def hello(self) -> bytes:
        me = self._me
        fields = [_VERSION, me.cluster_id, me.node_id, self._peer_id, me.token_bytes(NONCE_BYTES)]
        self._said = framed(packed(fields))
        return MAGIC + self._said

    def challenged(self, body: bytes) -> bytes:
        answer = unpacked(body)
        raise_if_refused(answer, self._me.cluster_level())
        if not has_types(answer, bool, bytes) or not answer[0] or len(answer[1]) != NONCE_BYTES:
            raise PeerRefused("it answers in an unknown protocol")
        self._said += framed(body)
        self._keys = _Keys(self._me.secret, self._said)
        fields = [self._me.http_url, self._me.instance, self._index, self._me.level]
        fields += [self._me.fresh(), self._me.directory_id]
        proof = framed(packed([*fields, self._keys.proof(b"dialer", self._said, fields)]))
        self._said += proof
        return proof

    def welcomed(self, body: bytes) -> Peer:
        answer, keys = unpacked(body), self._keys
        if keys is None:
            raise PeerRefused("it answers in an unknown protocol")
        if has_types(answer, bool, str, str, bytes, bytes) and not answer[0]:
            *fields, proof = answer
            genuine = hmac.compare_digest(proof, keys.proof(b"refusal", self._said, fields))
            _, reason, code, told = fields
            if genuine:
                raise PeerRefused(f"it refused: {printable(reason, 200)}", told, code, heard=True)
            raise PeerRefused(f"it refused: {printable(reason)}", kind="it refused")
        raise_if_refused(answer, self._me.cluster_level())
        if not has_types(answer, *_WELCOME):
            raise PeerRefused("it answers in an unknown protocol")
        *fields, proof = answer
        if not hmac.compare_digest(proof, keys.proof(b"acceptor", self._said, fields)):
            raise PeerRefused(NO_SECRET)
        _, http_url, instance, level, fresh, directory_id = fields
        raise_if_too_old(level, self._me.cluster_level())
        try:
            self._me.meet(self._peer_id, directory_id, fresh)
        except PeerRefused as refused:
            refused.level = level
            raise
        return Peer(self._peer_id, http_url, instance, level, keys.frame_key(self._said))


class Acceptor:
    """The accepting side: `greeted(body)` gives the challenge, `proved(body)` the peer, `welcome()` the last frame.

    Where one of them raises PeerRefused, `refusal` is what the other side is sent.
    """

    def __init__(self, me: LocalPeer, circle: Circle) -> None:
        self._me = me
        self._circle = circle
        self._said = b""
        self._cluster_id = b""
        self._node_id = ""
        self._keys: _Keys | None = None
        self._proved = False

    def greeted(self, body: bytes) -> bytes:
        hello = unpacked(body)
        if hello[:1] == [VERSION_0_1]:
            raise PeerRefused(
                "it is of version 0.1, and nothing protects what that sends: " + _upgrade(self._me.cluster_level()),
                kind="it is of version 0.1",
            )
        if not hello or hello[0] != _VERSION or not has_types(hello, int, bytes, str, str, bytes):
            raise PeerRefused(OTHER_VERSION)
        _, self._cluster_id, self._node_id, to, nonce = hello
        me = self._me
        if len(nonce) != NONCE_BYTES:
            raise PeerRefused(NO_PROTOCOL)
        if self._cluster_id == me.cluster_id:
            if to != me.node_id:
                raise PeerRefused(
                    f"it looks for node {printable(to)!r}, this is {me.node_id!r}: check the addresses in --peers",
                    kind="it looks for another node",
                )
            if self._node_id == me.node_id:
                raise PeerRefused(f"node {self._node_id!r} is this one: give each node its own --node-id")
        challenge = framed(packed([True, me.token_bytes(NONCE_BYTES)]))
        self._said = framed(body) + challenge
        self._keys = _Keys(me.secret, self._said)
        return challenge

    def proved(self, body: bytes) -> Peer:
        answer, keys, me = unpacked(body), self._keys, self._me
        if keys is None or not has_types(answer, *_PROOF):
            raise PeerRefused(NO_PROTOCOL)
        *fields, proof = answer
        self._proved = hmac.compare_digest(proof, keys.proof(b"dialer", self._said, fields))
        if self._proved:
            self._said += framed(body)
        if self._cluster_id != me.cluster_id:  # not before the proof: what is refused unproved makes no node unfit
            raise PeerRefused(
                f"it belongs to cluster {self._cluster_id.hex()[:12]}, this node to {me.cluster_id.hex()[:12]}: with "
                "an empty --data-dir and --join it becomes a member of this one; --peers (or --cluster-id), the same "
                "for all, are for the first members of a cluster that was not recovered or restored",
                code=OTHER_CLUSTER,
                kind="it belongs to another cluster",
            )
        if not self._proved:
            raise PeerRefused(NO_SECRET)
        http_url, instance, index, level, fresh, directory_id = fields
        raise_if_too_old(level, me.cluster_level())
        if self._node_id not in self._circle and index <= self._circle.index:
            raise PeerRefused(f"node {self._node_id!r} is not a member of this cluster", self._circle.packed)
        me.meet(self._node_id, directory_id, fresh)
        return Peer(self._node_id, http_url, instance, level, keys.frame_key(self._said))

    def welcome(self) -> bytes:
        """The frame after which the other side sends what it has to say. Only where `proved` has given the peer."""
        assert self._keys is not None
        fields = [True, self._me.http_url, self._me.instance, self._me.level]
        fields += [self._me.fresh(), self._me.directory_id]
        return framed(packed([*fields, self._keys.proof(b"acceptor", self._said, fields)]))

    def refusal(self, refused: PeerRefused) -> bytes:
        """The frame that says why: proved to a side that has proved itself, and bare to any other."""
        if not self._proved or self._keys is None:
            return framed(packed([False, str(refused)]))
        fields = [False, str(refused), refused.code, refused.told]
        return framed(packed([*fields, self._keys.proof(b"refusal", self._said, fields)]))


class _Keys:
    """The keys of one handshake: HKDF (RFC 5869) from the secret, salted with the hello and the challenge."""

    def __init__(self, secret: bytes, said: bytes) -> None:
        self._extracted = hmac.digest(hashlib.sha256(said).digest(), secret, "sha256")

    def key(self, use: bytes) -> bytes:
        """HKDF-Expand to the length of one hash, which takes one block."""
        return hmac.digest(self._extracted, b"kvnode peers 4 " + use + b"\x01", "sha256")

    def frame_key(self, said: bytes) -> bytes:
        """`said`: all up to the dialer's proof, so that the key is that of what both have proved."""
        return self.key(b"frames of the dialer" + hashlib.sha256(said).digest())

    def proof(self, role: bytes, said: bytes, fields: list[Any]) -> bytes:
        return hmac.digest(self.key(role), said + framed(packed(fields)), "sha256")


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def packed(fields: list[Any]) -> bytes:
    return bytes(msgpack.packb(fields, use_bin_type=True))


def unpacked(body: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(body, use_list=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise PeerRefused(NO_PROTOCOL) from error
    if not isinstance(fields, list):
        raise PeerRefused(NO_PROTOCOL)
    return fields


def has_types(fields: list[Any], *types: type) -> bool:
    return len(fields) == len(types) and all(type(f) is t for f, t in zip(fields, types, strict=True))


def _upgrade(cluster_level: int) -> str:
    """What to do about a node of 0.1: once the cluster has reached a level that it does not know, no flag helps."""
    if cluster_level >= 1:
        return f"upgrade it, since all members have been and the cluster has reached feature level {cluster_level}"
    return "upgrade it, or start this node with --allow-old-peers for the time of a rolling upgrade"


def raise_if_refused(answer: list[Any], cluster_level: int) -> None:
    """A bare refusal, which anybody on the way can make up: its sentence is for the log, nothing follows from it."""
    if has_types(answer, bool, str) and answer[0] is False:
        # In this node's own words: those of 0.1 do not name the flag, and are cut before they end, as a stranger's are.
        if answer[1] == OTHER_VERSION:
            raise PeerRefused(
                "it is of another version, such as 0.1, which does not protect what it sends: "
                + _upgrade(cluster_level),
                kind="it refused",
            )
        raise PeerRefused(f"it refused: {printable(answer[1])}", kind="it refused")


def raise_if_too_old(level: int, cluster_level: int) -> None:
    if level < cluster_level:
        raise PeerRefused(
            f"it knows feature level {level}, and this cluster has reached {cluster_level}: "
            "upgrade that node to the version of the others",
            code=TOO_OLD,
        )
