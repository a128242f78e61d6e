"""What the benchmarks ask and how they show it; the figures themselves are made by `make bench`."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

import pytest

from benchmarks.contenders import Etcd, cpu_s
from benchmarks.throughput import LADEN_ROWS, Cell, Slice, table
from benchmarks.workloads import command, request_of, rows, spread


def test_the_rows_in_etcds_words_send_the_same_bytes_to_both() -> None:
    own = [row for row in rows() if row.name.startswith("etcd's own")]
    assert {(row.work, row.clients) for row in own} == {
        (f"gateway {work}", clients) for work in ("put", "range", "txn") for clients in (64, 256)
    }
    for row in own:
        assert request_of("kvnode", row)(7) == request_of("etcd", row)(7)


def test_the_transaction_writes_where_its_key_is_there() -> None:
    row = next(row for row in rows() if row.work == "gateway txn")
    body = json.loads(request_of("etcd", row)(7).body)
    name = base64.b64encode(b"bench/000007").decode()
    assert body["compare"] == [{"key": name, "target": "CREATE", "result": "GREATER", "create_revision": "0"}]
    assert body["success"][0]["request_put"]["key"] == name


def test_clients_that_are_spread_have_a_thread_for_each_node() -> None:
    row = next(row for row in rows() if row.target == "all")
    nodes = [("127.0.0.1", 1001), ("127.0.0.1", 1002), ("127.0.0.1", 1003)]
    asked = command(row, nodes, Path("a.lua"), 2)
    assert asked[asked.index("--threads") + 1] == "3"
    assert row.clients % len(nodes) == 0
    assert all(f'"{port}"' in spread(nodes) for _, port in nodes)


def test_the_rows_for_the_size_of_the_store_are_rows() -> None:
    assert set(LADEN_ROWS) <= {row.name for row in rows()}


def test_the_cost_of_a_request_is_that_of_all_slices_together() -> None:
    cell = Cell.of([Slice(100, 1.0, 0.1, 0.2, 0, 0.030, 0.010), Slice(300, 1.0, 0.3, 0.4, 0, 0.050, 0.030)])
    assert cell.all_us == pytest.approx(200)
    assert cell.leader_us == pytest.approx(100)
    assert cell.per_s == 200
    shown = table({"PUT": {"kvnode": cell, "etcd": Cell(100, 0.1, 0.2, 0, 400, 300)}})
    assert "| 200 / 100 | 100 | 100.00 ms | 200.0 ms | 400 / 300 | **2.0x** | **0.50x** |" in shown


def test_the_time_of_a_process_grows_with_its_work() -> None:
    before, until = cpu_s(os.getpid()), time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert cpu_s(os.getpid()) - before == pytest.approx(0.1, abs=0.05)


def test_another_etcd_is_named_by_its_folder_or_its_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Etcd, "binary", "etcd")
    binary = tmp_path / "etcd"
    binary.write_text("#!/bin/sh\necho 'etcd Version: 9.8.7'\n")
    binary.chmod(0o755)
    for path in (tmp_path, binary):
        Etcd.use(str(path))
        assert Etcd.binary == str(binary)
    assert Etcd.version() == "etcd 9.8.7 (JSON gateway)"
    with pytest.raises(SystemExit, match="There is no etcd at"):
        Etcd.use(str(tmp_path / "nothing"))
