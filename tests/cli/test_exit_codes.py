"""Every exit code of the client commands, against answers as a node gives them: the table in this process, where a
command costs a tenth of what a process of its own does, and one of each kind in a real one."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest

from tests.cli.command import COMMAND, Done, environment, is_one_sentence, kvnode_here, run_kvnode
from tests.cli.scripted import Reply, Script, always, break_off, say_nothing, scripted
from tests.cluster import free_ports


def refusal(status: int, code: str, outcome: str | None = None, **headers: str) -> Reply:
    body = {"error": code, "message": f"The words for {code}."} | ({"outcome": outcome} if outcome else {})
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


async def against(script: Script, *args: str, stdin: bytes = b"") -> Done:
    async with scripted(script) as server:
        return await asyncio.to_thread(kvnode_here, *args, "--url", server.url, "--timeout", "0.4", stdin=stdin)


@pytest.mark.parametrize(
    ("args", "reply", "code"),
    [
        (["get", "k"], refusal(404, "key_not_found"), 3),
        (["delete", "k"], refusal(404, "key_not_found", "not_applied"), 3),
        (["put", "k", "v", "--if-match", "3"], refusal(412, "precondition_failed", "not_applied", ETag='"7"'), 4),
        (["get", "k"], refusal(503, "no_leader"), 5),
        (["put", "k", "v"], refusal(503, "overloaded", "not_applied"), 5),
        (["put", "k", "v"], refusal(503, "some_later_code", "not_applied"), 5),
        (["put", "k", "v"], refusal(504, "outcome_unknown", "unknown"), 6),
        (["put", "k", "v"], refusal(500, "internal", "unknown"), 6),
        (["put", "k", "v"], Reply(504, b"<html>a balancer's own page</html>"), 6),
        (["put", "k", "v"], Reply(502, b"<html>a balancer's own page</html>"), 6),
        # A balancer's own words: it may say 503 where the node that had the request went away (Envoy does).
        (["put", "k", "v"], Reply(503, b"<html>a balancer's own page</html>"), 6),
        (["put", "k", "v"], Reply(503, b'{"error":"busy","message":"Another program."}'), 6),
        (["get", "k"], Reply(503, b"<html>a balancer's own page</html>"), 5),
        (["get", "k"], Reply(504, b"<html>a balancer's own page</html>"), 5),
        (["put", "k", "v"], refusal(403, "forbidden", "not_applied"), 7),
        (["get", "k"], refusal(401, "unauthorized"), 7),
        (["put", "k", "v"], refusal(413, "too_large", "not_applied"), 1),
        (["put", "k", "v"], refusal(507, "disk_full", "not_applied"), 1),
        (["transfer", "n9"], refusal(409, "conflict", "not_applied"), 1),
        (["get", "k"], refusal(500, "internal"), 1),
        (["get", "k"], Reply(404, b"<html>not a node</html>"), 1),
        (["get", "k"], Reply(200, b"no revision"), 1),
        (["list"], Reply(200, b"[]"), 1),
        (["list"], Reply(200, b'{"items": [{}]}'), 1),
        (["list"], Reply(200, b"[" * 100_000), 1),
        (["status"], Reply(200, b"{}"), 1),
        (["status"], Reply(200, b'{"node_id": 1, "version": 1, "timestamp": 1, "groups": [{"members": 5}]}'), 1),
        (["leader"], Reply(200, b'{"node_id": 1, "version": 1, "timestamp": 1, "groups": []}'), 1),
        (["drain"], Reply(200, b"{}"), 1),
        (["member", "list"], Reply(200, b'{"members": [{"id": "n1"}]}'), 1),
        (["token", "list"], Reply(200, b'{"tokens": 5}'), 1),
        (["token", "create", "a"], Reply(200, b"{}"), 1),
        (["session-key", "show"], Reply(200, b"{}"), 1),
        (["put", ""], refusal(400, "bad_request", "not_applied"), 2),
        (["put", "k", "v", "--idempotency-key", "x"], refusal(400, "idempotency_key_reused", "not_applied"), 2),
    ],
)
async def test_a_refusal_is_one_sentence_and_its_exit_code(args: list[str], reply: Reply, code: int) -> None:
    done = await against(always(reply), *args)
    assert done.code == code, done.err
    assert is_one_sentence(done.err), done.err
    assert done.out == b""


async def test_who_shows_no_token_is_given_the_option_for_it() -> None:
    asked = always(refusal(401, "unauthorized"))
    assert (await against(asked, "get", "k")).err.endswith("On the command line: --token-file FILE, or KVNODE_TOKEN.\n")
    assert "--token-file" not in (await against(asked, "get", "k", "--token", "old")).err


async def test_a_write_that_got_no_answer_has_an_unknown_outcome() -> None:
    assert (await against(break_off, "put", "k", "v")).code == 6
    assert (await against(say_nothing, "delete", "k")).code == 6


async def test_a_read_that_got_no_answer_is_merely_unavailable() -> None:
    assert (await against(break_off, "get", "k")).code == 5
    assert (await against(say_nothing, "list")).code == 5


async def test_nobody_there_is_unavailable_and_nothing_was_applied() -> None:
    first, second = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    done = await run_kvnode("put", "k", "v", "--url", f"{first},{second}", "--timeout", "0.5")
    assert done.code == 5
    assert is_one_sentence(done.err)
    assert "Nothing answers" in done.err


@pytest.mark.parametrize(
    "args",
    [
        ["putt", "k"],
        ["get"],
        ["get", "k", "--nope"],
        ["put", "k", "v", "--if-match", "0"],
        ["put", "k", "v", "--if-match", "1", "--if-absent"],
        ["get", "k", "--url", "ftp://127.0.0.1:1"],
        ["get", "k", "--url", ","],
        ["get", "k", "--timeout", "0"],
        ["serve", "--http", "nowhere"],
        ["serve", "--nope"],
        ["dev", "--nodes", "2"],
    ],
)
async def test_wrong_usage_is_one_sentence_and_two(args: list[str]) -> None:
    done = await run_kvnode(*args)
    assert done.code == 2, done.err
    assert is_one_sentence(done.err), done.err


async def test_put_sends_the_bytes_and_the_conditions() -> None:
    answer = Reply(200, b'{"key":"k","revision":5,"version":2,"created":false}', {"Content-Type": "application/json"})
    async with scripted(always(answer)) as server:
        env = {"KVNODE_URL": server.url}
        by_argument = await run_kvnode("put", "a/b", "v", "--if-match", "4", env=env)
        by_stdin = await run_kvnode("put", "k", "-", "--if-absent", stdin=b"\x00\xff\n", env=env)
        omitted = await run_kvnode("put", "k", "-o", "json", stdin=b"", env=env)
    first, second, third = server.asked
    assert (first.method, first.raw_path, first.body, first.headers["If-Match"]) == ("PUT", "/v1/kv/a%2Fb", b"v", '"4"')
    assert (second.body, second.headers["If-None-Match"]) == (b"\x00\xff\n", "*")
    assert third.body == b""
    assert (by_argument.out, by_stdin.out) == (b"OK\n", b"OK\n")
    assert json.loads(omitted.out) == {"key": "k", "revision": 5, "version": 2, "created": False}


async def test_a_key_of_the_callers_own_is_sent_as_it_is() -> None:
    answer = Reply(200, b'{"key":"k","revision":5,"version":2,"created":false,"deleted":1}')
    async with scripted(always(answer)) as server:
        for args in (["put", "k", "v"], ["delete", "k"]):
            assert (await run_kvnode(*args, "--idempotency-key", "order 7", "--url", server.url)).code == 0
    assert [asked.headers["Idempotency-Key"] for asked in server.asked] == ["order 7"] * 2


async def test_get_writes_the_value_and_nothing_else_to_a_pipe() -> None:
    headers = {"ETag": '"4"', "Kvnode-Revision": "9", "Content-Type": "image/png"}
    async with scripted(always(Reply(200, b"\x00\xffno newline", headers))) as server:
        plain = await run_kvnode("get", "k", "--stale", "--url", server.url)
    assert plain.out == b"\x00\xffno newline"
    assert [asked.raw_path for asked in server.asked] == ["/v1/kv/k?consistency=stale"]


async def test_get_as_json_asks_for_all_that_a_node_knows_of_the_key() -> None:
    item = {
        "key": "k",
        "value": "AP8=",
        "content_type": "image/png",
        "create_revision": 2,
        "mod_revision": 4,
        "version": 3,
    }
    page = json.dumps({"items": [item], "revision": 9, "watch_from": 10}).encode()
    async with scripted(always(Reply(200, page))) as server:
        done = await run_kvnode("get", "k", "-o", "json", "--url", server.url)
    assert [asked.raw_path for asked in server.asked] == [
        "/v1/kv?prefix=&limit=1&consistency=linearizable&start=k&end=k%00"
    ]
    assert json.loads(done.out) == item | {"revision": 9}


async def test_list_follows_the_cursor_to_the_end() -> None:
    def page(keys: list[str], cursor: str | None) -> Reply:
        items = [{"key": key, "value": "", "create_revision": 1, "mod_revision": 1, "version": 1} for key in keys]
        return Reply(200, json.dumps({"items": items, "revision": 3} | ({"cursor": cursor} if cursor else {})).encode())

    replies = iter([page(["a", "b é"], "next&page"), page(["c"], None)])

    async def script(asked: object) -> Reply:
        return next(replies)

    async with scripted(script) as server:
        done = await run_kvnode("list", "p/", "--url", server.url)
    assert done.out.decode() == "a\nb é\nc\n"
    assert "prefix=p%2F" in server.asked[0].raw_path
    assert "cursor=next%26page" in server.asked[1].raw_path


CLUSTER = {
    "node_id": "n2",
    "version": "0.1.0",
    "timestamp": "2026-01-01T00:00:00.000Z",
    "groups": [
        {
            "leader_id": "n1",
            "term": 4,
            "members": [
                {
                    "id": "n1",
                    "role": "leader",
                    "applied_index": 9,
                    "lag": 0,
                    "reachable": True,
                    "http": "http://a:1",
                    "raft": "a:2",
                },
                {
                    "id": "n2",
                    "role": "unknown",
                    "applied_index": None,
                    "lag": None,
                    "reachable": False,
                    "http": None,
                    "raft": "b:2",
                },
            ],
        }
    ],
}


async def test_status_shows_members_that_cannot_be_reached() -> None:
    done = await against(always(Reply(200, json.dumps(CLUSTER).encode())), "status")
    assert done.code == 0
    _, leader, lost = done.out.decode().splitlines()
    assert leader.split("\t") == ["n1", "leader", "4", "9", "0", "yes", "http://a:1", "a:2", "-"]
    assert lost.split("\t") == ["n2", "unreachable", "-", "-", "-", "no", "-", "b:2", "-"]


async def test_leader_prints_its_name_and_url() -> None:
    done = await against(always(Reply(200, json.dumps(CLUSTER).encode())), "leader")
    assert (done.code, done.out) == (0, b"n1\thttp://a:1\n")


async def test_without_a_leader_status_and_leader_say_so_with_five() -> None:
    leaderless = json.loads(json.dumps(CLUSTER))
    leaderless["groups"][0]["leader_id"] = None
    reply = always(Reply(200, json.dumps(leaderless).encode()))
    assert (await against(reply, "leader")).code == 5
    status = await against(reply, "status")
    assert status.code == 5
    assert status.out.startswith(b"node\trole")


async def test_a_reader_that_has_seen_enough_gets_no_complaint() -> None:
    items = [{"key": "k" * 900 + str(i), "create_revision": 1, "mod_revision": 1, "version": 1} for i in range(1_000)]
    async with scripted(always(Reply(200, json.dumps({"items": items, "revision": 1}).encode()))) as server:
        assert await asyncio.to_thread(list_to_head, server.url) == b""


def list_to_head(url: str) -> bytes:
    """What `kvnode list` says on stderr when its reader closes after the first bytes."""
    command = [*COMMAND, "list", "--url", url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        return process.stderr.read()


@pytest.mark.parametrize(
    "args", [["get", "k", "--timeout", "nan"], ["lock", "x", "--wait", "inf", "--", "true"], ["bench", "--rate", "nan"]]
)
def test_what_is_no_number_to_count_with_is_refused(args: list[str]) -> None:
    done = kvnode_here(*args)
    assert (done.code, is_one_sentence(done.err)) == (2, True), done.err
