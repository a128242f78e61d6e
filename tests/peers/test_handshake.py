"""Both sides prove the secret, and neither can be talked to by anybody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.peers.handshake import (
    DUPLICATE,
    MAGIC,
    OTHER_CLUSTER,
    OTHER_VERSION,
    STRANGER,
    TOO_OLD,
    VERSION_0_1,
    Acceptor,
    Dialer,
    LocalPeer,
    PeerRefused,
)
from kvnode.state.commands import FEATURE_LEVEL


class Members(tuple[str, ...]):
    """Whom a node knows, by the configuration at `index`."""

    index = 7
    packed = b"the configuration"

    def told(self, packed: bytes) -> None: ...


MEMBERS = Members(("n1", "n2", "n3"))


def identity(node_id: str, cluster_id: bytes = b"c" * 16, secret: bytes = b"shared secret") -> LocalPeer:
    return LocalPeer(node_id, cluster_id, f"http://{node_id}", os.urandom(8), secret)


def body(frame: bytes) -> bytes:
    return frame[4:]


def greet(dialer: Dialer, acceptor: Acceptor) -> bytes:
    hello = dialer.hello()
    assert hello.startswith(MAGIC)
    return acceptor.greeted(body(hello[len(MAGIC) :]))


def test_two_members_learn_who_the_other_is() -> None:
    one, two = identity("n1"), identity("n2")
    dialer, acceptor = Dialer(one, "n2", MEMBERS), Acceptor(two, MEMBERS)
    proof = dialer.challenged(body(greet(dialer, acceptor)))
    at_acceptor = acceptor.proved(body(proof))
    at_dialer = dialer.welcomed(body(acceptor.welcome()))
    assert (at_acceptor.node_id, at_acceptor.http_url, at_acceptor.instance) == ("n1", "http://n1", one.instance)
    assert (at_dialer.node_id, at_dialer.http_url, at_dialer.instance) == ("n2", "http://n2", two.instance)
    assert at_acceptor.level == at_dialer.level == FEATURE_LEVEL


def test_the_acceptor_says_nothing_under_the_secret_before_the_dialer_has_proved_itself() -> None:
    me = identity("n2")
    hello = body(Dialer(identity("n1"), "n2", MEMBERS).hello()[len(MAGIC) :])
    answer = msgpack.unpackb(body(Acceptor(me, MEMBERS).greeted(hello)))
    assert answer[0] is True
    assert [type(field) for field in answer] == [bool, bytes], "a nonce, which is drawn and made of nothing"
    acceptor = Acceptor(me, MEMBERS)
    greet(Dialer(identity("n1"), "n2", MEMBERS), acceptor)
    with pytest.raises(PeerRefused) as refused:
        acceptor.proved(msgpack.packb(["http://n1", b"i" * 8, 0, 1, b"p" * 32]))
    assert msgpack.unpackb(body(acceptor.refusal(refused.value))) == [False, str(refused.value)]


def test_a_refusal_by_a_node_of_0_1_names_the_flag_for_an_upgrade() -> None:
    dialer = Dialer(identity("n1"), "n2", MEMBERS)
    dialer.hello()
    with pytest.raises(PeerRefused, match=r"such as 0\.1, .* start this node with --allow-old-peers .* upgrade$"):
        dialer.challenged(msgpack.packb([False, OTHER_VERSION]))


def test_at_level_1_nobody_is_told_of_the_flag_which_would_not_help() -> None:
    me = replace(identity("n1"), cluster_level=lambda: 1)
    dialer = Dialer(me, "n2", MEMBERS)
    dialer.hello()
    with pytest.raises(PeerRefused, match=r"such as 0\.1, .*: upgrade it, .* has reached feature level 1$"):
        dialer.challenged(msgpack.packb([False, OTHER_VERSION]))
    with pytest.raises(PeerRefused, match=r"version 0\.1, .*: upgrade it, .* has reached feature level 1$"):
        Acceptor(me, MEMBERS).greeted(msgpack.packb([VERSION_0_1, bytes(16), "n2", "n1", bytes(16)]))


def test_the_dialer_notices_an_acceptor_without_the_secret() -> None:
    dialer, acceptor = Dialer(identity("n1"), "n2", MEMBERS), Acceptor(identity("n2", secret=b"another"), MEMBERS)
    dialer.challenged(body(greet(dialer, acceptor)))
    with pytest.raises(PeerRefused, match="secret"):
        dialer.welcomed(body(acceptor.welcome()))


def test_the_acceptor_notices_a_dialer_without_the_secret() -> None:
    acceptor = Acceptor(identity("n2"), MEMBERS)
    challenge = greet(dialer := Dialer(identity("n1", secret=b"another"), "n2", MEMBERS), acceptor)
    with pytest.raises(PeerRefused, match="secret"):
        acceptor.proved(body(dialer.challenged(body(challenge))))
    for forged in (b"\x91\xc4\x20" + b"\x00" * 32, b"\x91\xc4\x00", b"\x90", b"\xc0"):
        with pytest.raises(PeerRefused):
            acceptor.proved(forged)


def test_a_proof_cannot_be_replayed_on_another_connection() -> None:
    one, two = identity("n1"), identity("n2")
    dialer, acceptor = Dialer(one, "n2", MEMBERS), Acceptor(two, MEMBERS)
    hello = dialer.hello()
    proof = dialer.challenged(body(acceptor.greeted(body(hello[len(MAGIC) :]))))
    acceptor.proved(body(proof))
    second = Acceptor(two, MEMBERS)
    second.greeted(body(hello[len(MAGIC) :]))
    with pytest.raises(PeerRefused):
        second.proved(body(proof))


def test_no_field_of_a_proved_frame_can_be_altered() -> None:
    dialer, acceptor = Dialer(identity("n1"), "n2", MEMBERS), Acceptor(identity("n2"), MEMBERS)
    proof = body(dialer.challenged(body(greet(dialer, acceptor))))
    for other in altered(msgpack.unpackb(proof)):
        with pytest.raises(PeerRefused):
            acceptor.proved(other)
    acceptor.proved(proof)
    welcome = body(acceptor.welcome())
    for other in altered(msgpack.unpackb(welcome)):
        with pytest.raises(PeerRefused):
            dialer.welcomed(other)
    dialer.welcomed(welcome)


def altered(fields: list[object]) -> Iterator[bytes]:
    """The frame with one field after the other changed, and still of its type."""
    for position, held in enumerate(fields):
        if held is True:
            other: object = False
        elif isinstance(held, int):
            other = held + 1
        else:
            other = held[:-1] + ("x" if isinstance(held, str) else b"x")  # type: ignore[index,operator]
        yield msgpack.packb([*fields[:position], other, *fields[position + 1 :]])


def test_neither_side_can_be_given_its_own_proof() -> None:
    dialer, acceptor = Dialer(identity("n1"), "n2", MEMBERS), Acceptor(identity("n2"), MEMBERS)
    proof = dialer.challenged(body(greet(dialer, acceptor)))
    fields = msgpack.unpackb(body(proof))
    with pytest.raises(PeerRefused, match="secret"):  # as the acceptor's welcome
        dialer.welcomed(msgpack.packb([True, fields[0], fields[1], *fields[3:]]))
    peer = Acceptor(identity("n1"), MEMBERS)  # the dialer's own node, dialled back with what it says
    with pytest.raises(PeerRefused, match="looks for node"):
        greet(dialer, peer)


@pytest.mark.parametrize("reached", [FEATURE_LEVEL + 1, FEATURE_LEVEL + 5])
def test_a_node_that_knows_less_than_the_cluster_has_reached_is_refused(reached: int) -> None:
    newer = replace(identity("n2"), cluster_level=lambda: reached)
    dialer, acceptor = Dialer(identity("n1"), "n2", MEMBERS), Acceptor(newer, MEMBERS)
    proof = dialer.challenged(body(greet(dialer, acceptor)))
    with pytest.raises(
        PeerRefused, match=f"knows feature level {FEATURE_LEVEL}, and this cluster has reached"
    ) as refused:
        acceptor.proved(body(proof))
    with pytest.raises(PeerRefused, match="upgrade") as told:
        dialer.welcomed(body(acceptor.refusal(refused.value)))
    assert told.value.code == TOO_OLD
    # And the other way round: a node that is ahead dials nobody who is behind.
    dialer, acceptor = Dialer(newer, "n1", MEMBERS), Acceptor(identity("n1"), MEMBERS)
    acceptor.proved(body(dialer.challenged(body(greet(dialer, acceptor)))))
    with pytest.raises(PeerRefused, match="feature level") as refused:
        dialer.welcomed(body(acceptor.welcome()))
    assert refused.value.code == TOO_OLD


@pytest.mark.parametrize(
    ("dialer", "sentence"),
    [
        (Dialer(identity("n1"), "n3", MEMBERS), "looks for node"),
        (Dialer(identity("n2"), "n2", MEMBERS), "is this one"),
    ],
)
def test_who_does_not_belong_is_told_why(dialer: Dialer, sentence: str) -> None:
    with pytest.raises(PeerRefused, match=sentence):
        greet(dialer, Acceptor(identity("n2"), MEMBERS))


@pytest.mark.parametrize("secret", [b"shared secret", b"another"])
def test_a_node_of_another_cluster_is_told_so_and_believes_it_where_it_is_proved(secret: bytes) -> None:
    stranger = identity("n1", cluster_id=b"d" * 16, secret=secret)
    dialer, acceptor = Dialer(stranger, "n2", MEMBERS), Acceptor(identity("n2"), MEMBERS)
    proof = dialer.challenged(body(greet(dialer, acceptor)))
    with pytest.raises(PeerRefused, match=r"belongs to cluster .* with an empty --data-dir and --join") as refused:
        acceptor.proved(body(proof))
    with pytest.raises(PeerRefused, match="belongs to cluster") as told:
        dialer.welcomed(body(acceptor.refusal(refused.value)))
    assert told.value.code == (OTHER_CLUSTER if secret == b"shared secret" else "")


@given(st.binary(max_size=200))
def test_garbage_is_refused_at_every_step(garbage: bytes) -> None:
    with pytest.raises(PeerRefused):
        Acceptor(identity("n2"), MEMBERS).greeted(garbage)
    acceptor = Acceptor(identity("n2"), MEMBERS)
    dialer = Dialer(identity("n1"), "n2", MEMBERS)
    challenge = greet(dialer, acceptor)
    with pytest.raises(PeerRefused):
        acceptor.proved(garbage)
    with pytest.raises(PeerRefused):
        Dialer(identity("n1"), "n2", MEMBERS).challenged(garbage)
    with pytest.raises(PeerRefused):
        dialer.welcomed(body(challenge))


def knowing(index: int) -> Members:
    members = Members(("n1", "n2", "n3"))
    members.index = index
    return members


@pytest.mark.parametrize("index", [0, 6, 7])
def test_who_is_no_member_is_refused_and_given_the_proof(index: int) -> None:
    dialer, acceptor = Dialer(identity("removed"), "n2", knowing(index)), Acceptor(identity("n2"), MEMBERS)
    proof = dialer.challenged(body(greet(dialer, acceptor)))
    with pytest.raises(PeerRefused, match="not a member") as refused:
        acceptor.proved(body(proof))
    frame = acceptor.refusal(refused.value)
    with pytest.raises(PeerRefused, match="not a member") as told:
        dialer.welcomed(body(frame))
    assert told.value.told == b"the configuration"
    with pytest.raises(PeerRefused) as forged:
        dialer.welcomed(body(frame).replace(b"the configuration", b"The configuration"))
    assert forged.value.told == b""


def test_who_knows_a_later_configuration_is_let_in_to_tell_it() -> None:
    dialer, acceptor = Dialer(identity("n9"), "n2", knowing(8)), Acceptor(identity("n2"), MEMBERS)
    assert acceptor.proved(body(dialer.challenged(body(greet(dialer, acceptor))))).node_id == "n9"


@pytest.mark.parametrize("code", [DUPLICATE, OTHER_CLUSTER, STRANGER, TOO_OLD])
def test_what_a_refusal_says_counts_only_where_it_is_proved(code: str) -> None:
    dialer, acceptor = Dialer(identity("n1"), "n2", MEMBERS), Acceptor(identity("n2"), MEMBERS)
    dialer.hello()
    for bare in ([False, "a lie"], [False, "a lie", code, b"members", b"p" * 32]):
        with pytest.raises(PeerRefused) as unproved:
            dialer.challenged(msgpack.packb(bare))
        assert (unproved.value.code, unproved.value.told) == ("", b"")
    acceptor.proved(body(dialer.challenged(body(greet(dialer, acceptor)))))
    for forged in ([False, "a lie"], [False, "a lie", code, b"members", b"p" * 32]):
        with pytest.raises(PeerRefused, match="a lie") as unproved:
            dialer.welcomed(msgpack.packb(forged))
        assert (unproved.value.code, unproved.value.told) == ("", b"")
    with pytest.raises(PeerRefused, match="the truth") as proved:
        dialer.welcomed(body(acceptor.refusal(PeerRefused("the truth", code=code))))
    assert proved.value.code == code
