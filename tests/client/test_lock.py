"""What a lock does where the cluster cannot say whether it was taken."""

from __future__ import annotations

import asyncio

import pytest

from kvnode import errors
from kvnode.client import Client
from tests.cli.scripted import Reply, always, scripted

UNKNOWN = Reply(504, b'{"error":"outcome_unknown","message":"Nobody can tell.","outcome":"unknown"}')


@pytest.mark.parametrize("wait_s", [0, 0.3])
async def test_a_lock_that_nobody_can_tell_about_is_waited_for_no_longer_than_asked(wait_s: float) -> None:
    async with scripted(always(UNKNOWN)) as node, Client([node.url], 0.2) as client:
        async with asyncio.timeout(5):
            with pytest.raises(errors.OutcomeUnknown):
                await client.lock("x").acquire(wait_s)
    assert len(node.asked) >= 1
