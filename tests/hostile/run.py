"""Everything that a stranger or a careless client can send, at a real cluster of three, and what must hold meanwhile.

    python -m tests.hostile.run --seconds 120 --seed 1

One process attacks, drawing kind after kind from the seed; this one writes as an honest client does and asks the leader
probe of each node. It holds that no process ends, that nobody is elected, that no node takes more than 400 MB, that
each probe is answered within a second, that honest writes go on, and that the store has what was accepted and nothing
of what was refused.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgpack

from kvnode.storage import backup
from tests.cluster import LEADER_PROBE, Answer, Cluster, key_path, request
from tests.hostile import loaders
from tests.hostile.crafted import file_of
from tests.processes import test_fuzz_ports as fuzz

SECRET: Final = "a secret of the cluster under attack"
TOKEN: Final = "the-token-of-the-cluster-under-attack"
RSS_MB_MAX: Final = 400
PROBE_S: Final = 1.0
WRITE_GAP_S: Final = 5.0  # between two honest writes that are accepted: a node's own deadline for one
MACHINE_LATE_S: Final = 0.2  # a third of the shortest election timeout
LOG_KB_MAX: Final = 128  # of each node, for two minutes of floods, without the audit log
# Each action of an administrator has its line in the audit log, and these attacks use an administrator's token: no more
# lines than they made such requests in one go, and no long one.
AUDITED: Final = {"crafted_backups": 1, "slow_readers": 60, "slow_bodies": 60}
AUDIT_LINE_BYTES_MAX: Final = 400
AUDIT_LINE: Final = re.compile(r"\S+ info +audit: ")
ATTACKER: Final = "127.0.0.2"
ATTACKERS: Final = 3  # kinds at a time
BURST_S: Final = 2.0
VALUE_BYTES: Final = 1_048_576

Address = tuple[str, int]
# Tries by kind, keys of refused writes, what was wrong, and when each kind began.
Found = tuple[Counter[str], list[str], list[str], list[tuple[float, str]]]


# --- attacks --------------------------------------------------------------------------------------------


@dataclass
class Target:
    """One node, as an attacker sees it."""

    http: Address
    raft: Address
    cluster_id: bytes


@dataclass
class Findings:
    """What the attacker saw that the verdict needs."""

    tries: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)  # keys whose write was answered with a definite refusal
    wrong: list[str] = field(default_factory=list)
    bursts: list[tuple[float, str]] = field(default_factory=list)  # when each kind began


Attack = Callable[[Target, random.Random, Findings], None]


def say(target: Target, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    with_token = {
        "Authorization": f"Bearer {TOKEN}",
        **{name.replace("_", "-"): text for name, text in headers.items()},
    }
    return request(target.http, method, path, body, with_token, 5.0)


def head(method: str, path: str, length: int = 0, token: bool = True) -> bytes:
    credential = f"Authorization: Bearer {TOKEN}\r\n" if token else ""
    lines = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{credential}Content-Type: application/json\r\n"
    return f"{lines}Content-Length: {length}\r\n\r\n".encode()


@contextmanager
def connections(address: Address, count: int, raw: bytes, receive_bytes: int = 0) -> Iterator[list[socket.socket]]:
    """So many that were sent `raw` and are held."""
    with ExitStack() as stack:
        held = []
        for _ in range(count):
            each = stack.enter_context(socket.socket())
            if receive_bytes:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            each.settimeout(2.0)
            try:
                each.bind((ATTACKER, 0))  # whose share of the connections is not the honest client's
                each.connect(address)
                each.sendall(raw)
            except OSError:
                continue
            held.append(each)
        yield held


def crafted_backups(target: Target, draw: random.Random, findings: Findings) -> None:
    """Files that no loader may take: what is accepted elsewhere is held in tests/hostile/loaders.py."""
    parts = loaders.Parts(draw.choice(loaders.sound()))
    for _ in range(draw.randint(1, 4)):
        loaders.mutated(draw, parts)
    revision = draw.choice((parts.header[0] if parts.header else 1, 1, 30, 2**53, 2**64 - 1))
    revision = revision if type(revision) is int and 0 <= revision < 2**64 else 1
    try:
        file = file_of(parts.chunks(draw.randint(1, 3)), revision, len(parts.sections[2]))
    except (OverflowError, ValueError):
        return  # what msgpack cannot hold is in no file
    try:
        backup.chunks_of(file)
    except backup.Damaged:
        pass
    except Exception as error:
        findings.wrong.append(f"a crafted backup raises {error!r} in the loader")
        return
    else:
        return  # a sound one would replace the honest client's keys
    answer = say(target, "POST", "/admin/api/v1/restore", file, Content_Type="application/octet-stream")
    if answer.status not in (400, 413, 429, 503):
        findings.wrong.append(f"a crafted backup is answered with {answer.status} {answer.body[:200]!r}")


def large_json(target: Target, draw: random.Random, findings: Findings) -> None:
    size = draw.choice((65_536, 1_048_576, 8_388_000))
    piece = draw.choice((b'{"a":{}},', b"[],", b"{},", b"1e1,", b'"\\u00e9",', b"[[[[]]]],"))
    body = b'{"operations":[' + piece * (size // len(piece)) + b"{}]}"
    if draw.random() < 0.1:
        body = b"[" * 100_000
    answer = say(target, "POST", draw.choice(("/v1/txn", "/v1/batch")), body, Content_Type="application/json")
    if answer.status < 400:
        findings.wrong.append(f"JSON that is no request is answered with {answer.status}")


def greedy_transactions(target: Target, draw: random.Random, findings: Findings) -> None:
    gets = [{"get": {"key": "hostile/large"}}] * 128
    body = json.dumps({"compare": [], "success": gets, "failure": []}).encode()
    with connections(target.http, draw.randint(1, 20), head("POST", "/v1/txn", len(body)) + body):
        time.sleep(draw.random())


def slow_readers(target: Target, draw: random.Random, findings: Findings) -> None:
    path = draw.choice(("/v1/kv?prefix=hostile/&limit=1000", "/v1/kv/hostile/large", "/admin/api/v1/backup"))
    with connections(target.http, draw.randint(10, 60), head("GET", path), 2_048):
        time.sleep(BURST_S)


def slow_bodies(target: Target, draw: random.Random, findings: Findings) -> None:
    path = draw.choice(("/v1/batch", "/v1/txn", "/admin/api/v1/restore", "/v1/kv/hostile/slow"))
    method = "PUT" if path.startswith("/v1/kv") else "POST"
    length = 1_000_000 if method == "PUT" else 8_000_000
    raw = head(method, path, length) + b"[" * draw.choice((0, 1_000, 100_000, 900_000))
    with connections(target.http, draw.randint(10, 60), raw) as held:
        for _ in range(4):
            time.sleep(BURST_S / 4)
            for each in held:
                try:
                    each.send(b"[")
                except OSError:
                    pass


def hoarders(target: Target, draw: random.Random, findings: Findings) -> None:
    raw = draw.choice((b"", b"G", head("GET", "/livez", token=False), head("GET", "/v1/watch?prefix=nothing")))
    with connections(draw.choice((target.http, target.raft)), 300, raw):
        time.sleep(BURST_S)


def log_flood(target: Target, draw: random.Random, findings: Findings) -> None:
    to = f"{draw.random()}\n\x1b[2J" + "A" * 7_000
    hello = msgpack.packb([draw.choice((2, 4)), target.cluster_id, "n2", to, b"n" * 16])
    for address, raw in (
        (target.raft, b"KVN1" + struct.pack(">I", len(hello)) + hello),
        (target.http, head("GET", f"/v1/kv/{draw.random()}" + "A" * 6_000, token=False)),
    ):
        with connections(address, 1, raw) as held:
            for each in held:
                try:
                    each.recv(65_536)
                except OSError:
                    pass


def garbage_for_http(target: Target, draw: random.Random, findings: Findings) -> None:
    fuzz.HttpAttack(target.http, draw).once()


class Stranger(fuzz.PeerAttack):
    """A peer that does not know this cluster's secret."""


