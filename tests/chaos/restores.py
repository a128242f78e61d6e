"""Going back to a backup between two times of faults: the content is the backup's, and no number is given again.

What is written after the backup is gone with the restore, as it has to be. What was told of it is not taken back: the
revisions and lease ids that follow are above all that were, and watches hear that they missed something.
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
        """Takes a backup, writes on, and goes back: into the running cluster and into a new one by turns."""
        file = self.folder / f"backup-{len(self.done)}.kvnb"
        url = self.cluster.url(next(iter(self.cluster.nodes)))
        before = await asyncio.to_thread(agreed_content, self.cluster)
        # With -o json it still prints nothing else to stdout than what it says of the backup.
        await asyncio.to_thread(command, "backup", str(file), "--url", url)
        await self._write("between")
        reached = self.chronicle.newest
        offline = self.changes is not None and len(self.done) % 2 == 1
        if offline and self.changes is not None:
            await asyncio.to_thread(self.cluster.stop)
            await asyncio.to_thread(self.changes.rebuild, file)
            self.clusters += 1
        else:
            await asyncio.to_thread(command, "restore", str(file), "--url", url, "--yes", "--timeout", "120")
        await asyncio.to_thread(self.cluster.wait_ready, READY_S)
        after = await asyncio.to_thread(agreed_content, self.cluster)
        kind = "restored into a new cluster" if offline else "restored into the running cluster"
        self.leaps.append((before.revision, after.revision))
        self.done.append(kind)
        assert after.items == before.items, f"{kind}: {_difference(before, after)}"
        assert after.digest == before.digest, f"{kind}: the items are not the backup's"
        assert after.revision > reached, f"{kind}: revision {after.revision}, and {reached} was given before"
        ids = max(self.ids)
        await self._write("after")
        assert self.ids[-1] > ids, f"{kind}: a lease has the id {self.ids[-1]}, and {ids} was given before"

    async def _write(self, when: str) -> None:
        """Some keys that nobody else writes, and a lease."""
        node = next(iter(self.cluster.nodes))
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
