"""`kvnode serve --join`: a node that cannot be told yet what became of its request asks once more."""

from __future__ import annotations

import json

import pytest

from kvnode.client import Access
from kvnode.errors import StartupError
from kvnode.server import joining
from tests.cli.scripted import Asked, Reply, Script, always, break_off, scripted

MEMBER = {"role": "learner", "raft": "127.0.0.1:7004", "http": None, "wanted": True, "since": 9}
VOTER = {"id": "n1", "role": "voter", "raft": "127.0.0.1:7001", "http": None, "wanted": True, "since": 0}
LET_IN = Reply(
    200, json.dumps({"cluster_id": "ab" * 16, "index": 9, "members": [VOTER, MEMBER | {"id": "n4"}]}).encode()
)
IN_DOUBT = Reply(504, b'{"error":"outcome_unknown","message":"The leader went away.","outcome":"unknown"}')
OTHER_CHANGE = Reply(409, b'{"error":"conflict","message":"Another one.","outcome":"not_applied"}')


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "AGAIN_S", 0.01)


def one_by_one(*replies: Reply | None) -> Script:
    left = iter(replies)

    async def script(asked: Asked) -> Reply | None:
        reply = next(left)
        if reply is None:
            return await break_off(asked)
        return reply

    return script


async def joined(url: str) -> int:
    return (await joining.join([url], "n4", ("127.0.0.1", 7004), "", Access())).configuration.index


@pytest.mark.parametrize("unclear", [IN_DOUBT, None, OTHER_CHANGE], ids=["in doubt", "cut off", "another change"])
async def test_a_node_that_joins_asks_once_more(unclear: Reply | None) -> None:
    again = [unclear] if unclear is OTHER_CHANGE else [unclear] * 3
    async with scripted(one_by_one(*again, LET_IN)) as node:
        assert await joined(node.url) == 9
    assert {asked.body for asked in node.asked} == {node.asked[0].body}
    assert len(node.asked) == len(again) + 1


async def test_a_node_that_joins_gives_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "WITHIN_S", 0.3)
    async with scripted(always(IN_DOUBT)) as node:
        with pytest.raises(StartupError, match="cannot be joined now: The leader went away"):
            await joined(node.url)
    assert len(node.asked) > 1
