"""`kvnode token create`: a name is given once, and a token that nobody asks for is said to be one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cli.command import kvnode_here
from tests.cluster import Cluster

TOKENS = "/admin/api/v1/tokens"


def test_a_token_on_a_node_that_asks_for_none_comes_with_a_warning(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(size=1).start()
    made = kvnode_here("token", "create", "ops", "--url", cluster.url("n1"))
    assert (made.code, made.out.startswith(b"kvnode_")) == (0, True)
    assert "asks for no token" in made.err
    as_json = kvnode_here("token", "create", "dev", "-o", "json", "--url", cluster.url("n1"))
    assert "asks for no token" in json.loads(as_json.out)["warning"]


def test_a_name_is_given_once(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    first = os.urandom(20).hex()
    (tmp_path / "token").write_text(first)
    (tmp_path / "token").chmod(0o600)
    cluster = make_cluster(size=1, args=["--token-file", str(tmp_path / "token")], token=first).start()

    def create(name: str, role: str = "read_only") -> int:
        body = json.dumps({"name": name, "role": role}).encode()
        return cluster.request("n1", "POST", TOKENS, body).status

    env = {"KVNODE_TOKEN": first}
    made = kvnode_here("token", "create", "ops", "--url", cluster.url("n1"), env=env)
    assert (made.code, made.err) == (0, "")
    again = kvnode_here("token", "create", "ops", "--role", "full", "--url", cluster.url("n1"), env=env)
    assert again.code == 1
    assert "'ops'" in again.err
    assert create("ops") == 409
    with ThreadPoolExecutor(8) as several:
        assert sorted(several.map(create, ["same"] * 8)) == [200] + [409] * 7, "of a race one wins"
    listed = cluster.request("n1", "GET", TOKENS).json()["tokens"]
    assert sorted(each["name"] for each in listed) == ["ops", "same"]
    # step: a name is free again once its token is revoked, and both changes say in the audit log what they were
    token_id = next(each["id"] for each in listed if each["name"] == "ops")
    assert cluster.request("n1", "DELETE", f"{TOKENS}/{token_id}").status == 200
    assert create("ops", "full") == 200
    assert "(ops, read_only)" in cluster.log("n1")
    assert "(ops, full)" in cluster.log("n1")
