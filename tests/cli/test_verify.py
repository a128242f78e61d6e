"""`kvnode verify` as an operator runs it: its exit codes, its verdict, and a node that goes on underneath."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.cli.command import is_one_sentence, kvnode, kvnode_here
from tests.cluster import Cluster

JOURNAL = "journal-000000000001"


@pytest.fixture
def stopped(cluster: Cluster) -> Path:
    """The data directory of a node that has stopped after some writes."""
    for number in range(20):
        cluster.put(f"k/{number}", b"v" * 100)
    cluster.stop()
    return cluster.nodes["n1"].data_dir


def test_a_whole_directory_is_zero_and_a_damaged_one_is_one_with_the_place(stopped: Path) -> None:
    whole = kvnode("verify", "--data-dir", str(stopped))
    assert (whole.code, whole.err) == (0, "")
    lines = whole.out.decode().splitlines()
    assert lines[0].split(maxsplit=1) == ["node", "n1, of the cluster of n1 n2 n3"]
    assert any(line.startswith(f"journal     {JOURNAL}: ") for line in lines)
    assert lines[-1] == "whole"

    data = bytearray((stopped / JOURNAL).read_bytes())
    data[1_000] ^= 1
    (stopped / JOURNAL).write_bytes(data)
    damaged = kvnode("verify", "--data-dir", str(stopped))
    assert damaged.code == 1
    verdict = damaged.out.decode().splitlines()[-1]
    assert verdict.startswith(f"damaged: {JOURNAL} at byte ")
    assert "; restore it from a copy, or move the data directory away" in verdict

    as_json = kvnode("verify", "--data-dir", str(stopped), "-o", "json")
    document = json.loads(as_json.out)
    assert (as_json.code, document["verdict"], document["node_id"]) == (1, "damaged", "n1")
    assert document["damage"][0]["file"] == JOURNAL
    assert 800 < document["damage"][0]["offset"] <= 1_000
    assert (stopped / JOURNAL).read_bytes() == bytes(data)


@pytest.mark.parametrize("where", ["missing", "."])
def test_a_place_that_is_no_data_directory_is_usage(tmp_path: Path, where: str) -> None:
    done = kvnode("verify", "--data-dir", str(tmp_path / where))
    assert done.code == 2
    assert is_one_sentence(done.err)


@pytest.mark.parametrize("command", [["verify"], ["recover", "--force-new-cluster"], ["restore", "b.kvnb"], ["serve"]])
def test_an_empty_name_is_not_the_current_directory(command: list[str]) -> None:
    done = kvnode(*command, "--data-dir", "")
    assert (done.code, done.out) == (2, b"")
    assert "an empty text names no directory" in done.err


def test_the_directory_of_a_running_node_is_whole_and_the_node_does_not_notice(cluster: Cluster) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            cluster.put(f"k/{number % 100}", b"v" * 5_000)
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for name in cluster.nodes:
            done = kvnode("verify", "--data-dir", str(cluster.nodes[name].data_dir))
            assert (done.code, done.out.decode().splitlines()[-1]) == (0, "whole"), done
    finally:
        stop.set()
        writer.join(20)
    assert all(cluster.is_ready(name) for name in cluster.nodes)
    assert set(cluster.stop().values()) == {0}


def test_a_directory_is_no_backup_and_the_option_for_it_is_named(tmp_path: Path) -> None:
    done = kvnode_here("verify", str(tmp_path))
    assert (done.code, is_one_sentence(done.err)) == (1, True)
    assert "--data-dir" in done.err