def garbage_for_peers(target: Target, draw: random.Random, findings: Findings) -> None:
    attack = Stranger(target.raft, draw)
    attack.cluster_id = target.cluster_id
    try:
        attack.once()
    except Exception as refused:  # the handshake ends for it, which is right
        findings.tries[f"refused: {type(refused).__name__}"] += 1


def writes_that_are_refused(target: Target, draw: random.Random, findings: Findings) -> None:
    key = f"hostile/refused/{draw.getrandbits(64):x}"
    query, headers, value = draw.choice(
        (
            ("?ttl=-1", {}, b"v"),
            ("?tttl=5", {}, b"v"),
            ("?cas=0", {}, b"v"),
            ("?lease=99999999999999999999", {}, b"v"),
            ("", {"If_Match": '"999999"'}, b"v"),
            ("", {"If_Match": "nonsense"}, b"v"),
            ("", {"Content_Encoding": "gzip"}, b"v"),
            ("", {"Idempotency_Key": "k" * 65}, b"v"),
            ("", {"Content_Type": "t" * 4_000}, b"v"),
            ("", {}, bytes(VALUE_BYTES + 1)),
        )
    )
    answer = say(target, "PUT", key_path(key) + query, value, **headers)
    if answer.status == 200:
        findings.wrong.append(f"PUT {query} {headers} of {len(value)} bytes is answered with 200")
    elif answer.json().get("outcome") == "not_applied":
        findings.refused.append(key)


