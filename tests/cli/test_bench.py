"""kvnode bench on a real node: what it counts and prints, and that it leaves nothing behind. No figure is asserted."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import random
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from kvnode.client import Access
from kvnode.errors import BadRequest
from kvnode.http import batch
from kvnode.state import commands
from kvnode.tools.bench import bounds, wire
from kvnode.tools.bench.latencies import PERCENTILES, Latencies
from kvnode.tools.bench.load import Load, Plan
from kvnode.tools.bench.place import place
from kvnode.tools.bench.workload import Workload
from tests.certificates import Authority
from tests.cli.command import COMMAND, Done, environment, is_one_sentence, kvnode_here, run_kvnode
from tests.cli.scripted import Asked, Reply, scripted
from tests.cluster import Cluster, free_ports, wait_until


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bench"), size=1).start() as cluster:
        yield cluster


def bench(node: Cluster, *args: str) -> Done:
    return kvnode_here("bench", *args, env={"KVNODE_URL": node.url("n1")})


def keys_left(node: Cluster, prefix: str = "") -> int:
    count: int = node.request("n1", "GET", f"/v1/kv?prefix={prefix}&count=only").json()["count"]
    return count


@pytest.mark.parametrize(
    ("args", "kinds", "writes"),
    [
        (["put"], {"put"}, 1),
        (["get", "--consistency", "stale"], {"get"}, 0),
        (["mixed", "--reads", "50", "--rate", "5000"], {"get", "put"}, None),
        (["probe"], {"probe"}, 0),
        (["batch", "--batch-size", "7", "--value-size", "0"], {"batch"}, 7),
    ],
)
def test_every_request_is_counted_and_the_keys_are_gone(
    node: Cluster, args: list[str], kinds: set[str], writes: int | None
) -> None:
    node.put("kvnode-bench/mine", b"somebody's")
    before = node.status("n1")["members"][0]["applied_index"]
    done = bench(node, *args, "-n", "200", "-c", "5", "--keys", "40", "-o", "json")
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    assert (found["workload"], found["clients"], found["interrupted"]) == (args[0], 5, False)
    assert (found["requests"], found["succeeded"], found["failed"], found["errors"]) == (200, 200, 0, {})
    assert set(found["operations"]) == kinds
    assert sum(each["requests"] for each in found["operations"].values()) == 200
    latency = found["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    assert found["requests_per_s"] > 0 < found["elapsed_s"]
    assert 0 < found["generator_busy"] <= 1.5
    if writes is not None:
        assert found["writes_per_s"] == pytest.approx(found["requests_per_s"] * writes, rel=0.01)
    assert found["deleted"] == 40 if kinds & {"get"} else found["deleted"] in range(41)
    assert not found["keys_may_be_left"]
    assert keys_left(node, "kvnode-bench/") == 1
    if writes == 0 and kinds == {"probe"}:
        assert node.status("n1")["members"][0]["applied_index"] - before <= 2


def test_keys_are_kept_on_request_and_the_text_says_what_was_measured(node: Cluster) -> None:
    done = bench(node, "-n", "50", "-c", "2", "--keys", "3", "--value-size", "9", "--prefix", "kept/é%07d ", "--keep")
    assert (done.code, done.err) == (0, "")
    first, names, row, kept = done.out.decode().splitlines()
    assert first.startswith("put, 2 clients, 3 keys, 9-byte values, ")
    assert {"requests/s", "p50", "p90", "p99", "p99.9", "max"} <= set(names.split())
    assert (row.split()[0], *row.split()[2:4]) == ("put", "50", "0")
    root = kept.removeprefix("kept: the keys that begin with ")
    assert root.startswith("kept/é%07d ")
    assert keys_left(node, "kept/") == 3
    assert len(node.get(f"{root}0000001") or b"") == 9
    done = bench(node, "batch", "-n", "1", "-c", "1", "--keys", "9", "--prefix", "kept/é%07d ", "--keep")
    assert done.code == 0, done.err
    assert keys_left(node, "kept/") == 12


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["scan"], "scan"),
        (["--keys", "1000000", "--value-size", "1048576"], "over 1 GiB"),
        (["batch", "--batch-size", "1000", "--value-size", "100000"], "8 MiB"),
        (["--duration", "10"], "unit"),
        (["--duration", "2h"], "unit"),
        (["--prefix", "p" * 1_001], "1,000 bytes"),
        (["--clients", "0"], "--clients"),
        (["--url", "nowhere"], "no URL"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(node: Cluster, args: list[str], why: str) -> None:
    done = bench(node, *args)
    assert (done.code, done.out) == (2, b"")
    assert why in done.err
    assert is_one_sentence(done.err)


def refusal(status: int, code: str, outcome: str = "not_applied") -> Reply:
    body = {"error": code, "message": "Words.", "outcome": outcome}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def test_a_write_that_failed_hides_none_of_its_batch_that_is_in_doubt() -> None:
    outcomes = ({"key": "a"}, {"error": "too_large", "outcome": "not_applied"}, {"error": "x", "outcome": "unknown"})
    body = json.dumps({"results": outcomes}).encode()
    assert wire.refusal(b"HTTP/1.1 200 OK", body) == ("too_large", True)


async def test_what_fails_is_counted_by_its_code() -> None:
    """The load's own requests carry no idempotency key, the first key's and those that clean up do."""
    answers = [
        *(refusal(403, "forbidden"), refusal(404, "not_found"), refusal(504, "outcome_unknown", "unknown"), None),
        *(Reply(502, b"<html>a balancer's own page</html>"), Reply(200, b"", {"Connection": "close"}), Reply(200, b"")),
    ]
    turns = iter(answers)

    async def script(asked: Asked) -> Reply | None:
        if "Idempotency-Key" not in asked.headers:
            return next(turns)
        written: dict[str, Any] = {"key": "k", "revision": 1, "version": 1, "created": True}
        return Reply(200, json.dumps({"deleted": 2} if asked.method == "DELETE" else written).encode())

    async with scripted(script) as server:
        args = ("-n", str(len(answers)), "-c", "1", "--keys", "1000", "-o", "json", "--token", "secret")
        done = await run_kvnode("bench", *args, "--url", server.url)
    assert done.code == 1
    found = json.loads(done.out)
    assert (found["requests"], found["succeeded"], found["failed"], found["outcome_unknown"]) == (7, 2, 5, 3)
    codes = ("forbidden", "not_found", "outcome_unknown", "connection_lost", "status_502")
    assert found["errors"] == dict.fromkeys(codes, 1)
    assert (found["deleted"], found["keys_may_be_left"]) == (2, True)
    assert is_one_sentence(done.err)
    assert "unknown outcome" in done.err
    assert {each.headers["Authorization"] for each in server.asked} == {"Bearer secret"}


async def test_it_asks_by_tls_and_gives_up_what_is_not_answered_in_time(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.sign("n1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "n1.pem", tmp_path / "n1-key.pem")
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                if len(asked) < 3:  # in two pieces
                    writer.write(b"HTTP/1.1 200 OK\r\nCONTENT-length: 4\r\n\r\nva")
                    await writer.drain()
                    await asyncio.sleep(0)
                    writer.write(b"lu")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/behind/a/path"
    workload = Workload("get", "é/", keys=1, value_bytes=0, stale=True)
    load = Load(Plan(1, 20.0, 3, None, timeout_s=0.2), workload, [place(url, Access("secret", authority.ca))])
    await load.run(lambda load: None)
    server.close()
    outcomes = load.tally.by_kind["get"]
    assert (outcomes.succeeded, dict(outcomes.errors), outcomes.unknown) == (2, {"timed_out": 1}, 0)
    assert asked[0].startswith(
        b"GET /behind/a/path/v1/kv/%C3%A9%2F0000000?consistency=stale HTTP/1.1\r\nHost: 127.0.0.1:"
    )
    assert b"\r\nAuthorization: Bearer secret\r\n" in asked[0]
    with pytest.raises(BadRequest):
        place(url, Access("", tmp_path / "none"))


async def test_what_is_waited_for_in_vain_at_the_end_lowers_no_rate() -> None:
    connections = iter(range(2))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent = next(connections) == 1
        with suppress(asyncio.IncompleteReadError, OSError):
            while await reader.readuntil(b"\r\n\r\n"):
                if not silent:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    load = Load(Plan(2, 0.3, None, 100.0, timeout_s=1.5), Workload("probe", "", 1, 0), [place(url, Access())])
    began = asyncio.get_running_loop().time()
    await load.run(lambda load: None)
    server.close()
    assert asyncio.get_running_loop().time() - began > 1.4
    assert load.tally.by_kind["probe"].errors == {"timed_out": 1}
    assert 0.3 <= load.elapsed_s < 1.0


async def test_who_may_not_write_is_told_so_before_there_is_any_load() -> None:
    async def script(asked: Asked) -> Reply:
        return Reply(503, b"not leader\n") if asked.raw_path.startswith("/admin") else refusal(403, "forbidden")

    async with scripted(script) as server:
        get, probe = await asyncio.gather(
            *(run_kvnode("bench", name, "--url", server.url) for name in ("get", "probe"))
        )
    assert (get.code, probe.code, get.out, probe.out, len(server.asked)) == (7, 5, b"", b"", 2)
    assert is_one_sentence(get.err)
    assert is_one_sentence(probe.err)
    assert "name all nodes with --url" in probe.err


def test_a_leader_that_nobody_can_be_asked_for_is_told_why() -> None:
    done = kvnode_here("bench", "probe", "--timeout", "1", "--url", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (done.code, is_one_sentence(done.err)) == (5, True)
    assert "Nothing answers" in done.err


class OnTerminal:
    """A put load without end, its stderr on a terminal: `shown` is what that shows."""

    def __init__(self, node: Cluster) -> None:
        self._terminal, theirs = pty.openpty()
        self.shown = bytearray()
        command = [*COMMAND, "bench", "put", "--duration", "50s", "-c", "4", "--url", node.url("n1"), "-o", "json"]
        env = environment({"TERM": "xterm", "COLUMNS": "120"})
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=env)
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._terminal, 4_096):
                self.shown.extend(piece)
        except OSError:  # what a terminal says when nobody is at its other end any more
            pass

    def __enter__(self) -> OnTerminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._reader.join(10)
        os.close(self._terminal)

    def await_shown(self, text: bytes) -> None:
        wait_until(lambda: text in self.shown, 20, f"{text!r} on the terminal")

    def interrupt(self) -> Any:
        """What it printed at its end."""
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=20)
        self._reader.join(10)
        return json.loads(out)


def test_ctrl_c_ends_it_with_the_figures_so_far_and_the_keys_are_gone(node: Cluster) -> None:
    with OnTerminal(node) as load:
        load.await_shown(b"p99")
        found = load.interrupt()
        assert load.process.returncode == 130
    assert found["interrupted"]
    assert found["requests"] == found["succeeded"] > 0
    assert found["deleted"] > 0
    assert not found["keys_may_be_left"]
    assert b"measuring" in load.shown
    assert keys_left(node, "kvnode-bench/") <= 1


def test_a_node_that_is_killed_leaves_counted_errors_and_a_word_about_the_keys(node: Cluster) -> None:
    with OnTerminal(node) as load:
        load.await_shown(b"p99")
        node.kill("n1")
        load.await_shown(b" failed")
        found = load.interrupt()
        assert load.process.returncode == 1
    assert found["succeeded"] > 0
    assert set(found["errors"]) <= {"connection_lost", "cannot_connect"}
    assert 1 <= found["errors"]["connection_lost"] <= 4
    assert found["failed"] == sum(found["errors"].values()) == found["requests"] - found["succeeded"]
    assert found["keys_may_be_left"]
    assert f"The keys that begin with {found['prefix']!r} could not all be deleted".encode() in load.shown


def test_percentiles_are_those_of_the_sorted_list_to_within_one_in_a_hundred() -> None:
    seeded, latencies, halves = random.Random(7), Latencies(), (Latencies(), Latencies())
    exact_us = sorted(int(seeded.lognormvariate(8, 2)) for _ in range(5_000))
    for i, microseconds in enumerate(exact_us):
        halves[i % 2].record((microseconds + 0.5) / 1_000_000)
    for half in halves:
        latencies.add(half)
    summary = latencies.summary_ms()
    for name, share in PERCENTILES.items():
        exact = exact_us[ceil(share * len(exact_us)) - 1]
        assert exact <= summary[name] * 1000 <= exact * 1.01 + 1
    assert summary["max"] * 1000 == exact_us[-1]
    assert summary["mean"] * 1000 == pytest.approx(sum(exact_us) / len(exact_us), rel=0.01)
    assert Latencies().summary_ms() == {}


def test_the_bounds_are_those_of_a_node() -> None:
    assert bounds.VALUE_BYTES_MAX == commands.VALUE_BYTES_MAX
    assert bounds.BATCH_SIZE_MAX == batch.OPERATIONS_MAX
    assert bounds.BATCH_BYTES_MAX < batch.BODY_BYTES_MAX
    assert bounds.ROOT_BYTES_MAX < commands.KEY_BYTES_MAX
