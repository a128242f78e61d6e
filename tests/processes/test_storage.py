"""What a node does when its disk does not: it stops with a sentence, and the others go on."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

import pytest

from tests.cluster import Cluster, wait_until

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, to limit a running process's file sizes")


@linux
def test_a_write_error_stops_the_node_with_a_sentence_and_loses_nothing(cluster: Cluster) -> None:
    leader, survivor = cluster.leader(), cluster.followers()[0]
    for number in range(20):
        cluster.put(f"k/{number}", b"x" * 1000, via=leader)
    # From now on the kernel answers the journal's writes with EFBIG: neither a full disk nor anything to try again.
    resource.prlimit(cluster.pid(leader), resource.RLIMIT_FSIZE, (4_096, 4_096))
    answer = cluster.request(survivor, "PUT", "/v1/kv/meanwhile", b"1", timeout_s=15.0)
    assert answer.status == 200, answer.body
    assert cluster.wait_exit(leader, 15.0) == 1
    last_words = [line for line in cluster.log(leader).splitlines() if "could not be written" in line]
    assert len(last_words) == 1
    assert "Traceback" not in cluster.log(leader)
    cluster.restart(leader)
    assert all(cluster.get(f"k/{number}", via=leader) == b"x" * 1000 for number in range(20))
    assert cluster.get("meanwhile", via=leader) == b"1"


@pytest.mark.parametrize("mode", ["interval", "never"])
def test_other_fsync_modes_survive_the_death_of_every_process(make_cluster: Callable[..., Cluster], mode: str) -> None:
    cluster = make_cluster(args=["--fsync", mode]).start()
    for number in range(20):
        cluster.put(f"k/{number}", b"%d" % number)
    for name in cluster.nodes:
        cluster.kill(name)
    cluster.start()
    assert [cluster.get(f"k/{number}") for number in range(20)] == [b"%d" % number for number in range(20)]
    assert all("power cut" in cluster.log(name) for name in cluster.nodes)


def test_a_damaged_journal_does_not_start_and_says_where(cluster: Cluster) -> None:
    for number in range(200):
        cluster.put(f"k/{number}", b"x" * 100)
    victim = cluster.followers()[0]
    cluster.kill(victim)
    (segment,) = cluster.nodes[victim].data_dir.glob("journal-*")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    cluster.spawn(victim)
    assert cluster.wait_exit(victim, 10.0) == 2
    sentence = cluster.log(victim).splitlines()[-1]
    assert segment.name in sentence
    assert "is damaged at byte" in sentence
    wait_until(lambda: cluster.put("others-go-on", b"1"), 5.0, "the others go on")
