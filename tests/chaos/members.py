"""What an operator does to a cluster's members while clients go on: add, remove, replace, and recover after a loss.

Each verb is asked again until the cluster answers: a change of members is refused while another one is under way or
nobody leads, which is no finding. One that is not done `DEADLINE_S` later, on a cluster that is whole, is one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.cluster import PROJECT, Cluster, wait_until

MEMBERS = "/admin/api/v1/members"
DEADLINE_S = 120.0  # a minute of which a machine that does other things as well may need
REFUSALS = (409, 503, 504)  # another change is under way, nobody leads, nobody can tell yet


@dataclass
class Changes:
    """Of `cluster`, whose next node is called `spare`. Used from one thread; every wait has a deadline."""

    cluster: Cluster
    spare: str
    leaps: list[tuple[int, int]] = field(default_factory=list)  # (revision before, revision that it goes on from)

    def join(self, name: str) -> None:
        """Starts a node with nothing, which joins; it is not waited for."""
        if name not in self.cluster.nodes:
            self.cluster.enlist(name)
        self.cluster.joined.add(name)
        self.cluster.spawn(name)

    def settle(self, name: str) -> None:
        """Returns once the node votes and is ready; one that was not let in yet is started again."""

        def votes() -> bool:
            if not self.cluster.nodes[name].running:
                self.cluster.spawn(name)
            return self._role(name) == "voter" and self.cluster.probe(name, "/readyz") == 200

        wait_until(votes, DEADLINE_S, f"{name} has caught up and votes; its log ends {self.cluster.log(name)[-600:]!r}")

    def remove(self, name: str) -> None:
        """Returns once the node is no member, and has ended by itself."""
        wait_until(lambda: self._asked(name, "DELETE", f"/{name}") == 200, DEADLINE_S, f"{name} is removed")
        code = self.cluster.wait_exit(name, 20.0)
        assert code == 1, f"{name} was removed and ended with {code}: {self.cluster.log(name)[-1000:]}"

    def replace(self, name: str) -> None:
        """Tells the cluster that what the member had promised is lost."""

        def replaced() -> bool:
            # An earlier try may have been carried out and its answer lost: then it is a member that is well.
            return self._asked(name, "POST", f"/{name}/replace") == 200 or self._role(name) == "learner"

        wait_until(replaced, DEADLINE_S, f"{name} is replaced")

    def wipe(self, name: str) -> None:
        shutil.rmtree(self.cluster.nodes[name].data_dir)

    def forget(self, name: str) -> None:
        """A node that was removed, with all that it left."""
        self.wipe(name)
        del self.cluster.nodes[name]
        self.cluster.joined.discard(name)

    def best(self) -> str:
        """The stopped node whose log is the longest."""
        with ThreadPoolExecutor() as looking:
            reaches = list(looking.map(self._reach, self.cluster.nodes))
        return max(zip(reaches, self.cluster.nodes, strict=True))[1]

    def recover(self, name: str) -> None:
        """Makes a cluster of one of this node, and starts it; the others join it with nothing."""
        folder = self.cluster.nodes[name].data_dir
        done = command("recover", "--data-dir", str(folder), "--force-new-cluster")
        self.leaps.append((done["revision"] - done["leap"], done["revision"]))
        shutil.rmtree(done["kept"])
        # From now on the id that --peers makes is that of the old cluster: a member that is wiped later joins, too.
        self.cluster.joined = set(self.cluster.nodes)
        self.cluster.spawn(name)
        for other in self.cluster.joined - {name}:
            self.wipe(other)
            self.cluster.spawn(other)

    def rebuild(self, backup: Path) -> None:
        """Makes a new cluster of a backup, in the place of one whose nodes are all stopped."""
        first, *others = self.cluster.nodes
        for name in self.cluster.nodes:
            self.wipe(name)
        node = self.cluster.nodes[first]
        raft = f"{node.raft[0]}:{node.raft[1]}"
        command("restore", str(backup), "--data-dir", str(node.data_dir), "--node-id", first, "--raft", raft)
        self.cluster.joined = {first, *others}
        self.cluster.spawn(first)
        for name in others:
            self.cluster.spawn(name)
        for name in others:
            self.settle(name)

    def _reach(self, name: str) -> tuple[int, int]:
        """(term, index) of the last entry of a stopped node."""
        found = command("verify", "--data-dir", str(self.cluster.nodes[name].data_dir))
        ends = [(each["last_term"], each["last_index"]) for each in found["segments"] if each["last_index"]]
        return max([*ends, *((each["term"], each["index"]) for each in found["snapshots"])], default=(0, 0))

    def _role(self, name: str) -> str | None:
        for via in self._others(name):
            try:
                answer = self.cluster.request(via, "GET", MEMBERS, timeout_s=2.0)
            except (OSError, HTTPException):
                continue
            if answer.status == 200:
                return next((each["role"] for each in answer.json()["members"] if each["id"] == name), None)
        return None

    def _asked(self, name: str, method: str, path: str) -> int | None:
        """The status of the first answer by another node; AssertionError for a refusal that time does not mend."""
        for via in self._others(name):
            try:
                answer = self.cluster.request(via, method, MEMBERS + path, timeout_s=10.0)
            except (OSError, HTTPException):
                continue
            gone = answer.status == 404 and method == "DELETE"  # the answer to an earlier try was lost
            assert gone or answer.status in (200, *REFUSALS), f"{method} {path}: {answer.status} {answer.body!r}"
            return 200 if gone else answer.status
        return None

    def _others(self, name: str) -> list[str]:
        return [each for each in self.cluster.awake() if each != name]


def command(*words: str) -> Any:
    """What `kvnode …` prints as JSON; AssertionError where it fails."""
    line = [sys.executable, "-m", "kvnode", *words, "-o", "json"]
    done = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(['kvnode', *words])} ended with {done.returncode}: {done.stderr}"
    return json.loads(done.stdout)
