"""How two nodes make sure of each other before a single Raft message passes.

    dialer    "KVN1" | frame [version, cluster id, from, to, http url, instance, nonce, index]
    acceptor  frame [true, http url, instance, nonce, proof]        or  frame [false, reason, code]
    dialer    frame [proof]
    acceptor  frame [true]       or  frame [false, reason, code]  or  frame [false, reason, members, proof]

A proof is HMAC-SHA256 under the cluster secret over who is speaking and everything said so far, both nonces
included: it proves the secret without showing it, cannot be replayed, and binds the names to the connection.

`index` is that of the latest configuration that the dialer knows to be committed. An acceptor that knows a later one,
or as late a one, in which the dialer is no member refuses it and hands it that one, proved: so a node that was
removed while it was away learns of it. One that knows more than the acceptor is let in, and tells it.

Frames are at most `FRAME_BYTES_MAX` here, whatever a stranger claims. The stream that follows is the dialer's
alone: each node sends on the connection that it dialled, so that frames of one node never overtake each other.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgpack

MAGIC: Final = b"KVN1"
FRAME_BYTES_MAX: Final = 8_192
DEADLINE_S: Final = 3.0
_VERSION: Final = 2
_NONCE_BYTES: Final = 16

# Why a node is refused, where it should know which of the reasons it is.
OTHER_CLUSTER: Final = "other_cluster"
STRANGER: Final = "stranger"
DUPLICATE: Final = "duplicate"


class Refused(Exception):
    """The other side is not one to talk to, or says that about us. The text is one sentence for the log.

    `told` is the packed configuration that the other side refers to, or empty; where it came from there, it is proved.
    `code` is one of those above, or empty.
    """

    def __init__(self, reason: str, told: bytes = b"", code: str = "") -> None:
        super().__init__(reason)
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
class Identity:
    """What a node says about itself. `instance` is drawn anew each time the process starts."""

    node_id: str
    cluster_id: bytes
    http_url: str
    instance: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class Peer:
    """What was learned and proved about the other side."""

    node_id: str
    http_url: str
    instance: bytes


class Dialer:
    """The dialling side: `hello()` first, then `challenged(body)` gives the proof, then `welcomed(body)` the peer."""

    def __init__(self, me: Identity, peer_id: str, circle: Circle) -> None:
        self._me = me
        self._peer_id = peer_id
        self._index = circle.index
        self._said = b""
        self._peer: Peer | None = None

    def hello(self) -> bytes:
        me = self._me
        fields = [
            _VERSION,
            me.cluster_id,
            me.node_id,
            self._peer_id,
            me.http_url,
            me.instance,
            os.urandom(_NONCE_BYTES),
            self._index,
        ]
        self._said = _pack(fields)
        return MAGIC + _frame(self._said)

    def challenged(self, body: bytes) -> bytes:
        answer = _unpack(body)
        _raise_if_refused(answer, proved=False)
        if not _is(answer, bool, str, bytes, bytes, bytes):
            raise Refused("it answers in an unknown protocol")
        _, http_url, instance, nonce, proof = answer
        self._said += _pack([http_url, instance, nonce])
        if not hmac.compare_digest(proof, _proof(self._me.secret, b"acceptor", self._said)):
            raise Refused("it does not know this cluster's secret: give all nodes the same one")
        self._peer = Peer(self._peer_id, http_url, instance)
        return _frame(_pack([_proof(self._me.secret, b"dialer", self._said)]))

    def welcomed(self, body: bytes) -> Peer:
        answer = _unpack(body)
        if _is(answer, bool, str, bytes, bytes) and not answer[0]:
            _, reason, told, proof = answer
            genuine = hmac.compare_digest(proof, _proof(self._me.secret, b"verdict", self._said + told))
            raise Refused(reason, told if genuine else b"")
        _raise_if_refused(answer, proved=True)
        if answer != [True] or self._peer is None:
            raise Refused("it answers in an unknown protocol")
        return self._peer


class Acceptor:
    """The accepting side: `greeted(body)` gives the challenge, `proved(body)` the peer. Refused is sent back."""

    def __init__(self, me: Identity, circle: Circle) -> None:
        self._me = me
        self._circle = circle
        self._said = b""
        self._index = 0
        self._peer: Peer | None = None

    def greeted(self, body: bytes) -> bytes:
        hello = _unpack(body)
        if not hello or hello[0] != _VERSION or not _is(hello, int, bytes, str, str, str, bytes, bytes, int):
            raise Refused("it speaks another version of the protocol: upgrade the older node")
        _, cluster_id, node_id, to, http_url, instance, _, self._index = hello
        me = self._me
        if cluster_id != me.cluster_id:
            raise Refused(
                f"it belongs to cluster {cluster_id.hex()[:12]}, this node to {me.cluster_id.hex()[:12]}: start all "
                "nodes of one cluster with the same --peers (or the same --cluster-id) and empty data directories",
                code=OTHER_CLUSTER,
            )
        if to != me.node_id:
            raise Refused(f"it looks for node {to!r}, this is {me.node_id!r}: check the addresses in --peers")
        if node_id == me.node_id:
            raise Refused(f"node {node_id!r} is this one: give each node its own --node-id")
        self._peer = Peer(node_id, http_url, instance)
        mine = [me.http_url, me.instance, os.urandom(_NONCE_BYTES)]
        self._said = body + _pack(mine)
        return _frame(_pack([True, *mine, _proof(me.secret, b"acceptor", self._said)]))

    def proved(self, body: bytes) -> Peer:
        answer = _unpack(body)
        expected = _proof(self._me.secret, b"dialer", self._said)
        if not _is(answer, bytes) or not hmac.compare_digest(answer[0], expected) or self._peer is None:
            raise Refused("it does not know this cluster's secret: give all nodes the same one")
        node_id = self._peer.node_id
        if node_id not in self._circle and self._index <= self._circle.index:
            raise Refused(f"node {node_id!r} is not a member of this cluster", self._circle.packed)
        return self._peer

    def refusal(self, refused: Refused) -> bytes:
        """The frame that tells the other side why."""
        if not refused.told:
            return refusal(str(refused), refused.code)
        proof = _proof(self._me.secret, b"verdict", self._said + refused.told)
        return _frame(_pack([False, str(refused), refused.told, proof]))


WELCOME: Final = b"\x00\x00\x00\x02\x91\xc3"  # the frame [true]


def refusal(reason: str, code: str = "") -> bytes:
    """The frame that tells the other side why."""
    return _frame(_pack([False, reason, code] if code else [False, reason]))


def _proof(secret: bytes, role: bytes, said: bytes) -> bytes:
    return hmac.new(secret, role + b"\x00" + said, hashlib.sha256).digest()


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def _pack(fields: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def _unpack(body: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(body, use_list=True, max_ext_len=0)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise Refused("it does not speak this protocol") from error
    if not isinstance(fields, list):
        raise Refused("it does not speak this protocol")
    return fields


def _is(fields: list[Any], *types: type) -> bool:
    return len(fields) == len(types) and all(type(f) is t for f, t in zip(fields, types, strict=True))


def _raise_if_refused(answer: list[Any], proved: bool) -> None:
    """`proved`: the other side has shown that it knows the secret. DUPLICATE counts from such a one alone: it takes a
    node out, and anybody may answer at a peer's address.
    """
    if (_is(answer, bool, str) or _is(answer, bool, str, str)) and answer[0] is False:
        code = "".join(answer[2:3])
        raise Refused(f"it refused: {answer[1][:200]}", code=code if proved or code != DUPLICATE else "")
