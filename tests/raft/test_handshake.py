"""Both sides prove the secret, and neither can be talked to by anybody else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.raft.handshake import DUPLICATE, MAGIC, OTHER_CLUSTER, WELCOME, Acceptor, Dialer, Identity, Refused, refusal


class Members(tuple[str, ...]):
    """Whom a node knows, by the configuration at `index`."""

    index = 7
    packed = b"the configuration"

    def told(self, packed: bytes) -> None: ...


MEMBERS = Members(("n1", "n2", "n3"))


def identity(node_id: str, cluster_id: bytes = b"c" * 16, secret: bytes = b"shared secret") -> Identity:
    return Identity(node_id, cluster_id, f"http://{node_id}", os.urandom(8), secret)


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
    at_dialer = dialer.welcomed(body(WELCOME))
    assert (at_acceptor.node_id, at_acceptor.http_url, at_acceptor.instance) == ("n1", "http://n1", one.instance)
    assert (at_dialer.node_id, at_dialer.http_url, at_dialer.instance) == ("n2", "http://n2", two.instance)


def test_the_dialer_notices_an_acceptor_without_the_secret() -> None:
    dialer, acceptor = Dialer(identity("n1"), "n2", MEMBERS), Acceptor(identity("n2", secret=b"another"), MEMBERS)
    with pytest.raises(Refused, match="secret"):
        dialer.challenged(body(greet(dialer, acceptor)))


def test_the_acceptor_notices_a_dialer_without_the_secret() -> None:
    acceptor = Acceptor(identity("n2"), MEMBERS)
    greet(Dialer(identity("n1"), "n2", MEMBERS), acceptor)
    for forged in (b"\x91\xc4\x20" + b"\x00" * 32, b"\x91\xc4\x00", b"\x90", b"\xc0"):
        with pytest.raises(Refused):
            acceptor.proved(forged)


def test_a_proof_cannot_be_replayed_on_another_connection() -> None:
    one, two = identity("n1"), identity("n2")
    dialer, acceptor = Dialer(one, "n2", MEMBERS), Acceptor(two, MEMBERS)
    hello = dialer.hello()
    proof = dialer.challenged(body(acceptor.greeted(body(hello[len(MAGIC) :]))))
    second = Acceptor(two, MEMBERS)
    second.greeted(body(hello[len(MAGIC) :]))
    with pytest.raises(Refused):
        second.proved(body(proof))


def test_a_challenge_cannot_be_reflected_as_a_proof() -> None:
    two = identity("n2")
    acceptor = Acceptor(two, MEMBERS)
    challenge = greet(Dialer(identity("n1"), "n2", MEMBERS), acceptor)
    reflected = b"\x91" + body(challenge)[-34:]  # the acceptor's own proof, packed as the dialer's would be
    with pytest.raises(Refused):
        acceptor.proved(reflected)


@pytest.mark.parametrize(
    ("dialer", "sentence"),
    [
        (Dialer(identity("n1", cluster_id=b"d" * 16), "n2", MEMBERS), "belongs to cluster"),
        (Dialer(identity("n1"), "n3", MEMBERS), "looks for node"),
        (Dialer(identity("n2"), "n2", MEMBERS), "is this one"),
    ],
)
def test_who_does_not_belong_is_told_why(dialer: Dialer, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        greet(dialer, Acceptor(identity("n2"), MEMBERS))


@given(st.binary(max_size=200))
def test_garbage_is_refused_at_every_step(garbage: bytes) -> None:
    with pytest.raises(Refused):
        Acceptor(identity("n2"), MEMBERS).greeted(garbage)
    acceptor = Acceptor(identity("n2"), MEMBERS)
    dialer = Dialer(identity("n1"), "n2", MEMBERS)
    challenge = greet(dialer, acceptor)
    with pytest.raises(Refused):
        acceptor.proved(garbage)
    with pytest.raises(Refused):
        Dialer(identity("n1"), "n2", MEMBERS).challenged(garbage)
    with pytest.raises(Refused):
        dialer.welcomed(body(challenge))


def knowing(index: int) -> Members:
    members = Members(("n1", "n2", "n3"))
    members.index = index
    return members


@pytest.mark.parametrize("index", [0, 6, 7])
def test_who_is_no_member_is_refused_and_given_the_proof(index: int) -> None:
    dialer, acceptor = Dialer(identity("removed"), "n2", knowing(index)), Acceptor(identity("n2"), MEMBERS)
    proof = dialer.challenged(body(greet(dialer, acceptor)))
    with pytest.raises(Refused, match="not a member") as refused:
        acceptor.proved(body(proof))
    frame = acceptor.refusal(refused.value)
    with pytest.raises(Refused, match="not a member") as told:
        dialer.welcomed(body(frame))
    assert told.value.told == b"the configuration"
    with pytest.raises(Refused) as forged:
        dialer.welcomed(body(frame).replace(b"the configuration", b"The configuration"))
    assert forged.value.told == b""


def test_who_knows_a_later_configuration_is_let_in_to_tell_it() -> None:
    dialer, acceptor = Dialer(identity("n9"), "n2", knowing(8)), Acceptor(identity("n2"), MEMBERS)
    assert acceptor.proved(body(dialer.challenged(body(greet(dialer, acceptor))))).node_id == "n9"


def test_only_a_proved_peer_can_say_that_the_id_is_taken() -> None:
    dialer = Dialer(identity("n1"), "n2", MEMBERS)
    dialer.hello()
    for code, honoured in ((DUPLICATE, ""), (OTHER_CLUSTER, OTHER_CLUSTER)):
        with pytest.raises(Refused, match="a lie") as unproved:
            dialer.challenged(body(refusal("a lie", code)))
        assert unproved.value.code == honoured
    dialer.challenged(body(greet(dialer, Acceptor(identity("n2"), MEMBERS))))
    with pytest.raises(Refused, match="the truth") as proved:
        dialer.welcomed(body(refusal("the truth", DUPLICATE)))
    assert proved.value.code == DUPLICATE
