"""The handshake of kvnode 0.1, for a rolling upgrade from it: spoken with `--allow-old-peers` alone.

    dialer    "KVN1" | frame [2, cluster id, from, to, http url, instance, nonce, index]
    acceptor  frame [true, http url, instance, nonce, proof]        or  frame [false, reason, code]
    dialer    frame [proof]
    acceptor  frame [true]       or  frame [false, reason, code]  or  frame [false, reason, members, proof]

It proves who begins a connection, and nothing of what follows: the frames carry no tag, so an attacker on the way can
alter them. Its acceptor proves itself first. So a node refuses it unless it was started with the flag, and whatever its
flags say, once the cluster has reached feature level 1. Codes of refusals are not proved here, and are not believed.
"""

from __future__ import annotations

import hmac
import os
from typing import Any, Final

from kvnode.logs.rate_limited import printable
from kvnode.peers.handshake import (
    MAGIC,
    NO_PROTOCOL,
    NO_SECRET,
    NONCE_BYTES,
    VERSION_0_1,
    Circle,
    LocalPeer,
    Peer,
    PeerRefused,
    framed,
    has_types,
    packed,
    raise_if_refused,
    raise_if_too_old,
    unpacked,
)

LEVEL: Final = 0  # what those nodes know
_WELCOME: Final = framed(packed([True]))


def speaks(hello: bytes) -> bool:
    """Whether the frame is a hello of this version."""
    try:
        return unpacked(hello)[:1] == [VERSION_0_1]
    except PeerRefused:
        return False


class Dialer:
    """As `handshake.Dialer`."""

    def __init__(self, me: LocalPeer, peer_id: str, circle: Circle) -> None:
        self._me = me
        self._peer_id = peer_id
        self._index = circle.index
        self._said = b""
        self._peer: Peer | None = None

    def hello(self) -> bytes:
        me = self._me
        self._said = packed(
            [
                VERSION_0_1,
                me.cluster_id,
                me.node_id,
                self._peer_id,
                me.http_url,
                me.instance,
                os.urandom(NONCE_BYTES),
                self._index,
            ]
        )
        return MAGIC + framed(self._said)

    def challenged(self, body: bytes) -> bytes:
        answer = unpacked(body)
        _raise_if_coded(answer, self._me.cluster_level())
        raise_if_refused(answer, self._me.cluster_level())
        if not has_types(answer, bool, str, bytes, bytes, bytes):
            raise PeerRefused("it answers in an unknown protocol")
        _, http_url, instance, nonce, proof = answer
        self._said += packed([http_url, instance, nonce])
        if not hmac.compare_digest(proof, _proof(self._me.secret, b"acceptor", self._said)):
            raise PeerRefused(NO_SECRET)
        self._peer = Peer(self._peer_id, http_url, instance, LEVEL)
        return framed(packed([_proof(self._me.secret, b"dialer", self._said)]))

    def welcomed(self, body: bytes) -> Peer:
        answer = unpacked(body)
        if has_types(answer, bool, str, bytes, bytes) and not answer[0]:
            _, reason, told, proof = answer
            genuine = hmac.compare_digest(proof, _proof(self._me.secret, b"verdict", self._said + told))
            raise PeerRefused(f"it refused: {printable(reason)}", told if genuine else b"", kind="it refused")
        _raise_if_coded(answer, self._me.cluster_level())
        raise_if_refused(answer, self._me.cluster_level())
        if answer != [True] or self._peer is None:
            raise PeerRefused("it answers in an unknown protocol")
        raise_if_too_old(LEVEL, self._me.cluster_level())
        return self._peer


class Acceptor:
    """As `handshake.Acceptor`."""

    def __init__(self, me: LocalPeer, circle: Circle) -> None:
        self._me = me
        self._circle = circle
        self._said = b""
        self._index = 0
        self._peer: Peer | None = None

    def greeted(self, body: bytes) -> bytes:
        hello = unpacked(body)
        if not has_types(hello, int, bytes, str, str, str, bytes, bytes, int):
            raise PeerRefused(NO_PROTOCOL)
        _, cluster_id, node_id, to, http_url, instance, _, self._index = hello
        me = self._me
        raise_if_too_old(LEVEL, me.cluster_level())
        if cluster_id != me.cluster_id:
            raise PeerRefused(
                f"it belongs to cluster {cluster_id.hex()[:12]}, this node to {me.cluster_id.hex()[:12]}",
                kind="it belongs to another cluster",
            )
        if to != me.node_id:
            raise PeerRefused(
                f"it looks for node {printable(to)!r}, this is {me.node_id!r}: check the addresses in --peers",
                kind="it looks for another node",
            )
        if node_id == me.node_id:
            raise PeerRefused(f"node {node_id!r} is this one: give each node its own --node-id")
        self._peer = Peer(node_id, http_url, instance, LEVEL)
        mine = [me.http_url, me.instance, os.urandom(NONCE_BYTES)]
        self._said = body + packed(mine)
        return framed(packed([True, *mine, _proof(me.secret, b"acceptor", self._said)]))

    def proved(self, body: bytes) -> Peer:
        answer = unpacked(body)
        expected = _proof(self._me.secret, b"dialer", self._said)
        if not has_types(answer, bytes) or not hmac.compare_digest(answer[0], expected) or self._peer is None:
            raise PeerRefused(NO_SECRET)
        node_id = self._peer.node_id
        if node_id not in self._circle and self._index <= self._circle.index:
            raise PeerRefused(f"node {node_id!r} is not a member of this cluster", self._circle.packed)
        return self._peer

    def welcome(self) -> bytes:
        return _WELCOME

    def refusal(self, refused: PeerRefused) -> bytes:
        if not refused.told:
            return framed(packed([False, str(refused), refused.code] if refused.code else [False, str(refused)]))
        proof = _proof(self._me.secret, b"verdict", self._said + refused.told)
        return framed(packed([False, str(refused), refused.told, proof]))


def _proof(secret: bytes, role: bytes, said: bytes) -> bytes:
    return hmac.digest(secret, role + b"\x00" + said, "sha256")


def _raise_if_coded(answer: list[Any], cluster_level: int) -> None:
    if has_types(answer, bool, str, str) and answer[0] is False:
        raise_if_refused(answer[:2], cluster_level)