KINDS: Final[tuple[Attack, ...]] = (
    *(crafted_backups, large_json, greedy_transactions, slow_readers, slow_bodies, hoarders, log_flood),
    *(garbage_for_http, garbage_for_peers, writes_that_are_refused),
)


def attack(targets: list[Target], seconds: float, seed: int, out: Connection) -> None:
    """The attacker's process."""
    os.nice(5)  # attackers are elsewhere: what they compute is not to be taken from the nodes
    until = time.monotonic() + seconds
    all_findings = [Findings() for _ in range(ATTACKERS)]
    kinds: list[Attack] = []
    turn, order = threading.Lock(), random.Random(seed)

    def next_kind() -> Attack:
        """Each in its turn, or a short run would leave some out."""
        with turn:
            if not kinds:
                kinds.extend(order.sample(KINDS, len(KINDS)))
            return kinds.pop()

    def attacker(number: int) -> None:
        draw, findings = random.Random(f"{seed}/{number}"), all_findings[number]
        while time.monotonic() < until:
            kind, target = next_kind(), draw.choice(targets)
            began = time.monotonic()
            burst = min(until, began + BURST_S)
            findings.bursts.append((began, kind.__name__))
            while time.monotonic() < burst:
                findings.tries[kind.__name__] += 1
                try:
                    kind(target, draw, findings)
                except (OSError, http.client.HTTPException):  # cut off in the middle: an attacker's lot
                    findings.tries[f"{kind.__name__}: cut off"] += 1

    threads = [threading.Thread(target=attacker, args=(number,)) for number in range(ATTACKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tries: Counter[str] = Counter()
    for findings in all_findings:
        tries += findings.tries
    refused = [key for findings in all_findings for key in findings.refused]
    wrong = [fault for findings in all_findings for fault in findings.wrong]
    out.send((tries, refused, wrong, [burst for findings in all_findings for burst in findings.bursts]))


# --- what must hold -------------------------------------------------------------------------------------


class Honest:
    """A client that writes all the time, and knows what must be there."""

    def __init__(self, cluster: Cluster, draw: random.Random) -> None:
        self._cluster, self._draw = cluster, draw
        self.accepted: dict[str, bytes] = {}
        self.refused: set[str] = set()  # that were said not to be applied
        self.unknown: set[str] = set()
        self.gap_s = 0.0
        self._last = time.monotonic()

    def write(self) -> None:
        key, value = f"honest/{len(self.accepted) % 500}/{self._draw.getrandbits(48):x}", self._draw.randbytes(64)
        node = self._draw.choice(list(self._cluster.nodes))
        try:
            answer = self._cluster.request(node, "PUT", key_path(key), value, timeout_s=8.0)
        except (OSError, http.client.HTTPException):
            self.unknown.add(key)
            return
        if answer.status == 200:
            now = time.monotonic()
            self.accepted[key] = value
            self.gap_s, self._last = max(self.gap_s, now - self._last), now
        elif answer.json().get("outcome") == "not_applied":
            self.refused.add(key)
        else:
            self.unknown.add(key)


class Prober:
    """Asks the leader probe of each node, as a balancer does, each time on a connection of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.count = 0
        self.slowest_s = 0.0
        self.late: list[tuple[float, str]] = []  # when it was asked, and what came

    def ask(self) -> None:
        for name, node in self._cluster.nodes.items():
            began = time.monotonic()
            try:
                status = str(request(node.http, "GET", LEADER_PROBE, timeout_s=3 * PROBE_S).status)
            except (OSError, http.client.HTTPException) as error:
                status = repr(error)
            took_s = time.monotonic() - began
            self.count += 1
            self.slowest_s = max(self.slowest_s, took_s)
            if took_s > PROBE_S or status not in ("200", "503"):
                self.late.append((began, f"{name} after {took_s:.2f} s: {status}"))


class Machine:
    """How late this machine wakes up who has asked for it: nodes that get no processor answer no probe."""

    def __init__(self) -> None:
        self.latest_s = 0.0

    def look(self) -> None:
        began = time.monotonic()
        time.sleep(0.02)
        self.latest_s = max(self.latest_s, time.monotonic() - began - 0.02)


@dataclass
class Verdict:
    """What a run found. `faults` is empty where everything held.

    `doubts` are faults of time (a late probe, an election, no write for long) in a run in which the machine itself was
    later than MACHINE_LATE_S: something else took the processors, and the run says nothing about them.
    """

    faults: list[str]
    doubts: list[str]
    figures: dict[str, Any]


def run(folder: Path, seconds: float, seed: int) -> Verdict:
    draw = random.Random(seed)
    env = {"KVNODE_CLUSTER_SECRET": SECRET, "KVNODE_TOKEN": TOKEN}
    args = ["--max-connections", "250"]
    with Cluster(folder, env=env, args=args, token=TOKEN) as cluster:
        cluster.start()
        for number in range(4):
            cluster.put(f"hostile/large{number or ''}", bytes(VALUE_BYTES))
        terms = {name: cluster.status(name)["term"] for name in cluster.nodes}
        cluster_id = bytes.fromhex(cluster.request("n1", "GET", "/admin/api/v1/members").json()["cluster_id"])
        targets = [Target(node.http, node.raft, cluster_id) for node in cluster.nodes.values()]
        receiving, sending = multiprocessing.Pipe(duplex=False)
        attacker = multiprocessing.get_context("spawn").Process(target=attack, args=(targets, seconds, seed, sending))
        honest, prober, machine, over = Honest(cluster, draw), Prober(cluster), Machine(), threading.Event()
        work = (honest.write, prober.ask, machine.look)
        threads = [threading.Thread(target=_again, args=(each, over)) for each in work]
        attacker.start()
        for thread in threads:
            thread.start()
        try:
            found = receiving.recv() if receiving.poll(seconds + 60) else None
        finally:
            over.set()
            for thread in threads:
                thread.join()
            attacker.kill()
            attacker.join()
        return _verdict(cluster, honest, prober, machine, terms, found)


def _again(work: Callable[[], None], over: threading.Event) -> None:
    while not over.wait(0.02):
        work()


def _verdict(
    cluster: Cluster, honest: Honest, prober: Prober, machine: Machine, terms: dict[str, int], found: Found | None
) -> Verdict:
    faults: list[str] = []
    late: list[str] = []
    ended = [name for name, node in cluster.nodes.items() if not node.running]
    if ended:
        return Verdict([f"{name} ended: {cluster.log(name)[-500:]}" for name in ended], [], {})
    tries, refused, wrong, bursts = found or (Counter(), [], ["the attacker did not come to its end"], [])
    faults += sorted(set(wrong))[:20]
    after = {name: cluster.status(name)["term"] for name in cluster.nodes}
    if after != terms:
        late.append(f"there was an election: terms were {terms} and are {after}")
    rss_mb = {name: _peak_mb(cluster.pid(name)) for name in cluster.nodes}
    faults += [f"{name} took {mb} MB" for name, mb in rss_mb.items() if mb > RSS_MB_MAX]
    for at, answer in prober.late[:10]:
        beside = sorted({kind for began, kind in bursts if began - PROBE_S < at < began + 2 * BURST_S})
        late.append(f"the leader probe of {answer} (beside {', '.join(beside)})")
    if honest.gap_s > WRITE_GAP_S or not honest.accepted:
        late.append(f"no honest write was accepted for {honest.gap_s:.1f} s ({len(honest.accepted)} were in all)")
    log_kb, audit_lines = {}, {}
    for name in cluster.nodes:
        lines = cluster.log(name).splitlines()
        audited = [line for line in lines if AUDIT_LINE.match(line)]
        audit_lines[name] = len(audited)
        log_kb[name] = (sum(map(len, lines)) - sum(map(len, audited))) // 1_024
        if (longest := max(map(len, audited), default=0)) > AUDIT_LINE_BYTES_MAX:
            faults.append(f"{name} wrote an audit line of {longest} characters")
    audited_max = sum(tries[kind] * requests for kind, requests in AUDITED.items())
    if sum(audit_lines.values()) > audited_max:
        faults.append(f"the audit logs have {sum(audit_lines.values())} lines of at most {audited_max} requests")
    faults += [f"{name} wrote {kb} KB of log" for name, kb in log_kb.items() if kb > LOG_KB_MAX]
    faults += [f"{name} logged a traceback" for name in cluster.nodes if "Traceback" in cluster.log(name)]
    faults += _contents(cluster, honest, refused)
    if machine.latest_s <= MACHINE_LATE_S:
        faults, late = faults + late, []
    figures = {
        "machine_late_s": round(machine.latest_s, 3),
        "probes": prober.count,
        "slowest_probe_s": round(prober.slowest_s, 3),
        "honest_writes": len(honest.accepted),
        "honest_refused": len(honest.refused),
        "honest_unknown": len(honest.unknown),
        "longest_gap_s": round(honest.gap_s, 2),
        "peak_mb": rss_mb,
        "log_kb": log_kb,
        "audit_lines": audit_lines,
        "terms": after,
        "refused_writes": len(refused),
        "tries": dict(tries.most_common()),
    }
    return Verdict(faults, late, figures)


def _contents(cluster: Cluster, honest: Honest, refused: list[str]) -> Iterator[str]:
    """The store by each node against the model."""
    leader = cluster.leader()
    there = set(_keys(cluster, leader, "honest/"))
    if missing := set(honest.accepted) - there:
        yield f"{len(missing)} acknowledged writes are missing: {sorted(missing)[:3]}"
    if extra := there - set(honest.accepted) - honest.unknown:
        yield f"{len(extra)} keys are there whose write was refused: {sorted(extra)[:3]}"
    if written := set(_keys(cluster, leader, "hostile/refused/")) & set(refused):
        yield f"{len(written)} refused writes are there: {sorted(written)[:3]}"
    for key in random.Random(0).sample(sorted(honest.accepted), min(50, len(honest.accepted))):
        for name in cluster.nodes:
            if cluster.get(key, via=name) != honest.accepted[key]:
                yield f"{key} differs on {name}"


def _keys(cluster: Cluster, node: str, prefix: str) -> Iterator[str]:
    path = f"/v1/kv?prefix={prefix}&limit=1000&keys_only=true"
    page = cluster.request(node, "GET", path).json()
    while True:
        yield from (item["key"] for item in page["items"])
        if "cursor" not in page:
            return
        page = cluster.request(node, "GET", f"{path}&cursor={page['cursor']}").json()


def _peak_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1_024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="kvnode-hostile-") as folder:
        verdict = run(Path(folder), options.seconds, options.seed)
    for name, figure in verdict.figures.items():
        print(f"{name}: {figure}")
    for fault in verdict.faults:
        print(f"FAULT {fault}")
    for doubt in verdict.doubts:
        print(f"DOUBT {doubt}: but the machine itself was late; run it again with nothing beside it")
    print(f"{'failed' if verdict.faults else 'everything held'}; repeat with --seed {options.seed}")
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
