"""Ways in from other stores, and what users of etcdctl and consul type: prefixes, values, a command for each change."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnode.cli import watch
from kvnode.client.watching import Event
from tests.cli.command import COMMAND, Done, environment, is_one_sentence, kvnode_here
from tests.cluster import Cluster, free_ports, wait_until

# What two programs wrote, with names and values changed: etcdctl 3.5 and consul 1.21.
ETCD = (
    '{"header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":5,"raft_term":2},'
    '"kvs":[{"key":"YS8x","create_revision":2,"mod_revision":5,"version":2,"value":"b25l"},'
    '{"key":"YS8y","create_revision":3,"mod_revision":3,"version":1,"value":"AP8=","lease":7587862094713124616},'
    '{"key":"YS8z","create_revision":4,"mod_revision":4,"version":1}],"count":3}\n'
)
CONSUL = """[
	{
		"key": "config/",
		"flags": 0,
		"value": ""
	},
	{
		"key": "config/é",
		"flags": 42,
		"value": "b25l"
	}
]
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Cluster(tmp_path_factory.mktemp("cli"), size=1).start() as cluster:
        yield cluster.url("n1")


def run(url: str, *args: str, stdin: bytes = b"") -> Done:
    return kvnode_here(*args, stdin=stdin, env={"KVNODE_URL": url})


def value(url: str, key: str) -> bytes:
    return run(url, "get", key).out


def test_etcds_keys_come_in_from_a_file_or_a_pipe(url: str, tmp_path: Path) -> None:
    file = tmp_path / "dump.json"
    file.write_text(ETCD)
    done = run(url, "import", "--from", "etcd", str(file))
    assert done.code == 0, done.err
    assert done.err.splitlines() == ["3 keys imported", "kvnode: 1 key had a lease there, and without it here."]
    assert [value(url, f"a/{n}") for n in "123"] == [b"one", b"\0\xff", b""]
    assert run(url, "import", "--from", "etcd", stdin=b'{"header":{"revision":1}}').err == "0 keys imported\n"


def test_consuls_keys_come_in(url: str) -> None:
    done = run(url, "import", "--from", "consul", stdin=CONSUL.encode())
    assert done.code == 0, done.err
    assert "1 key had flags there" in done.err
    assert (value(url, "config/"), value(url, "config/é")) == (b"", b"one")
    assert run(url, "get", "config/").code == 0


@pytest.mark.parametrize("kind", ["etcd", "consul"])
@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"{}", b"null", b'"kvs"', b'{"kvs":5,"header":1}'])
def test_what_no_such_store_writes_is_refused_before_anything_is_set(url: str, kind: str, text: bytes) -> None:
    done = run(url, "import", "--from", kind, stdin=text)
    assert done.code == 2
    assert is_one_sentence(done.err)
    assert "nothing was set" in done.err


@pytest.mark.parametrize(
    "row",
    [
        5,
        None,
        {},
        {"key": 5},
        {"key": "?"},
        {"key": "/w==", "value": "b25l"},
        {"key": "YQ==", "value": "?"},
        {"key": "YQ==", "lease": "x"},
    ],
)
def test_a_row_that_is_no_key_is_named_by_its_number(url: str, row: object) -> None:
    dump = {"header": {}, "kvs": [{"key": "YS8x", "value": "b25l"}, row]}
    done = run(url, "import", "--from", "etcd", stdin=json.dumps(dump).encode())
    assert done.code == 2
    assert is_one_sentence(done.err)
    assert "Key number 2" in done.err


def test_a_key_that_the_node_refuses_is_named_by_its_number(url: str) -> None:
    long = b64encode(b"k" * 1_025).decode()
    done = run(url, "import", "--from", "etcd", stdin=json.dumps({"header": {}, "kvs": [{"key": long}]}).encode())
    assert done.code == 2
    assert "Key number 1:" in done.err


@pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt-get install etcd-server")
def test_a_real_etcds_keys_are_the_same_afterwards(url: str, tmp_path: Path) -> None:
    client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    addresses = {
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"default={peer}",
    }
    etcd = subprocess.Popen(
        ["etcd", "--data-dir", str(tmp_path / "etcd"), *(f"--{name}={url}" for name, url in addresses.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(call: str, **body: str) -> bytes:
        with urllib.request.urlopen(f"{client}/v3/kv/{call}", json.dumps(body).encode(), timeout=5) as answer:
            return answer.read()  # type: ignore[no-any-return]

    def up() -> bool:
        try:
            return bool(ask("range", key="AA==", range_end="AA=="))
        except OSError:
            return False

    pairs = {f"real/{n}-é": os.urandom(n) for n in range(40)}
    try:
        wait_until(up, 20, "etcd answers")
        for key, data in pairs.items():
            ask("put", key=b64encode(key.encode()).decode(), value=b64encode(data).decode())
        everything = ask("range", key="AA==", range_end="AA==")  # the JSON of 'etcdctl get "" --prefix -w json'
    finally:
        etcd.kill()
        etcd.wait(10)
    assert run(url, "import", "--from", "etcd", stdin=everything).code == 0
    listed = json.loads(run(url, "get", "--prefix", "real/", "-o", "json").out)
    assert {each["key"]: b64decode(each["value"]) for each in listed} == pairs


def test_a_prefix_is_listed_with_values_and_deleted_at_once(url: str) -> None:
    for key, data in {
        "p/1": b"one",
        "p/2": b"two\n\tlines\\",
        "p/3": b"\xff\x00",
        "p/4\ttab": "é".encode(),
        "q": b"q",
    }.items():
        assert run(url, "put", key, stdin=data).code == 0
    lines = ["p/1\tone", "p/2\ttwo\\n\\tlines\\\\", "p/3\t\\xff\\x00", "p/4\\ttab\té"]
    assert run(url, "list", "--values", "p/").out.decode().splitlines() == lines
    assert run(url, "get", "--prefix", "p/").out.decode().splitlines() == lines
    assert run(url, "get", "p/1", "--prefix").out == b"p/1\tone\n"
    assert run(url, "delete", "--prefix", "p/").out == b"4\n"
    assert run(url, "delete", "--prefix", "p/", "-o", "json").out == b'{"deleted": 0}\n'
    assert run(url, "list", "p/").out == b""
    assert value(url, "q") == b"q"
    assert run(url, "delete", "--prefix", "").code == 2


def test_json_of_one_key_tells_all_of_it(url: str) -> None:
    assert run(url, "put", "all", "1", "--content-type", "text/x").code == 0
    revision = json.loads(run(url, "put", "all", "2", "--ttl", "60", "--content-type", "text/y", "-o", "json").out)[
        "revision"
    ]
    told = json.loads(run(url, "get", "all", "-o", "json").out)
    assert told["revision"] == told["mod_revision"] == revision == told["create_revision"] + 1
    assert (told["key"], told["version"], told["content_type"], b64decode(told["value"])) == ("all", 2, "text/y", b"2")
    assert 0 < told["ttl"] <= 60
    assert told["lease"]


def test_a_command_runs_for_each_change_in_order(url: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = 'printf "%s %s %s " "$KVNODE_WATCH_EVENT" "$KVNODE_WATCH_KEY" "$KVNODE_WATCH_VALUE"; cat; echo; false'
    assert run(url, "put", "w/before", "0").code == 0
    first = json.loads(run(url, "put", "w/1", "one", "-o", "json").out)["revision"]
    watching = subprocess.Popen(
        [*COMMAND, "--url", url, "watch", "w/", "--from-revision", str(first), "--exec", f"{{ {script}; }} >>{out}"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        for n in (2, 3):
            assert run(url, "put", f"w/{n}", stdin=b"\xff" * n).code == 0
        assert run(url, "delete", "w/1").code == 0
        wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") == 4, 20, "four changes were handled")
    finally:
        watching.send_signal(signal.SIGTERM)
        _, said = watching.communicate(timeout=20)
    lines = out.read_bytes().splitlines()
    assert lines == [b"put w/1 one one", b"put w/2  \xff\xff", b"put w/3  \xff\xff\xff", b"delete w/1  "]
    assert said.decode().count("The command ended with 1 for revision") == 4
    assert watching.returncode == 128 + signal.SIGTERM


def test_a_signal_ends_the_command_that_runs_for_a_change(url: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    first = json.loads(run(url, "put", "long", "1", "-o", "json").out)["revision"]
    script = f"echo $$ >{pids}; sleep 300 & echo $! >>{pids}; wait"
    watching = subprocess.Popen(
        [*COMMAND, "--url", url, "watch", "--key", "long", "--from-revision", str(first), "--exec", script],
        env=environment(),
    )
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, 20, "the command runs")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 128 + signal.SIGINT
    for pid in pids.read_text().split():
        wait_until(lambda pid=pid: not _runs(int(pid)), 10, f"{pid} has ended")


def test_a_command_that_does_not_end_at_sigterm_is_killed(url: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    first = json.loads(run(url, "put", "stubborn", "1", "-o", "json").out)["revision"]
    script = f"trap '' TERM; sh -c 'sleep 300 & echo $! >{pids}; wait' & wait"
    watching = subprocess.Popen(
        [*COMMAND, "--url", url, "watch", "--key", "stubborn", "--from-revision", str(first), "--exec", script],
        env=environment(),
    )
    wait_until(lambda: pids.exists() and pids.read_text().strip(), 20, "the command runs")
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(20) == 128 + signal.SIGTERM
    wait_until(lambda: not _runs(int(pids.read_text())), 10, "it has ended")


async def test_a_command_that_is_ended_while_it_starts_leaves_nothing_running() -> None:
    event = Event("put", "started-and-ended", 3, b"v")
    for turns in range(12):
        running = asyncio.create_task(watch._run("sleep 300", event))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _runs(pid) and _is_of(pid, event)]
        assert not left, turns


def _is_of(pid: int, event: Event) -> bool:
    try:
        return f"KVNODE_WATCH_KEY={event.key}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
