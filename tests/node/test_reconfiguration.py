"""What is said of a change of members whose entry is not in the log any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.configuration import Configuration, Member
from kvnode.errors import OutcomeUnknown
from kvnode.node.group import RaftGroup
from kvnode.node.settings import RaftSettings
from tests.cluster import free_ports


async def test_nobody_knows_what_became_of_a_change_whose_entry_is_in_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    address = ("127.0.0.1", port)
    group = RaftGroup(RaftSettings("n1", address, {"n1": address}, "http://n1", tmp_path))
    await group.start()
    try:
        engine, reconfiguration = group._engine, group._reconfiguration
        assert engine is not None
        assert reconfiguration is not None
        replica, wait = engine.replica, engine.leadership.wait
        while not replica.serving:
            await wait(0.01)

        async def agreed(configuration: Configuration) -> None:
            index, _ = replica.change_members(configuration)
            engine.schedule()
            while replica.raftLastApplied < index:
                await wait(0.005)

        def learner(name: str) -> Configuration:
            index = replica.last[1] + 1
            return engine.roster.current.having(Member(name, ("127.0.0.1", 1), voter=False, since=index), index)

        async def others_go_on(timeout_s: float) -> bool | None:
            """While the change is waited for: it is made, another one follows, and a snapshot takes their place."""
            monkeypatch.undo()
            while replica.raftLastApplied < replica.last[1]:
                await wait(0.005)
            await agreed(learner("n8"))
            replica.journal.compact(replica.last[1])
            return None

        monkeypatch.setattr(engine.leadership, "wait", others_go_on)
        with pytest.raises(OutcomeUnknown, match="member list"):
            await reconfiguration._carry_out(learner("n9"), engine.clock() + 5.0)
    finally:
        await group.stop()
