"""Options in front of a command, profiles, and errors as JSON: as users of etcdctl, consul and kubectl expect them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.cli.command import Done, is_one_sentence, kvnode_here
from tests.cli.scripted import Reply, Scripted, always, scripted
from tests.cluster import free_ports


async def run(*args: str, env: dict[str, str] | None = None) -> Done:
    return await asyncio.to_thread(kvnode_here, *args, env=env)


NOBODY = "http://127.0.0.1:{}"


def refusal(status: int, code: str, **headers: str) -> Reply:
    body = {"error": code, "message": f"The words for {code}.", "outcome": "not_applied"}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


PUT = Reply(200, b'{"key":"k","revision":7,"version":1,"created":true}', {"Content-Type": "application/json"})
LEASE = Reply(200, b'{"id":1,"ttl":5,"remaining":5}', {"Content-Type": "application/json"})


def authorization(server: Scripted) -> str | None:
    return server.asked[-1].headers.get("Authorization")


@pytest.mark.parametrize(
    "args",
    [
        ["--url", "{url}", "--token", "t0k3n", "put", "k", "v"],
        ["--token", "t0k3n", "put", "--url", "{url}", "k", "v"],
        ["--url", "http://127.0.0.1:1", "--token", "other", "put", "k", "v", "--url", "{url}", "--token", "t0k3n"],
    ],
)
async def test_options_stand_in_front_of_a_command_or_behind_it(args: list[str]) -> None:
    async with scripted(always(PUT)) as server:
        done = await run(*(arg.format(url=server.url) for arg in args))
        assert (done.code, done.out) == (0, b"OK\n"), done.err
        assert authorization(server) == "Bearer t0k3n"


async def test_options_stand_anywhere_among_the_words_of_a_command_of_two() -> None:
    async with scripted(always(LEASE)) as server:
        for args in (
            ["--url", server.url, "-o", "json", "lease", "grant", "5"],
            ["lease", "--url", server.url, "grant", "5", "-o", "json"],
        ):
            done = await run(*args)
            assert json.loads(done.out)["id"] == 1, done.err


@pytest.mark.parametrize("args", [["--url", "http://n1", "completion", "bash"], ["--timeout", "1", "backup", "file"]])
def test_an_option_in_front_that_the_command_has_not_is_refused(args: list[str]) -> None:
    done = kvnode_here(*args)
    assert done.code == 2
    assert "No such option" in done.err


def profiles(home: Path, text: str) -> dict[str, str]:
    (home / "kvnode").mkdir(parents=True, exist_ok=True)
    (home / "kvnode" / "config.toml").write_text(text)
    return {"XDG_CONFIG_HOME": str(home)}


async def test_a_profile_says_where_a_cluster_is_and_counts_before_the_environment(tmp_path: Path) -> None:
    async with scripted(always(PUT)) as server:
        (tmp_path / "kvnode").mkdir()
        (tmp_path / "kvnode" / "token").write_text("of-the-profile\n")
        env = profiles(tmp_path, f'[profiles.prod]\nurl = ["{server.url}"]\ntoken-file = "token"\ntimeout = 2\n')
        env |= {"KVNODE_URL": "http://127.0.0.1:1", "KVNODE_TOKEN_FILE": str(tmp_path / "no-such-file")}
        for args in (["--profile", "prod", "put", "k", "v"], ["put", "k", "v", "--profile=prod"]):
            done = await run(*args, env=env)
            assert done.code == 0, done.err
            assert authorization(server) == "Bearer of-the-profile"
        done = await run("put", "k", "v", env=env | {"KVNODE_PROFILE": "prod"})
        assert done.code == 0, done.err
        done = await run("--profile", "prod", "--token", "flag", "put", "k", "v", env=env)
        assert (done.code, authorization(server)) == (0, "Bearer flag"), done.err
        done = await run("--profile", "prod", "put", "k", "v", "--url", "http://127.0.0.1:1", env=env)
        assert done.code == 5, "what is given for one call counts before the profile"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no [profiles.prod]"),
        ("[profiles.prod]\ntoken = 't'\n", "'token'"),
        ("[profiles", "is no TOML"),
        (None, "cannot be read"),
    ],
)
def test_a_profile_that_cannot_be_used_is_a_usage_error(tmp_path: Path, text: str | None, words: str) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path)} if text is None else profiles(tmp_path, text)
    done = kvnode_here("--profile", "prod", "get", "k", env=env)
    assert done.code == 2
    assert is_one_sentence(done.err)
    assert words in done.err


async def errors_of(reply: Reply, *args: str) -> tuple[Done, dict[str, object]]:
    async with scripted(always(reply)) as server:
        done = await run("-o", "json", "--timeout", "0.4", "--url", server.url, *args)
    assert done.out == b""
    assert done.err.count("\n") == 1
    return done, json.loads(done.err)


async def test_with_json_an_error_is_one_object_on_stderr() -> None:
    done, error = await errors_of(refusal(404, "lease_not_found"), "lease", "get", "7")
    assert done.code == 3 == error["exit_code"]
    assert error["error"] == "lease_not_found"
    done, error = await errors_of(refusal(404, "token_not_found"), "token", "revoke", "x")
    assert (done.code, error["error"]) == (3, "token_not_found")
    done, error = await errors_of(refusal(412, "precondition_failed", ETag='"7"'), "put", "k", "v", "--if-match", "3")
    assert (done.code, error["current_revision"], error["outcome"]) == (4, 7, "not_applied")
    done, error = await errors_of(refusal(504, "outcome_unknown"), "put", "k", "v")
    assert (done.code, error["outcome"]) == (6, "unknown")
    done, error = await errors_of(Reply(200, b'{"items":[],"revision":3}'), "get", "k")
    assert (done.code, error["error"]) == (3, "key_not_found")


def test_with_json_a_usage_error_is_an_object_as_well() -> None:
    for args in (["get", "-o", "json"], ["-ojson", "get"], ["--output=json", "nonsense"]):
        done = kvnode_here(*args)
        assert (done.code, json.loads(done.err)["error"]) == (2, "usage")
    (port,) = free_ports(1)
    done = kvnode_here("get", "k", "--timeout", "0.3", "--url", NOBODY.format(port), "--output", "json")
    assert json.loads(done.err) == {
        "error": "unreachable",
        "message": f"Nothing answers at http://127.0.0.1:{port}; is the node running?",
        "exit_code": 5,
        "outcome": "not_applied",
    }
    assert done.code == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("transfer", ""), "The node that is to lead has a name"),
        (("dev", "--data-dir", ""), "an empty text names no directory"),
        (("put", "k", "v", "--content-type", "a\nb"), "The content type is one line"),
        (("lock", "", "--", "true"), "The name of a lock is not empty"),
        (("get", "k", "--cert-key", "/key"), "--cert-key is the key of --cert"),
        (("watch", "--exec", " "), "--exec names no command"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(arguments: tuple[str, ...], said: str) -> None:
    done = kvnode_here(*arguments, "--timeout", "1") if arguments[0] != "dev" else kvnode_here(*arguments)
    assert (done.code, done.out) == (2, b"")
    assert said in done.err
    assert "Traceback" not in done.err
