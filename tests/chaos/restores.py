"""Going back between two times of faults, to a backup or to what a member knew that was away. No number is given again.

What was written since is gone, as it has to be. What was told of it is not taken back: the revisions and lease ids that
follow are above all that were, and watches hear that they missed something.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.chronicle import Chronicle
from tests.chaos.clients import decode, encode
from tests.chaos.members import Changes, command
from tests.cluster import Cluster, wait_until

BETWEEN = 20  # writes after the backup
READY_S = 60.0


@dataclass
class Content:
    """What a node holds, read while nobody writes: (value, version) by key, and a hash of all there is to an item."""

    revision: int
    digest: str
    items: dict[str, tuple[str, int]]


def agreed_content(cluster: Cluster) -> Content:
    """What every node holds, from its own memory; AssertionError where they do not come to the same."""

    def same() -> Content | None:
        contents = [_content(cluster, name) for name in cluster.nodes]
        return contents[0] if len({(each.revision, each.digest) for each in contents}) == 1 else None

    return wait_until(same, 60.0, "every node at the same revision with the same content")


def _content(cluster: Cluster, name: str) -> Content:
    digest, cursor = hashlib.sha256(), ""
    items: dict[str, tuple[str, int]] = {}
    while True:
        page: dict[str, Any] = cluster.request(name, "GET", f"/v1/kv?consistency=stale&limit=500{cursor}").json()
        digest.update(repr(page["items"]).encode())
        for item in page["items"]:
            items[item["key"]] = decode(b64decode(item["value"])), item["version"]
        if "cursor" not in page:
            return Content(page["revision"], digest.hexdigest(), items)
        cursor = f"&cursor={page['cursor']}"


@dataclass
class Restores:
    """Of one run; a finding is an AssertionError. Without `changes` there is no other way than into the running one."""

    cluster: Cluster
    changes: Changes | None
    chronicle: Chronicle
    folder: Path
    ids: list[int]  # of leases
    leaps: list[tuple[int, int]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    clusters: int = 0  # how many new ones were made

    async def restore(self) -> None:
        """Writes on after a moment, and goes back to it: in one of three ways by turns."""
        ways = [self._into_the_running_cluster]
        if self.changes is not None:
            ways += [self._of_a_member_that_was_away, self._into_a_new_cluster]
        before = await asyncio.to_thread(agreed_content, self.cluster)
        kind = await ways[len(self.done) % len(ways)]()
        await asyncio.to_thread(self.cluster.wait_ready, READY_S)
        after = await asyncio.to_thread(agreed_content, self.cluster)
        self.leaps.append((before.revision, after.revision))
        assert after.items == before.items, f"{kind}: {_difference(before, after)}"
        assert after.digest == before.digest, f"{kind}: the items are not those of before"
        reached, ids = self.chronicle.newest, max(self.ids)
        assert after.revision > reached, f"{kind}: revision {after.revision}, and {reached} was given before"
        await self._write("after", next(iter(self.cluster.nodes)))
        assert self.ids[-1] > ids, f"{kind}: a lease has the id {self.ids[-1]}, and {ids} was given before"
        self.done.append(kind)

    async def _into_the_running_cluster(self) -> str:
        file = await self._backup()
        url = self.cluster.url(next(iter(self.cluster.nodes)))
        await asyncio.to_thread(command, "restore", str(file), "--url", url, "--yes", "--timeout", "120")
        return "a backup into the running cluster"

    async def _into_a_new_cluster(self) -> str:
        assert self.changes is not None
        file = await self._backup()
        await asyncio.to_thread(self.cluster.stop)
        await asyncio.to_thread(self.changes.rebuild, file)
        self.clusters += 1
        return "a backup into a new cluster"

    async def _of_a_member_that_was_away(self) -> str:
        """All others are lost for good, with what they acknowledged meanwhile."""
        assert self.changes is not None
        away, other = (await asyncio.to_thread(self.cluster.followers))[:2]
        self.cluster.kill(away)
        await self._write("between", other)
        for name in self.cluster.awake():
            self.cluster.kill(name)
        await asyncio.to_thread(self.changes.recover, away)
        for name in sorted(self.cluster.joined - {away}):
            await asyncio.to_thread(self.changes.settle, name)
        self.clusters += 1
        return "a recovery from a member that was away"

    async def _backup(self) -> Path:
        """Taken, and written on after it."""
        file = self.folder / f"backup-{len(self.done)}.kvnb"
        node = next(iter(self.cluster.nodes))
        await asyncio.to_thread(command, "backup", str(file), "--url", self.cluster.url(node))
        await self._write("between", node)
        return file

    async def _write(self, when: str, node: str) -> None:
        """Some keys that nobody else writes, and a lease."""
        for number in range(BETWEEN):
            key, value = f"{when}/{len(self.done)}/{number}", f"{when}.{len(self.done)}"
            done = await asyncio.to_thread(self.cluster.put, key, encode(value, 0), node)
            self.chronicle.acknowledged(done["revision"], (("put", key, value),), done["version"])
        asked = (node, "POST", "/v1/leases", b'{"ttl":60}', {"Content-Type": "application/json"})
        answer = await asyncio.to_thread(self.cluster.request, *asked)
        assert answer.status == 200, f"a lease was refused with {answer.status}: {answer.body!r}"
        self.ids.append(json.loads(answer.body)["id"])


def _difference(before: Content, after: Content) -> str:
    missing = sorted(set(before.items) - set(after.items))[:10]
    more = sorted(set(after.items) - set(before.items))[:10]
    other = [key for key in before.items if key in after.items and after.items[key] != before.items[key]][:10]
    return f"keys that are missing {missing}, that are new {more}, that are not the same {other}"
