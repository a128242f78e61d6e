"""Access tokens in the replicated state: made, revoked, bounded, and carried by snapshots."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvnode.state.commands import (
    END_SESSION,
    PUT,
    TOKEN_CREATE,
    TOKEN_PUT,
    TOKEN_REVOKE,
    CreateToken,
    RevokeToken,
)
from kvnode.state.entries import frees_space
from kvnode.state.limits import ENDED_SESSIONS_MAX, TOKENS_MAX
from kvnode.state.results import (
    Invalid,
    TokenChanged,
    TokenMissing,
    TokensFull,
    Written,
)
from kvnode.state.store import KeyValueStore
from kvnode.state.tokens import NAME_TAKEN, TOKEN_CHANGED, Token

DIGEST = bytes(range(32))


def create(token_id: str = "a1", role: str = "full") -> list[Any]:
    return [TOKEN_CREATE, [token_id, "deploy", role, DIGEST, 1_700_000_000_000]]


def test_a_token_is_made_and_revoked_once_and_moves_no_revision() -> None:
    store = KeyValueStore()
    assert store.apply(create()) == TokenChanged(0, "a1")
    assert store.tokens.get("a1") == Token("a1", "deploy", "full", DIGEST, 1_700_000_000_000)
    assert isinstance(store.apply(create()), Invalid)
    assert store.apply([TOKEN_REVOKE, "a1"]) == TokenChanged(0, "a1")
    assert store.apply([TOKEN_REVOKE, "a1"]) == TokenMissing(0)
    assert store.tokens.get("a1") is None


def test_commands_are_what_the_store_understands() -> None:
    store = KeyValueStore()
    command = CreateToken("a1", "ops", "read_only", DIGEST, 5)
    assert store.apply(msgpack.unpackb(command.encode())) == TokenChanged(0, "a1")
    revocation = RevokeToken("a1").encode()
    assert frees_space(revocation), "a full disk must not keep a stolen token valid"
    assert not frees_space(command.encode())
    assert store.apply(msgpack.unpackb(revocation)) == TokenChanged(0, "a1")


@pytest.mark.parametrize(
    "command",
    [
        [TOKEN_CREATE, None],
        [TOKEN_CREATE, ["a", "n", "full", DIGEST]],
        [TOKEN_CREATE, ["a", "n", "root", DIGEST, 1]],
        [TOKEN_CREATE, ["a", "n", [], DIGEST, 1]],
        [TOKEN_CREATE, ["a", "n", "full", DIGEST[1:], 1]],
        [TOKEN_CREATE, ["", "n", "full", DIGEST, 1]],
        [TOKEN_CREATE, ["a", "x" * 65, "full", DIGEST, 1]],
        [TOKEN_CREATE, ["a", "n", "full", DIGEST, -1]],
        [TOKEN_REVOKE, 7],
        [TOKEN_REVOKE, "a", "an idempotency key"],
        [*create(), "an idempotency key"],
    ],
)
def test_a_malformed_command_changes_nothing(command: list[Any]) -> None:
    store = KeyValueStore()
    assert isinstance(store.apply(command), Invalid)
    assert len(store.tokens) == 0


def test_there_are_so_many_tokens_and_no_more() -> None:
    store = KeyValueStore()
    for number in range(TOKENS_MAX):
        assert isinstance(store.apply(create(str(number))), TokenChanged)
    assert store.apply(create("one-more")) == TokensFull(0)
    store.apply([TOKEN_REVOKE, "0"])
    assert isinstance(store.apply(create("one-more")), TokenChanged)


def test_snapshots_carry_tokens_and_older_ones_are_still_read() -> None:
    store = KeyValueStore()
    assert store.apply([PUT, "a", b"1", "", None]) == Written(1, 1)
    without, mark = list(store.view().chunks()), store.mark
    assert msgpack.unpackb(without[0])[0] == 3, "what has no token is readable for older nodes"
    assert len(KeyValueStore.load(without).tokens) == 0
    for token_id in ("b", "a"):
        store.apply(create(token_id))
    view = store.view()
    store.apply([TOKEN_REVOKE, "b"])
    chunks = list(view.chunks())
    loaded = KeyValueStore.load(chunks)
    assert [token.id for token in loaded.tokens.view()] == ["b", "a"]
    assert list(loaded.view().chunks()) == chunks
    assert loaded.mark not in (mark, store.mark)
    other = KeyValueStore()
    other.adopt(loaded)
    assert other.tokens.get("a") is not None


@pytest.mark.parametrize("small", [[], {"tokens": None}, {"tokens": [["a"]]}, {"tokens": [create()[1]] * 2}])
def test_damaged_tokens_are_refused_with_a_sentence(small: Any) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        KeyValueStore.load([msgpack.packb([4, 0, 0, 0, 0, 0, small])])


def test_no_two_tokens_share_a_name_once_all_nodes_know_that() -> None:
    """Nodes of feature level 0 take a name twice, and all must do the same with one entry."""
    store = KeyValueStore()
    assert store.apply(create("a1")) == TokenChanged(0, "a1")
    assert store.apply(create("a2")) == TokenChanged(0, "a2")
    store.level = 1
    assert store.apply(create("a3")) == Invalid(0, NAME_TAKEN)
    assert store.apply([TOKEN_REVOKE, "a1"]) == TokenChanged(0, "a1")
    assert store.apply(create("a3")) == Invalid(0, NAME_TAKEN), "the other one still has it"
    assert store.apply([TOKEN_REVOKE, "a2"]) == TokenChanged(0, "a2")
    assert store.apply(create("a3")) == TokenChanged(0, "a3")


def put(before: bytes = b"", **changes: Any) -> list[Any]:
    token = Token("a1", "deploy", "write", DIGEST, 1, ("app/", "b/"), 5_000, b"", 0)._replace(**changes)
    return [TOKEN_PUT, [before, [list(field) if type(field) is tuple else field for field in token]]]


def test_a_token_takes_the_place_of_the_state_that_its_change_was_made_for() -> None:
    store = KeyValueStore()
    assert isinstance(store.apply(put()), Invalid), "members of version 0.1 know no such command"
    store.level = 1
    assert store.apply(put()) == TokenChanged(store.revision, "a1")
    first = store.tokens.get("a1")
    assert first is not None
    assert store.apply(put(id="a2")) == Invalid(store.revision, NAME_TAKEN)
    assert isinstance(store.apply(put()), Invalid), "the id is taken"
    assert store.apply(put(first.mark, role="read", prefixes=())) == TokenChanged(store.revision, "a1")
    assert store.apply(put(first.mark, role="admin", prefixes=())) == Invalid(store.revision, TOKEN_CHANGED)
    store.apply(put(id="b1", name="other"))
    now = store.tokens.get("a1")
    assert now is not None
    assert store.apply(put(now.mark, name="other")) == Invalid(store.revision, NAME_TAKEN)
    assert store.apply(put(now.mark, id="c1")) == TokenMissing(store.revision)
    # step: what version 0.1 made is changed like any other, and its plain form is kept where it says all
    store.apply([TOKEN_CREATE, ["z1", "old", "full", DIGEST, 1]])
    old = store.tokens.get("z1")
    assert old is not None
    store.apply([TOKEN_PUT, [old.mark, [*old[:5], [], 0, bytes(32), 9]]])
    assert store.tokens.get("z1") == Token("z1", "old", "full", DIGEST, 1, (), 0, bytes(32), 9)
    chunks = list(store.view().chunks())
    loaded = KeyValueStore.load(chunks)
    assert loaded.tokens.view() == store.tokens.view()
    assert list(loaded.view().chunks()) == chunks


@pytest.mark.parametrize(
    "changes",
    [
        {"prefixes": ("b/", "app/")}, {"prefixes": ("app/", "app/x")}, {"prefixes": ("",)}, {"prefixes": ("a" * 481,)},
        {"prefixes": tuple(f"{n:02}" for n in range(17))}, {"role": "admin"}, {"role": "full"}, {"role": "root"},
        {"expires_ms": -1}, {"expires_ms": 2**62}, {"former": DIGEST}, {"former_until_ms": 1}, {"former": b"x"},
        {"former": DIGEST[1:], "former_until_ms": 1}, {"prefixes": None}, {"prefixes": (1,)}, {"name": ""},
    ],
)  # fmt: skip
def test_a_token_that_breaks_a_limit_is_refused_in_the_log_and_in_a_snapshot(changes: dict[str, Any]) -> None:
    store = KeyValueStore()
    store.level = 1
    command = put(**changes)
    assert isinstance(store.apply(command), Invalid)
    assert len(store.tokens) == 0
    with pytest.raises(ValueError, match="snapshot"):
        KeyValueStore.load([msgpack.packb([4, 1, 0, 0, 0, 0, {"tokens": [command[1][1]]}])])


def test_as_many_tokens_as_there_may_be_fit_a_snapshot_with_all_that_is_kept_of_them() -> None:
    store = KeyValueStore()
    store.level = 1
    for number in range(TOKENS_MAX):
        prefixes = [f"{n:02}" + "x" * 28 for n in range(16)]
        fields = [f"{number:032}", f"{number:064}", "read_only", DIGEST, 2**52, prefixes, 2**52, DIGEST, 2**52]
        assert isinstance(store.apply([TOKEN_PUT, [b"", fields]]), TokenChanged)
        for session in range(ENDED_SESSIONS_MAX + 1):
            store.apply([END_SESSION, [f"{number:032}", session.to_bytes(16, "big"), 2**52 + session]])
    loaded = KeyValueStore.load(store.view().chunks())
    assert loaded.tokens.view() == store.tokens.view()
    assert loaded.ended_sessions.view() == store.ended_sessions.view()
