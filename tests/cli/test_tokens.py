"""`kvnode token create`: a name is given once, and a token that nobody asks for is said to be one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cli.command import kvnode_here
from tests.cluster import Cluster, wait_until

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
    assert "(ops, read)" in cluster.log("n1")
    assert "(ops, full)" in cluster.log("n1")


def test_a_token_with_prefixes_is_made_changed_rotated_and_revoked_by_name(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    first = os.urandom(20).hex()
    (tmp_path / "token").write_text(first)
    (tmp_path / "token").chmod(0o600)
    cluster = make_cluster(size=1, args=["--token-file", str(tmp_path / "token")], token=first).start()
    url = cluster.url("n1")

    def run(*args: str, token: str = first) -> tuple[int, str, str]:
        ran = kvnode_here(*args, "--url", url, env={"KVNODE_TOKEN": token})
        return ran.code, ran.out.decode().rstrip("\n"), ran.err

    def create(*args: str) -> tuple[int, str, str]:
        return run("token", "create", "app", "--role", "write", "--prefix", "app/", "--prefix", "b/", *args)

    wait_until(lambda: create("--expires", "90d")[0] == 0, 10.0, "the cluster reaches feature level 1")
    assert create()[0] == 1, "the name is taken"
    _, listed, _ = run("token", "list", "-o", "json")
    (made,) = json.loads(listed)["tokens"]
    assert (made["prefixes"], made["role"]) == (["app/", "b/"], "write")
    assert made["expires_ms"] - made["created_ms"] == 90 * 86_400_000
    # step: rotated without a gap, then without grace
    _, secret, _ = run("token", "rotate", "app")
    assert run("put", "app/1", "x", token=secret)[0] == 0
    _, newer, _ = run("token", "rotate", "app", "--grace", "1h")
    assert [run("get", "app/1", token=each)[0] for each in (secret, newer)] == [0, 0]
    _, newest, _ = run("token", "rotate", "app", "--grace", "0")
    assert [run("get", "app/1", token=each)[0] for each in (secret, newer, newest)] == [7, 7, 0]
    # step: outside of its prefixes
    refused = run("put", "c/1", "x", token=newest)
    assert refused[0] == 7
    assert '"c/1"' in refused[2]
    assert run("list", token=newest)[0] == 7
    assert run("list", "app/", token=newest) == (0, "app/1", "")
    # step: changed, and revoked by its name
    assert run("token", "update", "app", "--role", "read", "--prefix", "app/", "--expires", "never")[0] == 0
    assert run("put", "app/1", "y", token=newest)[0] == 7
    columns = run("token", "list")[1].split("\t")
    assert (columns[1], columns[3], columns[4], columns[5]) == ("read", "app", "app/", "-")
    assert columns[6].startswith("20"), "when it was last used"
    assert run("token", "update", "app")[0] == 2
    assert run("token", "revoke", "app") == (0, made["id"], "")
    for command in (("revoke", "app"), ("rotate", "app"), ("update", "app", "--role", "read")):
        assert run("token", *command)[0] == 3, command
    for line in (
        f"made token {made['id']} (app, write, app/, b/)",
        f"rotated token {made['id']} (app, write, app/, b/), with 0 s of grace",
        f"changed token {made['id']} (app, read, app/)",
        f"revoked token {made['id']} (app, read, app/)",
    ):
        wait_until(lambda line=line: line in cluster.log("n1"), 5.0, line)  # type: ignore[misc]
